"""DTensor parameters (FSDP2's ``fully_shard``, tensor parallel): the step updates their local tensors.

A DTensor wraps the local tensor of this rank. Every operation on the wrapper goes through DTensor's dispatcher, which
computes placements: tens of microseconds per call, and sometimes a collective. An elementwise step needs neither, so
the step works on local tensors. Only ``optimizer.state`` has DTensors: views of the flat buffers, wrapped with the
parameter's own mesh and placements, as checkpoints expect them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: Any) -> bool:
    """Whether this is a DTensor; the class comes from ``sys.modules``, so that asking imports nothing."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_fsdp1(param: Any) -> bool:
    """Whether this is a flat parameter of FSDP1 (`FullyShardedDataParallel`): a plain tensor with several shards."""
    return bool(getattr(param, "_fsdp_flattened", False))


def local(tensor: Any) -> Tensor:
    """The local tensor of a DTensor, which shares its memory; any other tensor unchanged."""
    return tensor._local_tensor if is_sharded(tensor) else tensor


def check_placed(param: Any, name: str) -> None:
    """Raises for a DTensor parameter whose local tensors cannot be stepped.

    Args:
        param: a parameter, DTensor or not.
        name: what the error calls it.

    Raises:
        ValueError: a placement is ``Partial``, that is, the value is a sum over ranks that was not taken yet.
    """
    if is_sharded(param) and any(placement.is_partial() for placement in param.placements):
        raise ValueError(
            f"{name} has placements {param.placements}: must be Shard or Replicate on every mesh dimension; a Partial "
            "one has no value yet"
        )


