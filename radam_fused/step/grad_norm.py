"""Clipping where each rank knows a part of the gradients: the whole model's norm by one all-reduce of one number.

Every rank adds up the squares of what it holds, and of several ranks that hold the same part one counts it. The ranks
that together hold the model are those of the largest mesh that a parameter is placed on: smaller meshes are parts
of it (a plain or FSDP-only parameter beside tensor-parallel ones), and a parameter on such a part is repeated on the
others.
Plain parameters are repeated on every rank, as under DistributedDataParallel, which needs no collective here at all.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..backends.ops import Operators
from ..backends.reference.grad_norm import tree_reduce
from ..dtensor import is_sharded
from ..numerics.layout import PARTIAL_SUMS
from ..numerics.tensor_checks import gradient_dtypes
from ..state.bucket import Bucket
from ..state.bucket_manager import BucketManager
from .launch import Launch, Names
from .norm_lines import by_kind, lines
from .parts import WHOLE, Given, refuse_parts
from .plan import Plan
from .pointer_table import find_norm_table
from .recovery import check_launch

FAILED = -float("inf")
"""What a rank adds to the sum whose own gradients do not fit: no sum of squares is negative."""

_made: weakref.WeakKeyDictionary[Any, dict[tuple[int, ...], Any]] = weakref.WeakKeyDictionary()
"""Process groups made here, by the default group of their time and their ranks: making one is a collective."""


class GlobalNorm:
    """How the ranks that share a model find the norm of its gradients.

    Args:
        names: all parameters of the optimizer on this rank, in the same order on each, and what errors call them.
        group: the ranks that share it where the parameters do not show it: each of them counts its plain parameters.
        made_with: what the optimizer was made with.

    Attributes:
        given: the group as given.
        group: a process group; None where this process holds all there is to add up.

    Raises:
        ValueError: parameters on meshes of which none holds all the others' ranks, or without a group parameters that
            are known to be parts (`radam_fused.step.parts`).
    """

    def __init__(self, names: dict[Tensor, str], group: Any = None, made_with: Given = WHOLE) -> None:
        if group is None:
            refuse_parts(names, made_with)
        self.given = group
        meshes: dict[Any, str] = {}
        for p, name in names.items():
            if is_sharded(p):
                meshes.setdefault(p.device_mesh, name)  # type: ignore[attr-defined]
        self._largest = max(meshes, key=lambda mesh: mesh.size(), default=None)
        self._ranks = _ranks(self._largest) if self._largest is not None else ()
        for mesh, name in meshes.items():
            if not set(_ranks(mesh)) <= set(self._ranks):
                raise ValueError(
                    f"max_grad_norm: {name} is on ranks {_ranks(mesh)} and {meshes[self._largest]} on {self._ranks}: "
                    "one mesh must hold the others; or set optimizer.grad_norm_group"
                )
        self._plain_counts = group is not None and self._largest is None
        self.group = group if group is not None else self._find_group()
        self._counts: weakref.WeakKeyDictionary[Bucket, list[bool]] = weakref.WeakKeyDictionary()
        if self.group is not None and dist.get_world_size(self.group) == 1:
            self.group = None

    def _find_group(self) -> Any:
        if self._largest is None or self._largest.get_coordinate() is None:  # of a mesh of others it holds nothing
            return None
        if self._largest.ndim == 1:
            return self._largest.get_group()
        world = dist.group.WORLD
        if len(self._ranks) == dist.get_world_size():
            return world
        groups = _made.setdefault(world, {})
        if self._ranks not in groups:
            # Only these ranks come here: the others may belong to another stage or model.
            groups[self._ranks] = dist.new_group(list(self._ranks), use_local_synchronization=True)
        return groups[self._ranks]

    def counts(self, param: Any) -> bool:
        """Whether this rank is the one that adds up a parameter's squares, of those that hold the same part of it."""
        if self.group is None or self._plain_counts:
            return True
        if not is_sharded(param):
            return dist.get_rank() == self._ranks[0]
        coordinate = param.device_mesh.get_coordinate()
        return (
            coordinate is not None
            and self._ranks[0] in _ranks(param.device_mesh)
            and all(k == 0 for k, placed in zip(coordinate, param.placements, strict=True) if placed.is_replicate())
        )

    def _counts_of(self, bucket: Bucket) -> list[bool]:
        counts = self._counts.get(bucket)
        if counts is None:
            counts = self._counts[bucket] = [self.counts(p) for p in bucket.params]
        return counts

    def counted(self, bucket: Bucket, plan: Plan) -> list[bool] | None:
        """For each segment of a plan, whether this rank counts its gradient; None: it counts all."""
        counts = self._counts_of(bucket)
        return None if all(counts) else [counts[segment] for segment in plan.present]

    @contextmanager
    def taking_part(self) -> Iterator[None]:
        """Around what comes before `total`: an error there still joins the all-reduce, so no rank waits forever."""
        try:
            yield
        except Exception as error:
            self._fail(error)
            raise

    def total(self, squares: Tensor | None) -> Tensor:
        """The sum over the ranks, as the scalars operators take it: float64 (1, 1024), all in the first element.

        Args:
            squares: float64 (k, 1024), the partial sums of what this rank counts, or None where that is nothing.

        Raises:
            RuntimeError: another rank has failed, with what it said (where the sum is read at no cost, on the CPU).
        """
        device = self._home() if squares is None else squares.device
        number = torch.zeros(1, dtype=torch.float64, device=device)
        for line in tree_reduce(squares) if squares is not None else ():
            number += line
        number = self._reduced(number)
        if number.device.type == "cpu":
            self._check(number.item(), None)
        return torch.nn.functional.pad(number.to(device), (0, PARTIAL_SUMS - 1)).unsqueeze(0)

    def of(self, total: Tensor, grad_scale: Tensor | None) -> Tensor:
        """The norm of the unscaled gradients, a float64 scalar, for a rank that steps nothing."""
        norm = total[0, 0].sqrt()
        return norm if grad_scale is None else norm / grad_scale.to(norm.device).double().reshape(())

    def joined(self, total: Tensor, found_inf: Tensor | None) -> Tensor | None:
        """``found_inf`` of a step that is skipped as well where another rank has failed and the host did not look."""
        if total.device.type == "cpu":
            return found_inf
        skip = (total[0, :1] == FAILED).float()
        return skip if found_inf is None else torch.maximum(skip, found_inf.to(skip.device).reshape(1))

    def _fail(self, error: Exception) -> None:
        number = self._reduced(torch.full((1,), FAILED, dtype=torch.float64, device=self._home()))
        if number.device.type == "cpu":
            self._check(number.item(), error)

    def _home(self) -> torch.device:
        """Where the group's collectives run: where the mesh says, or the group."""
        if self._largest is not None:
            return torch.device(self._largest.device_type)
        return dist.distributed_c10d._get_pg_default_device(self.group)

    def _reduced(self, number: Tensor) -> Tensor:
        number = number.to(self._home())  # parameters that FSDP2 offloads are on the CPU, which NCCL cannot reduce
        dist.all_reduce(number, group=self.group)
        return number

    def _check(self, number: float, own: Exception | None) -> None:
        """Where the sum says that a rank may have failed, all ranks exchange their errors; those without one raise."""
        if number == FAILED or math.isnan(number):  # an infinite gradient elsewhere makes NaN of a failure
            texts: list[Any] = [None] * dist.get_world_size(self.group)
            dist.all_gather_object(texts, own and f"{type(own).__name__}: {own}", group=self.group)
            said = [
                f"rank {dist.get_global_rank(self.group, k)}: {text}"
                for k, text in enumerate(texts)
                if text is not None
            ]
            if said and own is None:
                raise RuntimeError("no rank has stepped, as a gradient does not fit on " + "; on ".join(said))


