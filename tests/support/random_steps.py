"""What users do with gradients and steps, on both optimizers of a pair: rules for random sequences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from torch import Tensor, nn

from radam_fused import step_in_backward
from tests.support.random_pairs import LAYOUTS, MAX_NORM, Pair, flags, layouts, noise, picks, seeds, subsets


class Steps(Pair):
    """Gradients of all kinds, and all ways to step."""

    # Gradients.

    @rule(seed=seeds, missing=subsets)
    def backward(self, seed: int, missing: set[int]) -> None:
        for side in (0, 1):
            self.differentiate(side, seed, missing)

    @rule(index=picks, layout=layouts)
    def replace_gradient(self, index: int, layout: str) -> None:
        for p in self.pick(index):
            if p.grad is not None:
                p.grad = LAYOUTS[layout](p.grad)

    @rule(index=picks, seed=seeds, layout=layouts)
    def assign_gradient(self, index: int, seed: int, layout: str) -> None:
        for p in self.pick(index):
            p.grad = LAYOUTS[layout](noise(p.shape, seed))

    @rule(index=picks)
    def remove_gradient(self, index: int) -> None:
        for p in self.pick(index):
            p.grad = None

    @rule(set_to_none=flags)
    def zero_grad(self, set_to_none: bool) -> None:
        had = [p.grad is not None for p, _ in self.pairs]
        self.ours.zero_grad(set_to_none=set_to_none)
        for (p, q), had_one in zip(self.pairs, had, strict=True):
            if p.grad is None:
                assert not had_one or set_to_none
            else:
                assert self.flatten or not set_to_none
                assert not p.grad.any()
            q.grad = None if p.grad is None else torch.zeros_like(q)

    @rule()
    def model_zero_grad(self) -> None:
        for pair in self.pairs:
            for p in pair:
                p.grad = None

    # Steps.

    def clip_theirs(self) -> None:
        if self.clip:
            nn.utils.clip_grad_norm_([q for _, q in self.pairs], MAX_NORM)

    @rule()
    def step(self) -> None:
        before = self.gradients()
        self.ours.step()
        self.clip_theirs()
        self.theirs.step()
        self.finish(before)

    @rule(seed=seeds, missing=subsets, count=st.integers(1, 8))
    def train(self, seed: int, missing: set[int], count: int) -> None:
        """What users mostly do, so that runs get past the branch."""
        for t in range(count):
            self.backward(seed + t, missing)
            self.step()
            self.zero_grad(set_to_none=False)

    @rule(seed=seeds, missing=subsets)
    def step_with_closure(self, seed: int, missing: set[int]) -> None:
        before: list[Tensor | None] = []

        def ours() -> Tensor:
            loss = self.differentiate(0, seed, missing)
            before.extend(self.gradients())
            return loss

        def theirs() -> Tensor:
            loss = self.differentiate(1, seed, missing)
            self.clip_theirs()
            return loss

        losses = self.ours.step(ours), self.theirs.step(theirs)
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-4, abs=1e-3)
        self.finish(before)

    @rule()
    def step_with_hooks(self) -> None:
        """A pre-hook that halves the gradients, and a post-hook."""
        before: list[Tensor | None] = []
        order: list[str] = []

        @torch.no_grad()
        def scale_by_half(opt: torch.optim.Optimizer, *_: Any) -> None:
            order.append("pre")
            for p in (p for group in opt.param_groups for p in group["params"] if p.grad is not None):
                p.grad.mul_(0.5)
            if opt is self.ours:
                before.extend(self.gradients())

        for opt in (self.ours, self.theirs):
            handles = [
                opt.register_step_pre_hook(scale_by_half),
                opt.register_step_post_hook(lambda *_: order.append("post")),
            ]
            if opt is self.theirs:
                handles.append(opt.register_step_pre_hook(lambda *_: self.clip_theirs()))
            opt.step()
            for handle in handles:
                handle.remove()
        assert order == ["pre", "post"] * 2
        self.finish(before)

    @precondition(lambda self: not (self.flatten or self.offload or self.clip))
    @rule(seed=seeds, missing=subsets)
    def step_during_backward(self, seed: int, missing: set[int]) -> None:
        """Turned on for one iteration, which leaves no gradient behind."""
        with step_in_backward(self.ours):
            self.differentiate(0, seed, missing)
            self.ours.step()
        self.differentiate(1, seed, missing)
        self.theirs.step()
        for p, q in self.pairs:
            assert p.grad is None
            q.grad = None

    @precondition(Pair.has_gradients)
    @rule(power=st.integers(-3, 16), bad=st.sampled_from([None, math.inf, math.nan]), index=picks, unscale=flags)
    def step_with_scaler(self, power: int, bad: float | None, index: int, unscale: bool) -> None:
        for opt in (self.ours, self.theirs):
            params = [p for group in opt.param_groups for p in group["params"]]
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**power)
            scaler.scale(torch.zeros(()))
            for p in params:
                if p.grad is not None:
                    p.grad.mul_(2.0**power)
            victim = params[index % len(params)]
            if bad is not None and victim.grad is not None and victim.numel():
                victim.grad[(0,) * victim.dim()] = bad
            if unscale:
                scaler.unscale_(opt)
            if opt is self.ours:
                before = [None if g is None else g if unscale else g * 2.0**-power for g in self.gradients()]
                scaler.step(opt)
            else:
                handle = opt.register_step_pre_hook(lambda *_: self.clip_theirs())
                scaler.step(opt)
                handle.remove()
            scaler.update()
        self.finish(before)
        self.zero_grad(set_to_none=False)  # they are infinite at times