def stretches(
    shape: Sequence[int], mesh: Sequence[int], coordinate: Sequence[int], placements: Sequence[Any]
) -> list[tuple[int, int]] | None:
    """The range of indices that a rank holds of each dimension of a tensor, split as ``torch.chunk`` splits.

    FSDP2 over tensor parallel splits a dimension by a mesh dimension further right first. Its ``_StridedShard`` gives,
    as ``split_factor``, the number of parts into which the dimension was already split.

    Args:
        shape: of the whole tensor.
        mesh: the number of ranks along each dimension of the mesh.
        coordinate: the rank's index along each dimension of the mesh.
        placements: one for each dimension of the mesh.

    Returns:
        The first index and the number of indices, for each dimension of the tensor; None if the rank's indices of
        some dimension are not contiguous.
    """
    splits: list[list[tuple[int, int]]] = [[] for _ in shape]
    for parts, index, placement in reversed(list(zip(mesh, coordinate, placements, strict=True))):
        dim = getattr(placement, "dim", None)
        if dim is None:
            continue
        before, at = int(getattr(placement, "split_factor", 1)), 0
        while before > 1 and at < len(splits[dim]) and before % splits[dim][at][0] == 0:
            before //= splits[dim][at][0]
            at += 1
        if before != 1:
            return None
        splits[dim].insert(at, (parts, index))
    found = []
    for size, split in zip(shape, splits, strict=True):
        first = 0
        for parts, index in split:
            share = -(-size // parts)
            begin = min(share * index, size)
            first, size = first + begin, min(share, size - begin)
        found.append((first, size))
    return found


def shard_of(param: Any) -> tuple[int, list[tuple[int, int]] | None]:
    """The index of this rank's shard among a DTensor's shards, and the shard's `stretches`.

    Replicas of a shard have its index. Both are computed from mesh and placements, without communication. The
    stretches are None if they do not fit the local tensor's shape, because it was not split as ``torch.chunk`` does.
    """
    mesh, coordinate = tuple(param.device_mesh.shape), param.device_mesh.get_coordinate()
    if coordinate is None:  # a rank outside the mesh has no shard
        return 0, None
    number = 0
    for parts, index, placement in zip(mesh, coordinate, param.placements, strict=True):
        if not placement.is_replicate():
            number = number * parts + index
    found = stretches(param.shape, mesh, coordinate, param.placements)
    if found is not None and tuple(size for _, size in found) != tuple(local(param).shape):
        found = None
    return number, found


def wrapped(param: Any, tensor: Tensor) -> Tensor:
    """Wraps a local tensor as a DTensor with the parameter's mesh and placements, if the parameter is a DTensor.

    `DTensor.from_local` is not used: it would move state that is stored on the CPU to the mesh's device.

    Args:
        param: the parameter.
        tensor: of the shape of the parameter's local tensor.
    """
    if not is_sharded(param):
        return tensor
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._dtensor_spec import TensorMeta

    shape, stride = param.shape, param.stride()
    if tensor.dim() > len(shape):  # real low-precision moments of a complex parameter: one more dimension of 2
        shape, stride = torch.Size((*shape, 2)), (*(2 * step for step in stride), 1)
    meta = TensorMeta(shape, stride, tensor.dtype)
    make: Any = DTensor  # its metaclass hides the constructor's signature from mypy
    return make(tensor, param._spec.shallow_copy_with_tensor_meta(meta), requires_grad=False)


def part_of(param: Any, tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor with the parameter's global shape, which may be a DTensor or a whole tensor."""
    if not is_sharded(param) or is_sharded(tensor):
        return local(tensor)
    from torch.distributed.tensor import distribute_tensor

    whole = tensor.to(local(param).device)
    return local(distribute_tensor(whole, param.device_mesh, param.placements, src_data_rank=None))


def check_part(param: Any, tensor: Any, what: str) -> None:
    """Raises for a DTensor that is not distributed as its parameter is. A plain tensor passes: it is the whole one.

    Args:
        param: the parameter.
        tensor: a state tensor with the parameter's shape.
        what: what the error calls the tensor.

    Raises:
        ValueError: another mesh or other placements, or a DTensor for a parameter that is no DTensor.
    """
    if not is_sharded(tensor):
        return
    if not is_sharded(param):
        raise ValueError(f"{what} is a DTensor with placements {tensor.placements}: must be a plain tensor")
    if tensor.device_mesh != param.device_mesh or tensor.placements != param.placements:
        raise ValueError(
            f"{what} is on {tensor.device_mesh} with placements {tensor.placements}: must be as its parameter, on "
            f"{param.device_mesh} with placements {param.placements}"
        )


def local_gradients(
    params: Sequence[Any], grads: Sequence[Any], names: Callable[[], dict[Tensor, str]]
) -> list[Tensor]:
    """The local tensor of each gradient.

    FSDP2's gradients have their parameter's placements and are used as they are. Tensor parallel may give a gradient
    that is still a sum over ranks (``Partial``), for example of a norm's weight under sequence parallel. This function
    redistributes it, as torch.optim's operators do, and assigns the result to ``p.grad``.

    Args:
        params: DTensors.
        grads: the gradient of each parameter.
        names: returns what errors call each parameter; called only for an error.

    Raises:
        TypeError: a gradient that is no DTensor.
        ValueError: a gradient on another mesh, or of another shape.
    """
    result = []
    for p, grad in zip(params, grads, strict=True):
        # FSDP2 gives a gradient its parameter's own specification object, so comparing identities is enough there.
        # Comparing meshes and placements would take a noticeable part of a step's time.
        if getattr(grad, "_spec", None) is not p._spec:
            grad = _as_placed(p, grad, names)
        part = grad._local_tensor
        result.append(part if type(part) is Tensor else _arrived(part))
    return result


def _as_placed(p: Any, grad: Any, names: Callable[[], dict[Tensor, str]]) -> Any:
    if not is_sharded(grad):
        raise TypeError(
            f"gradient of {names()[p]} is a {type(grad).__name__} of shape {tuple(grad.shape)}: must be a DTensor with "
            f"placements {p.placements}, as its parameter is"
        )
    if grad.device_mesh != p.device_mesh or grad.shape != p.shape:
        raise ValueError(
            f"gradient of {names()[p]} has shape {tuple(grad.shape)} on {grad.device_mesh}: must have its parameter's, "
            f"{tuple(p.shape)} on {p.device_mesh}"
        )
    if grad.placements != p.placements:
        p.grad = grad = grad.redistribute(placements=p.placements)
    if local(grad).shape != local(p).shape:
        raise ValueError(
            f"gradient of {names()[p]} has shape {tuple(local(grad).shape)} on this rank: must be "
            f"{tuple(local(p).shape)}, as its parameter's part"
        )
    return grad


def _arrived(part: Any) -> Tensor:
    """A local tensor once its collective is complete: an AsyncCollectiveTensor may still be being filled."""
    wait = getattr(part, "wait", None)
    return part if wait is None else wait()


def refuse_flatten(names: dict[Tensor, str]) -> None:
    """Raises ValueError for a DTensor under ``flatten``, which would move it: FSDP2 gathers from its own memory."""
    for p, name in names.items():
        if is_sharded(p):
            raise ValueError(f"flatten=True: {name} is a DTensor, whose memory is FSDP2's: use flatten=False")
