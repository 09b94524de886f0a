"""DTensor parameters (FSDP2's ``fully_shard``, tensor parallel): the step runs on what this rank holds of them.

A DTensor is a wrapper around this rank's local tensor. Every operation on the wrapper goes through a dispatcher that
works out placements, tens of microseconds a call and at times a collective; an elementwise step needs none of that.
So the step sees local tensors alone, and only ``optimizer.state`` shows DTensors again: views of the flat buffers,
wrapped with the parameter's own mesh and placements, as checkpoints expect them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: Any) -> bool:
    """Whether this is a DTensor, without importing them for those who have none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_fsdp1(param: Any) -> bool:
    """Whether FSDP1 (`FullyShardedDataParallel`) has this rank's part of several parameters in this plain tensor."""
    return bool(getattr(param, "_fsdp_flattened", False))


def local(tensor: Any) -> Tensor:
    """What this rank holds of a DTensor, sharing its memory; any other tensor as it is."""
    return tensor._local_tensor if is_sharded(tensor) else tensor


def check_placed(param: Any, name: str) -> None:
    """Raises for a DTensor parameter that cannot be stepped where it is stored.

    Raises:
        ValueError: a parameter whose value is a pending sum over ranks (``Partial``).
    """
    if is_sharded(param) and any(placement.is_partial() for placement in param.placements):
        raise ValueError(
            f"{name} has placements {param.placements}: must be Shard or Replicate on every mesh dimension; a Partial "
            "one has no value yet"
        )


def stretches(
    shape: Sequence[int], mesh: Sequence[int], coordinate: Sequence[int], placements: Sequence[Any]
) -> list[tuple[int, int]] | None:
    """Of each dimension of a tensor the first index and the number of those that a rank holds, by torch.chunk's rule.

    FSDP2 over tensor parallel splits a dimension by a mesh dimension to the right before one to the left, which a
    ``_StridedShard`` says by how many parts there were before.

    Args:
        shape: the whole tensor's.
        mesh: how many ranks there are along each of the mesh's dimensions.
        coordinate: the rank's place in the mesh.
        placements: as many as the mesh has dimensions.

    Returns:
        None where a dimension is split into parts that are no stretches of it.
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
    """The number of a DTensor's part among the shards, the same for replicas, and the part's `stretches`.

    Found from the DTensor's mesh and placements, without communication. None for stretches that the local tensor does
    not have, as of parts that were not made by torch.chunk's rule.
    """
    mesh, coordinate = tuple(param.device_mesh.shape), param.device_mesh.get_coordinate()
    if coordinate is None:  # a rank outside of the mesh holds nothing
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
    """A local tensor of this rank's part of a parameter as the parameter is: a DTensor where that is one.

    Without `DTensor.from_local`, which would move a state that is kept on the CPU to the mesh's device.
    """
    if not is_sharded(param):
        return tensor
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._dtensor_spec import TensorMeta

    shape, stride = param.shape, param.stride()
    if tensor.dim() > len(shape):  # of a complex parameter, whose moments in few bits are of real numbers
        shape, stride = torch.Size((*shape, 2)), (*(2 * step for step in stride), 1)
    meta = TensorMeta(shape, stride, tensor.dtype)
    make: Any = DTensor  # what its metaclass makes of the constructor has no signature
    return make(tensor, param._spec.shallow_copy_with_tensor_meta(meta), requires_grad=False)


def part_of(param: Any, tensor: Tensor) -> Tensor:
    """This rank's part of a tensor of the parameter's shape: a DTensor's local one, or a piece of a whole tensor."""
    if not is_sharded(param) or is_sharded(tensor):
        return local(tensor)
    from torch.distributed.tensor import distribute_tensor

    whole = tensor.to(local(param).device)
    return local(distribute_tensor(whole, param.device_mesh, param.placements, src_data_rank=None))


def check_part(param: Any, tensor: Any, what: str) -> None:
    """Raises where a tensor, of the parameter's shape, is not spread over ranks as the parameter is.

    Raises:
        ValueError: another mesh or other placements, or a DTensor for a parameter that is none.
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
    """This rank's part of each gradient.

    A gradient with its parameter's placements is taken as it is; FSDP2 gives no others. Tensor parallel by itself may
    leave one that is a pending sum (of a norm's weight under sequence parallel, say): it is reduced here, which
    torch.optim's operators do as well, and ``p.grad`` is then the reduced one.

    Args:
        params: DTensors.
        grads: a gradient of each.
        names: what errors call each parameter.

    Raises:
        TypeError: a gradient that is no DTensor.
        ValueError: a gradient on another mesh, or of another shape.
    """
    result = []
    for p, grad in zip(params, grads, strict=True):
        if (
            getattr(grad, "_spec", None) is not p._spec
        ):  # FSDP2 gives the parameter's own; looking closer would be seen in a step's time
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
    """A tensor that a collective may still be filling, complete."""
    wait = getattr(part, "wait", None)
    return part if wait is None else wait()


def refuse_flatten(names: dict[Tensor, str]) -> None:
    """Raises ValueError for a DTensor under ``flatten``: FSDP2 gathers from the memory that it gave the parameter."""
    for p, name in names.items():
        if is_sharded(p):
            raise ValueError(f"flatten=True: {name} is a DTensor, whose memory is FSDP2's: use flatten=False")
