"""Gradients that are parts of others without being DTensors: how to recognise them, and how each tool clips.

The norm of what this rank holds would be the norm of a part, and each rank would clip by another one. Some tools leave
marks on their parameters; they are read when the norm is first asked for, not in every step. Where there is none, as in
the stages of a pipeline, parameters look as under DistributedDataParallel, where the norm of all is right.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor
from torch.nn.parameter import is_lazy

OWN_GROUP = "or set optimizer.grad_norm_group to the process group of the ranks that share the model"


class Given(NamedTuple):
    """What an optimizer was made with, as far as it shows whether the optimizer holds all of a model."""

    dims: int
    """The most dimensions of a parameter."""
    handed_on: bool
    """Whether groups carry ``max_grad_norm``, as where an optimizer hands on what it was given to one of its own."""


WHOLE = Given(0, False)


def given(groups: Iterable[Mapping[str, Any]]) -> Given:
    """What parameter groups show of it."""
    groups = list(groups)
    dims = max((p.dim() for group in groups for p in group["params"] if not is_lazy(p)), default=0)
    return Given(dims, any("max_grad_norm" in group for group in groups))


def refuse_parts(names: Mapping[Tensor, str], made_with: Given) -> None:
    """Raises where parameters are known to be parts, whose norm is not the model's.

    Args:
        names: all parameters of the optimizer, and what errors call them.
        made_with: what it was made with.

    Raises:
        ValueError: a parameter that is a part, with the way of its tool to clip.
    """
    params = list(names)
    if len(params) == 1 and hasattr(params[0], "_in_backward_optimizers"):
        raise ValueError(
            f"max_grad_norm: {names[params[0]]} has an optimizer of its own (_apply_optimizer_in_backward), so its "
            "norm is not the model's: leave max_grad_norm out. Clip each gradient in a hook of its own"
        )
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    for tool in _TOOLS:
        part = tool.part(params)
        if part is not None:
            raise ValueError(f"max_grad_norm: {names[part]} {tool.what}: {tool.way}, {OWN_GROUP}")
    if made_with.dims > 1 and max((p.dim() for p in params), default=made_with.dims) <= 1:
        raise ValueError(
            f"max_grad_norm: {names[params[0]]} and all others have been replaced by flat parameters since the "
            "optimizer was made, which are this rank's parts as a rule: leave max_grad_norm out and clip as the tool "
            'does (DeepSpeed: "gradient_clipping" in its configuration; Megatron-LM: --clip-grad; ColossalAI: '
            f"clip_grad_norm of the booster's plugin), {OWN_GROUP}"
        )
    if made_with.handed_on:
        raise ValueError(
            "max_grad_norm: the parameter groups carry it too, as where an optimizer shares out parameters among ranks "
            "and hands on its arguments. Where that is so, set optimizer.grad_norm_group to their process group; "
            "where it is not, give max_grad_norm to the constructor alone"
        )


def sharing_group(depth: int = 24) -> Any:
    """The process group of the optimizer that makes this one for its share of the parameters; None where none is known.

    torch's `ZeroRedundancyOptimizer` and fairscale's ``OSS`` give a local optimizer nothing but parameters and groups.
    So this looks who is calling; ask it only where groups carry ``max_grad_norm``, as they do there.
    """
    owners = [
        (getattr(module, kind), attribute)
        for name, kind, attribute in (
            ("torch.distributed.optim.zero_redundancy_optimizer", "ZeroRedundancyOptimizer", "process_group"),
            ("fairscale.optim.oss", "OSS", "group"),
        )
        if (module := sys.modules.get(name)) is not None
    ]
    frame: Any = sys._getframe(1)
    while owners and frame is not None and depth > 0:
        caller = frame.f_locals.get("self")
        for kind, attribute in owners:
            if isinstance(caller, kind):
                return getattr(caller, attribute)
        frame, depth = frame.f_back, depth - 1
    return None


# Marks. Each function returns a parameter that is a part, or None. Sources are named as of August 2026.


def _fully_sharded(params: Sequence[Any]) -> Tensor | None:
    """torch/distributed/fsdp/_flat_param.py: ``_fsdp_flattened``; under NO_SHARD they are whole."""
    originals = []
    for p in params:
        if getattr(p, "_fsdp_flattened", False):
            whole = getattr(p, "_unpadded_unsharded_size", None)  # of a FlatParameter
            if whole is None:
                originals.append(p)
            elif p.numel() < whole.numel():
                return p
    return _flat(originals)  # use_orig_params=True: pieces of the flat shard


def _fairscale(params: Sequence[Any]) -> Tensor | None:
    """fairscale/nn/data_parallel/fully_sharded_data_parallel.py, _shard_parameters_."""
    return next((p for p in params if getattr(p, "_is_sharded", False) is True and hasattr(p, "_orig_size")), None)


def _zero3(params: Sequence[Any]) -> Tensor | None:
    """deepspeed/runtime/zero/partition_parameters.py, and the flat partitions of deepspeed/runtime/zero/stage3.py."""
    return next((p for p in params if hasattr(p, "ds_id")), None)


def _experts(params: Sequence[Any]) -> Tensor | None:
    """deepspeed/moe/experts.py and megatron/core/transformer/moe: ``allreduce = False``."""
    for p in params:
        if getattr(p, "allreduce", True) is False and getattr(p, "group_name", None) != "ep_size_1":
            return p
    return None


def _tensor_parallel(params: Sequence[Any]) -> Tensor | None:
    """megatron/core/tensor_parallel/layers.py; its distributed optimizer copies the mark to flat shards."""
    marked = [p for p in params if getattr(p, "tensor_model_parallel", False) is True]
    for name in ("megatron.core.parallel_state", "apex.transformer.parallel_state"):
        size: Callable[[], int] | None = getattr(sys.modules.get(name), "get_tensor_model_parallel_world_size", None)
        if size is not None:
            return next(iter(marked), None) if size() > 1 else _flat(marked)
    return next(iter(marked), None)


def _flat(params: Sequence[Tensor]) -> Tensor | None:
    """The first, if none has two dimensions: weights do where they are whole."""
    return params[0] if params and all(p.dim() <= 1 for p in params) else None


class _Tool(NamedTuple):
    part: Callable[[Sequence[Any]], Tensor | None]
    what: str
    way: str


_TOOLS = (
    _Tool(
        _fully_sharded,
        "is a shard of FullyShardedDataParallel (FSDP1)",
        "leave max_grad_norm out and call model.clip_grad_norm_(...) before the step, use fully_shard",
    ),
    _Tool(
        _fairscale,
        "is a shard of fairscale's FullyShardedDataParallel",
        "leave max_grad_norm out and call model.clip_grad_norm_(...) before the step",
    ),
    _Tool(
        _zero3,
        "is a partition of DeepSpeed's ZeRO-3",
        'leave max_grad_norm out and set "gradient_clipping" in DeepSpeed\'s configuration',
    ),
    _Tool(
        _experts,
        "is of an expert that other ranks do not have (allreduce = False)",
        "leave max_grad_norm out and clip as the tool does (DeepSpeed: gradient_clipping; Megatron-LM: --clip-grad)",
    ),
    _Tool(
        _tensor_parallel,
        "is a part of a tensor-parallel weight of Megatron-LM's",
        "leave max_grad_norm out and clip as Megatron-LM does (--clip-grad)",
    ),
)
