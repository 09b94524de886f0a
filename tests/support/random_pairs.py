"""FusedRAdam and torch.optim.RAdam with equal parameters, as a state machine of hypothesis that compares them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
)
from torch import Tensor, nn

from radam_fused import FusedRAdam
from tests.support.helpers import same_bits

SHAPES = [(4, 3), (5,), (), (2, 3), (0,), (3, 1, 2)]
MAX_NORM = 0.5
NAMES = ("step", "exp_avg", "exp_avg_sq")

seeds = st.integers(0, 999)
picks = st.integers(0, len(SHAPES) - 1)
subsets = st.sets(picks, max_size=3)
rates = st.sampled_from([0.0, 0.01, 0.1])
betas = st.sampled_from([(0.9, 0.999), (0.8, 0.9), (0.0, 0.99), (0.9, 0.99999)])
decays = st.sampled_from([0.0, 0.1])
flags = st.booleans()


def noise(shape: torch.Size | tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda g: g.clone(memory_format=torch.contiguous_format),
    "transposed": lambda g: g.t().clone(memory_format=torch.contiguous_format).t() if g.dim() == 2 else g.clone(),
    "strided": lambda g: torch.stack([g, -g], -1)[..., 0],
    "misaligned": lambda g: torch.cat([torch.zeros(1), g.flatten()])[1:].view(g.shape),
}
layouts = st.sampled_from(sorted(LAYOUTS))


def close(ours: Tensor, theirs: Tensor) -> None:
    """Within 1e-5 of the largest value: float32 rounding, added up over the steps of a run."""
    if theirs.numel():
        bound = 1e-5 * max(theirs.detach().abs().max().item(), 0.1)
        error = (ours.detach() - theirs.detach()).abs().max().item()
        assert error <= bound, f"{error:.3g} > {bound:.3g}"


class Pair(RuleBasedStateMachine):
    """Both optimizers, their parameters side by side."""

    kind: type[FusedRAdam] = FusedRAdam

    @initialize(
        backend=st.sampled_from(["cpu", "cpu", "reference"]),
        flatten=flags,
        offload=flags,
        zero_grads=flags,
        capturable=flags,
        clip=flags,
        named=flags,
        frozen=subsets,
    )
    def start(
        self,
        backend: str,
        flatten: bool,
        offload: bool,
        zero_grads: bool,
        capturable: bool,
        clip: bool,
        named: bool,
        frozen: set[int],
    ) -> None:
        self.flatten, self.zero_grads = flatten, zero_grads
        self.offload = offload and backend == "cpu" and not flatten
        capturable = capturable and not self.offload
        self.clip = clip and backend == "cpu"  # the reference adds 1,024 x 1,024 lanes for the smallest gradient
        self.options: dict[str, Any] = {"backend": backend, "flatten": flatten, "zero_grads": zero_grads}
        if self.offload:
            self.options["offload"] = True
        if self.clip:
            self.options["max_grad_norm"] = MAX_NORM
        self.copies = 0
        self.saved: tuple[Any, Any] | None = None
        params = [nn.Parameter(noise(shape, i)) for i, shape in enumerate(SHAPES[:3])]
        for i in frozen & {0, 1, 2}:
            params[i].requires_grad_(False)
        theirs = copy.deepcopy(params)
        pair = [[(f"p{i}", p) for i, p in enumerate(side)] if named else side for side in (params, theirs)]
        self.ours = self.kind(pair[0], lr=0.1, capturable=capturable, **self.options)
        self.theirs = torch.optim.RAdam(pair[1], lr=0.1)
        self.named = named
        self.attach()

    # Both sides.

    @property
    def pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        sides = [[p for group in opt.param_groups for p in group["params"]] for opt in (self.ours, self.theirs)]
        return list(zip(*sides, strict=True))

    def pick(self, index: int) -> tuple[nn.Parameter, nn.Parameter]:
        return self.pairs[index % len(self.pairs)]

    def group(self, index: int) -> list[dict[str, Any]]:
        return [opt.param_groups[index % len(opt.param_groups)] for opt in (self.ours, self.theirs)]

    def attach(self) -> None:
        """Under flatten a new optimizer gives its parameters gradients of zero."""
        for p, q in self.pairs:
            if self.flatten and q.requires_grad and q.grad is None:
                assert p.grad is not None
                assert not p.grad.any()
                q.grad = torch.zeros_like(q)

    def has_gradients(self) -> bool:
        return any(p.grad is not None for p, _ in self.pairs)

    def differentiate(self, side: int, seed: int, missing: set[int]) -> Tensor:
        """A backward pass of a linear loss over all parameters but some and the frozen ones; it accumulates."""
        loss = torch.zeros((), requires_grad=True)
        for i, pair in enumerate(self.pairs):
            if i not in missing and pair[side].requires_grad:
                loss = loss + (pair[side] * noise(pair[side].shape, 1000 * i + seed)).sum()
        loss.backward()
        return loss.detach()

    def finish(self, before: list[Tensor | None]) -> None:
        """After a step: what it leaves in our gradients, which are then theirs as well."""
        for (p, q), grad in zip(self.pairs, before, strict=True):
            assert (p.grad is None) == (grad is None)
            if grad is not None:
                assert same_bits(p.grad, torch.zeros_like(grad) if self.zero_grads else grad)
                q.grad = p.grad.detach().clone()

    def gradients(self) -> list[Tensor | None]:
        return [None if p.grad is None else p.grad.detach().clone() for p, _ in self.pairs]

    # What always holds.

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "ours"):
            return
        for p, q in self.pairs:
            close(p, q)
            a, b = self.ours.state.get(p), self.theirs.state.get(q)
            if not b:  # a first step that was skipped leaves zeros here
                assert not a or not any(a[name].any() for name in NAMES)
                continue
            assert a is not None
            assert list(a) == list(b)
            assert a["step"] == b["step"]
            for name in NAMES[1:]:
                close(a[name], b[name])

    @invariant()
    def same_gradients(self) -> None:
        if not hasattr(self, "ours"):
            return
        for p, q in self.pairs:
            assert (p.grad is None) == (q.grad is None)
            if p.grad is not None:
                assert same_bits(p.grad, q.grad)
