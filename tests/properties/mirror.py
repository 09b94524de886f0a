"""An optimizer of any backend and layout beside a plain one of ``reference``, as a state machine of hypothesis.

The mirror takes the same steps with the same gradients. What should change nothing (saving, loading, copying, moving,
another backend, a step that failed) is done to ours alone, and parameters, gradients, moments and counts must have the
mirror's bits.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor, nn

from radam_fused import FusedRAdam
from tests.properties.models import STATE_OPTIONS, Spec, flags, gradient, hyperparameters, kinds, seeds, specs
from tests.support.helpers import same_bits

done: Counter[str] = Counter()
"""What was tried, over all examples of the process."""

picks = st.integers(0, 7)
backends = st.sampled_from(["cpu"] * 6 + ["reference"] * 2 + ["triton"])


def group_of(opt: FusedRAdam, index: int) -> dict[str, Any]:
    return opt.param_groups[index % len(opt.param_groups)]


def params_of(opt: FusedRAdam) -> list[nn.Parameter]:
    return [p for group in opt.param_groups for p in group["params"]]


class Mirror(RuleBasedStateMachine):
    """Both optimizers and their parameters, and the ordinary steps."""

    kind: type[FusedRAdam] = FusedRAdam

    @initialize(data=st.data(), clip=st.sampled_from([False] * 7 + [True]), zero_grads=flags, capturable=flags)
    def start(self, data: Any, clip: bool, zero_grads: bool, capturable: bool) -> None:
        done["examples"] += 1
        self.compiles = data.draw(st.sampled_from([False] * 29 + [True]))
        self.dtypes, stored = data.draw(st.sampled_from(STATE_OPTIONS))
        self.stored = {**stored, "zero_grads": zero_grads, **({"max_grad_norm": 0.5} if clip else {})}
        groups = data.draw(st.lists(st.lists(specs(self.dtypes), min_size=1, max_size=4), min_size=1, max_size=3))
        options = [{**data.draw(hyperparameters), "capturable": capturable} for _ in groups]
        self.mirror = self.optimizer(self.groups(groups, options), {"backend": "reference"})
        self.ours = self.optimizer(self.groups(groups, options), self.draw_place(data))
        self.attach()

    # Both sides.

    @staticmethod
    def groups(groups: list[list[Spec]], options: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"params": [spec.make() for spec in group], **own} for group, own in zip(groups, options, strict=True)]

    def draw_place(self, data: Any) -> dict[str, Any]:
        """Where an optimizer of ours computes: a backend, flat buffers or none, offload or not."""
        backend, flatten = data.draw(backends), data.draw(flags)
        offload = backend == "cpu" and not flatten and self.stored.get("state_dtype") != torch.int8
        offload = offload and data.draw(st.sampled_from([False, False, True]))
        return {"backend": backend, "flatten": flatten, **({"offload": True} if offload else {})}

    def optimizer(self, groups: list[dict[str, Any]], place: dict[str, Any]) -> FusedRAdam:
        if place.get("offload"):  # it refuses capturable, which changes no bit on the CPU
            groups = [{**group, "capturable": False} for group in groups]
        if not hasattr(self, "mirror"):
            return FusedRAdam(groups, **self.stored, **place)
        self.place = place
        return self.kind(groups, **self.stored, **place)

    @property
    def pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return list(zip(params_of(self.ours), params_of(self.mirror), strict=True))

    def pick(self, index: int) -> tuple[nn.Parameter, nn.Parameter]:
        return self.pairs[index % len(self.pairs)]

    @property
    def flatten(self) -> bool:
        return bool(self.place["flatten"])

    def attach(self) -> None:
        """The mirror's gradients become what ours are: under flatten they are allocated, with zeros."""
        for p, q in self.pairs:
            q.grad = None if p.grad is None else p.grad.detach().clone()

    def count(self, opt: FusedRAdam, p: Tensor) -> float:
        entry = opt.state.get(p)
        return float(entry["step"]) if entry else 0.0

    # Steps.

    def give(self, seed: int, kind: str, missing: set[int]) -> None:
        for i, (p, q) in enumerate(self.pairs):
            if i in missing or not p.requires_grad:
                p.grad = q.grad = None
                continue
            if kind == "shared" and not self.stored["zero_grads"] and not self.flatten:
                first = next((k for k, r in self.pairs[:i] if r.grad is not None and _alike(k, p)), None)
                if first is not None:
                    p.grad, q.grad = first.grad, first.grad.clone()
                    continue
            p.grad, q.grad = gradient(p, seed + i, kind), gradient(q, seed + i, kind)

    @rule(seed=seeds, kind=kinds, missing=st.sets(picks, max_size=3), count=st.integers(1, 7))
    def train(self, seed: int, kind: str, missing: set[int], count: int) -> None:
        """So many steps that most runs get past the branch."""
        for t in range(count):
            self.give(seed + 100 * t, kind if t == 0 else "normal", missing)
            self.ours.step()
            self.mirror.step()
            done["steps"] += 1

    @rule()
    def step_again(self) -> None:
        """With the gradients that are there, the buffers' zeros among them."""
        self.ours.step()
        self.mirror.step()
        done["steps"] += 1

    @rule(set_to_none=flags)
    def zero_grad(self, set_to_none: bool) -> None:
        self.ours.zero_grad(set_to_none=set_to_none)
        self.attach()

    # What always holds.

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "ours"):
            return
        for i, (p, q) in enumerate(self.pairs):
            assert same_bits(p, q), f"parameter {i}"
            assert (p.grad is None) == (q.grad is None), f"gradient {i}"
            assert p.grad is None or same_bits(p.grad, q.grad), f"gradient {i}"
            ours, theirs = self.ours.state.get(p), self.mirror.state.get(q)
            if not theirs:  # under flatten there are entries from the start
                assert not ours or not ours["step"].any()
                continue
            assert ours is not None
            assert list(ours) == list(theirs), f"state {i}"
            for name, value in theirs.items():
                assert same_bits(ours[name].cpu(), value.cpu()), f"state {i}: {name}"


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype
