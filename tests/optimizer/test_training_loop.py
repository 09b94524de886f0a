"""What surrounds a step, alone and in pairs, against torch.optim.RAdam doing the same in separate passes."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam
from radam_fused.backends import offload
from tests.support.training_steps import TOLERANCE, deviation, noise

pytestmark = pytest.mark.filterwarnings("ignore:grad and param do not obey the gradient layout")  # on purpose

STEPS = 12
"""Past the branch at step 6, with two more skipped by infinities."""
INFINITE = (2, 8)
SAVED = 5

FEATURES = {
    "capturable": "scalars computed by a scalars operator",
    "amp": "GradScaler, infinities planted in two steps",
    "unscale": "GradScaler and the user's own unscale_ before the step",
    "clip": "max_grad_norm",
    "zero_grads": "the step clears the gradients",
    "flatten": "flat buffers",
    "offload": "moments apart from the parameters, stepped in chunks",
    "tensor_lr": "a tensor, changed in place",
    "closure": "step(closure)",
    "hooks": "a pre-hook that halves the gradients, a post-hook that counts",
    "zeros": "zero_grad(set_to_none=False)",
    "freeze": "a parameter frozen in steps 3 to 5",
    "late": "a parameter without a gradient up to step 3",
    "absent": "in every third step another parameter is left out of the loss, or all but one",
    "layouts": "in every other step gradients in another layout",
    "groups": "a second group with hyperparameters of its own",
    "double": "a float64 parameter",
    "complex": "a complex parameter",
    "accumulate": "two backward passes a step",
    "checkpoint": "state_dict and load_state_dict into a fresh optimizer",
    "by_torch": "a checkpoint through torch.optim.RAdam and back",
    "toggle": "a checkpoint in which capturable is changed",
    "deepcopy": "parameters and optimizer copied",
    "load_model": "other values copied into the parameters",
}
CHANGING = {
    *("amp", "unscale", "clip", "tensor_lr", "hooks", "freeze", "late", "absent", "groups", "accumulate", "load_model")
}
"""Those that change what is trained; the others leave it as it was."""
REFUSED = [{"amp", "closure"}, {"unscale", "closure"}, {"amp", "complex"}, {"unscale", "complex"}]
"""Pairs that torch.amp.GradScaler has no way to do, with any optimizer."""
REFUSED += [{"flatten", "complex"}]
REFUSED += [{"offload", other} for other in ("flatten", "capturable", "toggle")]
PAIRS = [p for p in itertools.combinations(FEATURES, 2) if set(p) not in REFUSED]

MAX_NORM = 0.5


def relaid(grad: Tensor) -> Tensor:
    """The same values, transposed in memory or with gaps between them."""
    return grad.t().contiguous().t() if grad.dim() == 2 else torch.stack([grad, grad], -1)[..., 0]


class Loop:
    """A training loop with some of the features, around FusedRAdam or (``backend`` None) torch.optim.RAdam."""

    def __init__(self, backend: str | None, features: tuple[str, ...], steps: int = STEPS) -> None:
        self.ours, self.backend, self.features = backend is not None, backend, set(features)
        self.device = torch.device("cuda" if backend == "triton" and torch.cuda.is_available() else "cpu")
        dtypes = [torch.float32] * 4
        dtypes += [torch.float64] * ("double" in features) + [torch.complex64] * ("complex" in features)
        shapes = [(4, 3), (5,), (2, 3), (), (3, 2), (4,)][: len(dtypes)]
        self.params = [
            nn.Parameter(noise(s, i, d).to(self.device)) for i, (s, d) in enumerate(zip(shapes, dtypes, strict=True))
        ]
        self.norms: list[Tensor] = []
        self.stepped = 0
        self.scaler = torch.amp.GradScaler(
            self.device.type, init_scale=1024.0, growth_interval=3, enabled=bool({"amp", "unscale"} & self.features)
        )
        self.capturable = "capturable" in features
        self.opt = self.optimizer()
        self.to_none = not {"zeros", "zero_grads", "flatten"} & self.features
        if "flatten" in self.features:
            for p in self.params:
                p.grad = torch.zeros_like(p)
        for t in range(steps):
            self.step(t)
            if t == SAVED:
                self.interlude()

    def optimizer(self) -> torch.optim.Optimizer:
        has = self.features.__contains__
        groups: list[dict[str, Any]] = [{"params": self.params}]
        if has("groups"):
            own = {"lr": 0.01, "betas": (0.8, 0.99), "weight_decay": 0.1, "decoupled_weight_decay": True}
            groups = [{"params": self.params[::2]}, {"params": self.params[1::2], **own}]
        if has("tensor_lr"):
            for group in groups:
                group["lr"] = torch.tensor(0.05)
        if self.ours:
            opt: torch.optim.Optimizer = FusedRAdam(
                groups,
                lr=0.05,
                backend=self.backend,
                flatten=has("flatten"),
                offload=has("offload"),
                zero_grads=has("zero_grads"),
                capturable=self.capturable,
                max_grad_norm=MAX_NORM if has("clip") else None,
            )
        else:
            opt = torch.optim.RAdam(groups, lr=0.05)
        return self.hooked(opt)

    def hooked(self, opt: torch.optim.Optimizer) -> torch.optim.Optimizer:
        if "hooks" in self.features:
            opt.register_step_pre_hook(self.scale_by_half)
            opt.register_step_post_hook(self.count)
        if "clip" in self.features and not self.ours and "closure" not in self.features:
            opt.register_step_pre_hook(lambda *_: self.clip())  # after whatever else is done before the step
        return opt

    def scale_by_half(self, *_: Any) -> None:
        with torch.no_grad():
            for p in self.params:
                if p.grad is not None:
                    p.grad.mul_(0.5)

    def count(self, *_: Any) -> None:
        self.stepped += 1

    def clip(self) -> None:
        self.norms.append(nn.utils.clip_grad_norm_(self.params, MAX_NORM))

    def in_the_loss(self, t: int) -> list[int]:
        indices = list(range(len(self.params)))
        if "absent" in self.features and t % 3 == 2:
            indices = indices[:1] if t % 2 else [i for i in indices if i != 1 + t % 4]
        return [i for i in indices if self.params[i].requires_grad]

    def evaluate(self, t: int) -> Tensor:
        """The gradients of step t: those of a loss that is linear, so that they do not depend on how we got there."""
        if not (self.ours and "zero_grads" in self.features and t):
            self.opt.zero_grad(set_to_none=self.to_none)
        for part in range(1 + ("accumulate" in self.features)):
            loss = torch.zeros((), device=self.device)
            for i in self.in_the_loss(t):
                p = self.params[i]
                slope = noise(p.shape, 100 * t + 10 * part + i, p.dtype).to(self.device) * 10.0 ** (i % 3 - 1)
                product = torch.view_as_real(p) * torch.view_as_real(slope) if p.is_complex() else p * slope
                loss = loss + product.sum().to(loss.dtype)
            self.scaler.scale(loss).backward()
        if self.scaler.is_enabled() and t in INFINITE:
            self.params[0].grad.view(-1)[t % 3] = math.inf
        if "late" in self.features and t < 3:
            self.params[2].grad = None
        if "layouts" in self.features and t % 2:
            for p in self.params:
                if p.grad is not None:
                    p.grad = relaid(p.grad)
        return loss.detach()

    def step(self, t: int) -> None:
        if "tensor_lr" in self.features:
            for group in self.opt.param_groups:
                group["lr"].fill_(0.05 / (1 + t % 3))
        if "freeze" in self.features:
            self.params[1].requires_grad_(not 3 <= t <= 5)

        if "closure" in self.features:
            losses = []

            def closure() -> Tensor:
                losses.append(self.evaluate(t))
                if "clip" in self.features and not self.ours:
                    self.clip()
                return losses[-1]

            returned = self.opt.step(closure)
            assert len(losses) == 1
            assert returned is losses[0]
        else:
            self.evaluate(t)
            if "unscale" in self.features:
                self.scaler.unscale_(self.opt)
            self.scaler.step(self.opt)
            self.scaler.update()
        if self.ours and "clip" in self.features and not (self.scaler.is_enabled() and t in INFINITE):
            self.norms.append(self.opt.last_grad_norm)
        if self.ours and "zero_grads" in self.features:
            assert not any(p.grad.any() for p in self.params if p.grad is not None)

    def interlude(self) -> None:
        """What happens once, between two steps."""
        if "load_model" in self.features:
            with torch.no_grad():
                for i, p in enumerate(self.params):
                    p.copy_(noise(p.shape, 50 + i, p.dtype))
        if "deepcopy" in self.features:
            self.params, opt = copy.deepcopy((self.params, self.opt))
            self.opt = self.hooked(opt)
        state_dict = self.opt.state_dict()
        if "by_torch" in self.features:
            groups = [{"params": group["params"]} for group in self.opt.param_groups]
            theirs = torch.optim.RAdam(groups)
            theirs.load_state_dict(copy.deepcopy(state_dict))
            state_dict = theirs.state_dict()
        if "toggle" in self.features and self.ours:
            self.capturable = not self.capturable
            state_dict = copy.deepcopy(state_dict)
            for group in state_dict["param_groups"]:
                group["capturable"] = self.capturable
        if self.features & {"checkpoint", "by_torch", "toggle"}:
            self.opt = self.optimizer()
            self.opt.load_state_dict(state_dict)
            if self.ours:
                assert [g["capturable"] for g in self.opt.param_groups] == [self.capturable] * len(
                    self.opt.param_groups
                )


def worst(ours: Loop, theirs: Loop) -> float:
    """The largest deviation of parameters, moments and norms; infinite where a step count differs."""
    errors = [deviation(p, q) for p, q in zip(ours.params, theirs.params, strict=True)]
    if len(ours.norms) != len(theirs.norms):
        return math.inf
    errors += [deviation(a, b) for a, b in zip(ours.norms, theirs.norms, strict=True)]
    for p, q in zip(ours.params, theirs.params, strict=True):
        a, b = ours.opt.state.get(p, {}), theirs.opt.state.get(q, {})
        if a.get("step", 0) != b.get("step", 0):
            return math.inf
        # A mean of gradients may cancel where the gradients do not.
        errors += [0.1 * deviation(a[name], b[name]) for name in ("exp_avg", "exp_avg_sq") if b]
    return max(errors)


@functools.cache
def plain(features: tuple[str, ...], steps: int = STEPS) -> Loop:
    return Loop(None, features, steps)


ALONE = [(f,) for f in FEATURES]
ON_TRITON = [*ALONE, *itertools.combinations(("capturable", "amp", "clip", "zero_grads", "flatten"), 2)]
"""Interpreted on the CPU, a Triton kernel takes its time, as does the reference to add up squares."""
RUNS = [
    *(("cpu", features) for features in ALONE + PAIRS),
    *(("reference", features) for features in ALONE + [p for p in PAIRS if "clip" not in p]),
    *(("triton", features) for features in ON_TRITON),
]
RUNS = [(backend, features) for backend, features in RUNS if backend == "cpu" or "offload" not in features]
"""Offloaded moments are the cpu backend's."""


@pytest.mark.sampled(parts=True, ways=2)
@pytest.mark.parametrize(("backend", "features"), RUNS, ids=lambda v: v if isinstance(v, str) else "+".join(v))
def test_features(backend: str, features: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "SLOT_BYTES", 192)  # several chunks a step
    steps = STEPS if backend == "cpu" else 9
    assert worst(Loop(backend, features, steps), plain(features, steps)) < TOLERANCE


@pytest.mark.parametrize("feature", FEATURES)
def test_feature_is_noticed(feature: str) -> None:
    """The negative control: what a feature changes is seen, and the others leave everything as it was."""
    if feature in ("double", "complex"):
        assert len(plain((feature,)).params) == 5
        return
    theirs = () if feature not in ("flatten", "zero_grads") else ("zeros",)
    assert (worst(Loop("cpu", (feature,)), plain(theirs)) > 100 * TOLERANCE) == (feature in CHANGING)