class GlobalNorms:
    """The `GlobalNorm` of an optimizer: made again where its parameters are laid out again, or its group changes."""

    def __init__(self) -> None:
        self._found: GlobalNorm | None = None
        self._layout = ""

    def find(self, manager: BucketManager, group: Any, made_with: Given) -> GlobalNorm | None:
        """How the gradients' norm is found where other ranks hold a part of them; None where none does.

        Args:
            manager: the optimizer's buckets.
            group: its ``grad_norm_group``.
            made_with: what it was made with.
        """
        if self._found is None or self._layout != manager.name or self._found.given is not group:
            self._found = GlobalNorm(manager.names(), group, made_with)
            self._layout = manager.name
        return self._found if self._found.group is not None else None


def _ranks(mesh: Any) -> tuple[int, ...]:
    return tuple(sorted(mesh.mesh.flatten().tolist()))


def partial_sums(
    launches: Sequence[Launch], ops: Mapping[Bucket, Operators], names: Names, norm: GlobalNorm | None = None
) -> Tensor | None:
    """float64 (k, 1024), on the device of the first launch: the squares of all gradients (`radam_fused.backends.ops`).

    With ``norm`` only those that this rank counts, and None where it counts none; also checks the dtypes of all.
    """
    found: list[Tensor] = []
    for together in [launches] if len(launches) == 1 else by_kind(launches):
        first = together[0]
        ours = ops[first.bucket]
        alone = len(together) == 1 and first.bucket.in_order
        if norm is None and alone and ours.pointer_norm is not None and first.pointer_table is not None:
            table = first.pointer_table if first.plan.merged is None else find_norm_table(first.bucket, first.plan)
            sums = None if table is None else table.grad_norm(ours.pointer_norm)
            if sums is not None:
                found.append(sums)
                continue
        try:
            with torch._C.DisableTorchFunctionSubclass():  # or a gradient's type would become that of the sums
                found += map(ours.grad_norm, lines(together, _counted_by(norm, names)))
        except Exception:
            for launch in together:
                check_launch(launch, names)  # a clearer error, where a tensor is at fault
            raise
    if len(found) <= 1:
        return found[0] if found else None
    device = found[0].device
    return torch.cat([sums.to(device, non_blocking=device.type != "cpu") for sums in found])


def _counted_by(norm: GlobalNorm | None, names: Names) -> Callable[[Launch, list[Tensor]], list[bool] | None]:
    """Says which gradients of a launch this rank counts, None for all; and checks them where other ranks wait."""

    def counts(launch: Launch, grads: list[Tensor]) -> list[bool] | None:
        if norm is None:
            return None
        if not {grad.dtype for grad in grads} <= set(gradient_dtypes(launch.bucket.dtype)):
            check_launch(launch, names)  # which names it: after the all-reduce it would be too late for the others
        return norm.counted(launch.bucket, launch.plan)

    return counts
