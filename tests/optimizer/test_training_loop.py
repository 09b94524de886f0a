"""What surrounds a step, alone and in pairs, against torch.optim.RAdam doing the same in separate passes."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam, offload
from tests.support.helpers import same_bits

pytestmark = pytest.mark.filterwarnings("ignore:grad and param do not obey the gradient layout")  # on purpose

STEPS = 12
"""Past the branch at step 6, with two more skipped by infinities."""
INFINITE = (2, 8)
SAVED = 5
TOLERANCE = 1e-6
"""The largest deviation of a parameter, relative to its largest value; ten times as much of a moment."""

FEATURES = {
    "capturable": "rows made by a rows operator",
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


def noise(shape: torch.Size | tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.complex128 if dtype.is_complex else torch.float64).to(
        dtype
    )


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
            opt.register_step_pre_hook(self.halve)
            opt.register_step_post_hook(self.count)
        if "clip" in self.features and not self.ours and "closure" not in self.features:
            opt.register_step_pre_hook(lambda *_: self.clip())  # after whatever else is done before the step
        return opt

    def halve(self, *_: Any) -> None:
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


def deviation(a: Tensor, b: Tensor) -> float:
    """Relative to the largest value."""
    a, b = a.detach().cpu(), b.detach().cpu()
    error = ((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item()
    return error if error == error else math.inf


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


# Each feature's own promises, bit for bit where nothing is to be rounded differently.

both_ways = pytest.mark.parametrize("flatten", [False, True], ids=["apart", "flatten"])
native = pytest.mark.parametrize("name", ["cpu", "reference"])


def small(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(noise(shape, i, dtype)) for i, shape in enumerate([(4, 3), (5,), ()])]


def give(params: list[nn.Parameter], t: int, factor: float = 1.0) -> None:
    for i, p in enumerate(params):
        grad = noise(p.shape, 10 * t + i, p.dtype) * factor
        if p.grad is None:
            p.grad = grad
        else:
            p.grad.copy_(grad)


def train(opt: torch.optim.Optimizer, steps: range) -> None:
    params = [p for group in opt.param_groups for p in group["params"]]
    for t in steps:
        give(params, t)
        opt.step()


def contents(opt: torch.optim.Optimizer) -> list[Tensor]:
    """Copies of all parameters, moments and step counts; zeros where there is no state yet."""
    result = []
    for p in (p for group in opt.param_groups for p in group["params"]):
        state = opt.state.get(p) or {}
        zero = torch.zeros(p.shape, dtype=torch.promote_types(p.dtype, torch.float32))
        result += [p, state.get("step", torch.zeros(())), state.get("exp_avg", zero), state.get("exp_avg_sq", zero)]
    return [tensor.detach().clone() for tensor in result]


def all_same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(same_bits(x, y) for x, y in zip(a, b, strict=True))


def scaler_of(scale: float = 1024.0) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)


class Amp:
    """Steps through a GradScaler whose scale is a power of 2, so that it rounds nothing."""

    def __init__(self, opt: torch.optim.Optimizer, scale: float = 1024.0) -> None:
        self.opt, self.scaler = opt, scaler_of(scale)
        self.params = [p for group in opt.param_groups for p in group["params"]]

    def backward(self, t: int) -> None:
        self.scaler.scale(torch.zeros(()))  # as any loss would be
        give(self.params, t, self.scaler.get_scale())

    def step(self) -> None:
        self.scaler.step(self.opt)
        self.scaler.update()


@pytest.mark.parametrize("clip", [None, 0.5], ids=["", "clip"])
@both_ways
@native
def test_scaled_training_has_the_bits_of_unscaled(name: str, flatten: bool, clip: float | None) -> None:
    opts = [FusedRAdam(small(), lr=0.1, backend=name, flatten=flatten, max_grad_norm=clip) for _ in range(2)]
    amp = Amp(opts[0])
    steps = range(8 if name == "cpu" or clip is None else 2)
    for t in steps:
        amp.backward(t)
        amp.step()
    train(opts[1], steps)
    assert all_same(contents(opts[0]), contents(opts[1]))
    if clip is not None:
        assert same_bits(opts[0].last_grad_norm, opts[1].last_grad_norm)


@pytest.mark.parametrize("zero_grads", [False, True], ids=["keep", "zero_grads"])
@both_ways
@native
def test_gradients_are_left_unscaled(name: str, flatten: bool, zero_grads: bool) -> None:
    opt = FusedRAdam(small(), backend=name, flatten=flatten, zero_grads=zero_grads)
    amp = Amp(opt)
    for t in range(3):
        amp.backward(t)
        before = [p.grad.clone() for p in amp.params]
        amp.step()
        after = [torch.zeros_like(g) if zero_grads else g / 1024.0 for g in before]
        assert all_same([p.grad for p in amp.params], after)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan], ids=["inf", "-inf", "nan"])
@pytest.mark.parametrize("when", [0, 3, 7], ids=lambda t: f"after_{t}")
@pytest.mark.parametrize(
    "options", [{}, {"zero_grads": True}, {"capturable": True}, {"max_grad_norm": 0.5}], ids="+".join
)
@both_ways
def test_skipped_step_leaves_all_but_gradients_bit_for_bit(flatten: bool, options: dict, when: int, bad: float) -> None:
    """Which it unscales, as torch.optim.RAdam leaves them; the next one goes on where the last one taken had left."""
    opt, unskipped = (FusedRAdam(small(), lr=0.1, flatten=flatten, weight_decay=0.1, **options) for _ in range(2))
    amp = Amp(opt)
    for t in range(when):
        amp.backward(t)
        amp.step()
    before = contents(opt)
    amp.backward(99)
    amp.params[1].grad[2] = bad
    grads = [p.grad.clone() for p in amp.params]
    amp.step()
    assert amp.scaler.get_scale() == 512.0
    assert all_same(contents(opt), before)
    if options.get("zero_grads"):
        assert not any(p.grad.any() for p in amp.params)
    else:
        assert all_same([p.grad for p in amp.params], [grad / 1024.0 for grad in grads])
    for t in range(when, when + 4):
        amp.backward(t)
        amp.step()
    train(unskipped, range(when + 4))
    assert all_same(contents(opt), contents(unskipped))


@native
def test_skipped_first_step_on_the_reference_too(name: str) -> None:
    amp = Amp(opt := FusedRAdam(small(), backend=name))
    before = contents(opt)
    amp.backward(0)
    amp.params[0].grad[0, 0] = math.inf
    amp.step()
    assert all_same(contents(opt), before)


def test_step_that_is_not_skipped_is_noticed() -> None:
    """The negative control of the tests above: the same infinity without a scaler."""
    opt = FusedRAdam(small())
    before = contents(opt)
    give(opt.param_groups[0]["params"], 0)
    opt.param_groups[0]["params"][0].grad[0, 0] = math.inf
    opt.step()
    assert not all_same(contents(opt), before)


@pytest.mark.parametrize("infinite", [False, True], ids=["finite", "infinite"])
@both_ways
def test_unscale_is_not_done_twice(flatten: bool, infinite: bool) -> None:
    """After the user's own unscale_, and clipping of what it left, the step takes gradients as they are."""
    opts = FusedRAdam(small(), lr=0.1, flatten=flatten), torch.optim.RAdam(small(), lr=0.1)
    for t in range(9):
        amps = [Amp(opt) for opt in opts]
        for amp in amps:
            amp.backward(t)
            if infinite and t == 4:
                amp.params[2].grad.fill_(math.inf)
            amp.scaler.unscale_(amp.opt)
            nn.utils.clip_grad_norm_(amp.params, 0.7)
            amp.step()
    assert [int(s["step"]) for s in opts[0].state.values()] == [9 - infinite] * 3
    for a, b in zip(contents(opts[0]), contents(opts[1]), strict=True):
        assert deviation(a, b) < TOLERANCE if b.any() else not a.any()


def test_one_scaler_for_two_optimizers() -> None:
    """Only the one that met an infinity skips its step, whichever group or dtype it lies in."""
    first = FusedRAdam(small() + small(torch.float64), lr=0.1)
    second = FusedRAdam(small(), lr=0.1)
    scaler = scaler_of()
    scaler.scale(torch.zeros(()))
    for opt in (first, second):
        give([p for g in opt.param_groups for p in g["params"]], 0, 1024.0)
    first.param_groups[0]["params"][5].grad.fill_(math.inf)
    before = contents(first), contents(second)
    for opt in (first, second):
        scaler.step(opt)
    scaler.update()
    assert scaler.get_scale() == 512.0
    assert all_same(contents(first), before[0])
    assert not all_same(contents(second), before[1])


def test_steps_with_and_without_a_scaler_take_turns() -> None:
    opts = [FusedRAdam(small(), lr=0.1) for _ in range(2)]
    amp = Amp(opts[0])
    for t in range(8):
        if t % 3:
            train(opts[0], range(t, t + 1))
        else:
            amp.backward(t)
            amp.step()
    train(opts[1], range(8))
    assert all_same(contents(opts[0]), contents(opts[1]))


def test_gradient_left_out_of_the_first_scaled_step() -> None:
    """Until then the host counts; from then on a rows operator, each parameter's steps by themselves."""
    opts = FusedRAdam(small(), lr=0.1), torch.optim.RAdam(small(), lr=0.1)
    for opt in opts:
        train(opt, range(4))
        amp = Amp(opt)
        for t in range(4, 12):
            amp.backward(t)
            if t == 4:
                amp.params[1].grad = None
            amp.step()
    assert [int(s["step"]) for s in opts[0].state.values()] == [12, 11, 12]
    assert all(deviation(a, b) < TOLERANCE for a, b in zip(contents(opts[0]), contents(opts[1]), strict=True))


# max_grad_norm.


@both_ways
def test_clipping_leaves_the_gradients(flatten: bool) -> None:
    opt = FusedRAdam(small(), flatten=flatten, max_grad_norm=0.1)
    give(params := opt.param_groups[0]["params"], 0)
    before = [p.grad.clone() for p in params]
    assert opt.last_grad_norm is None
    opt.step()
    assert all_same([p.grad for p in params], before)
    norm = torch.nn.utils.get_total_norm([g.double() for g in before])
    assert opt.last_grad_norm.item() == pytest.approx(norm.item(), rel=1e-14)
    assert opt.last_grad_norm.dtype == torch.float64


@pytest.mark.parametrize("bound", [math.inf, 1e9], ids=["inf", "far"])
@both_ways
@native
def test_norm_below_the_bound_changes_no_bit(name: str, flatten: bool, bound: float) -> None:
    opts = [FusedRAdam(small(), lr=0.1, backend=name, flatten=flatten, max_grad_norm=b) for b in (bound, None)]
    for opt in opts:
        train(opt, range(8 if name == "cpu" else 2))
    assert all_same(contents(opts[0]), contents(opts[1]))
    assert opts[0].last_grad_norm > 1
    assert opts[1].last_grad_norm is None


@pytest.mark.parametrize("bound", [1e-9, 0.3, math.inf], ids=lambda b: f"to_{b:g}")
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan], ids=["inf", "-inf", "nan"])
@both_ways
@native
def test_infinite_gradients_as_torch_clips_them(name: str, flatten: bool, bad: float, bound: float) -> None:
    """An infinite norm makes finite gradients 0 and infinite ones NaN; a NaN one makes all of them NaN."""
    ours, theirs = small(), small()
    opts = FusedRAdam(ours, backend=name, flatten=flatten, max_grad_norm=bound), torch.optim.RAdam(theirs)
    for params in (ours, theirs):
        give(params, 0)
        params[0].grad[1, 1] = bad
    norm = nn.utils.clip_grad_norm_(theirs, bound)
    for opt in opts:
        opt.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7, equal_nan=True)
    torch.testing.assert_close(opts[0].last_grad_norm, norm.double(), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@native
def test_norm_over_all_dtypes(name: str, dtype: torch.dtype) -> None:
    """In float64, whatever the dtypes: also where torch's own float16 norm would overflow."""
    params = [*small(), *small(dtype), *small(torch.float64)]
    opt = FusedRAdam(params, backend=name, max_grad_norm=1.0)
    give(params, 0)
    params[3].grad.fill_(30_000.0)
    params[1].grad = None
    opt.step()
    squares = sum((p.grad.double() ** 2).sum() for p in params if p.grad is not None)
    assert opt.last_grad_norm.item() == pytest.approx(math.sqrt(squares), rel=1e-14)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_copies_keep_the_options(copier: Callable) -> None:
    opt = FusedRAdam(small(), lr=0.1, max_grad_norm=0.3, zero_grads=True, capturable=True)
    train(opt, range(3))
    copied = copier(opt)
    for each in (opt, copied):
        train(each, range(3, 9))
    assert all_same(contents(opt), contents(copied))
    assert same_bits(opt.last_grad_norm, copied.last_grad_norm)
    assert not any(p.grad.any() for p in copied.param_groups[0]["params"])


# zero_grads.


@both_ways
@native
def test_cleared_gradients_stay_where_they_are(name: str, flatten: bool) -> None:
    params = small()
    opt = FusedRAdam(params, backend=name, flatten=flatten, zero_grads=True)
    train(opt, range(1))
    addresses = [p.grad.data_ptr() for p in params]
    train(opt, range(1, 4))
    assert [p.grad.data_ptr() for p in params] == addresses
    assert not any(p.grad.any() for p in params)


def test_cleared_gradient_of_a_saved_graph_is_noticed() -> None:
    """Writing gradients counts as writing: autograd refuses a graph that has saved one."""
    (p,) = small()[:1]
    opt = FusedRAdam([p], zero_grads=True)
    give([p], 0)
    penalty = p.grad.requires_grad_().square().sum()
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        penalty.backward()


LAZY: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "conjugate": lambda: (noise((5,), 1, torch.complex64).conj(), noise((5,), 1, torch.complex64).conj_physical()),
    "negative": lambda: (noise((5,), 1, torch.complex64).conj().imag, -noise((5,), 1, torch.complex64).imag),
    "zero": lambda: (torch._efficientzerotensor((5,)), torch.zeros(5)),
}


@pytest.mark.parametrize("options", [{}, {"zero_grads": True}, {"max_grad_norm": 0.3}, {"flatten": True}], ids="+".join)
@pytest.mark.parametrize("kind", LAZY)
@native
def test_lazy_gradient(name: str, kind: str, options: dict) -> None:
    """Views that torch negates or conjugates as it reads, which autograd.grad returns at times."""
    lazy, plain_one = LAZY[kind]()
    assert lazy.is_conj() or lazy.is_neg() or lazy._is_zerotensor()
    if lazy.is_complex() and options.get("flatten"):
        with pytest.raises(ValueError, match="must be real"):
            FusedRAdam([nn.Parameter(torch.ones_like(plain_one))], flatten=True)
        return
    opts = []
    for grad in (lazy, plain_one):
        params = [nn.Parameter(torch.ones_like(plain_one)), nn.Parameter(torch.ones_like(plain_one))]
        opts.append(FusedRAdam(params, lr=0.1, backend=name, **options))
        params[0].grad, params[1].grad = grad, plain_one.clone()
        opts[-1].step()
        if options.get("zero_grads"):
            assert not params[0].grad.any()
    pairs = zip(contents(opts[0]), contents(opts[1]), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", ["conjugate", "negative"])
def test_lazy_parameter_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"param_groups\[0\]\['params'\]\[0\] is a lazy {kind}"):
        FusedRAdam([nn.Parameter(LAZY[kind]()[0])])


# Checkpoints, between capturable and not, ours and torch's.


@pytest.mark.parametrize("after", [False, True], ids=["to_eager", "to_capturable"])
@pytest.mark.parametrize("before", [False, True], ids=["eager", "capturable"])
@both_ways
@native
def test_checkpoint_goes_on_with_the_same_bits(name: str, flatten: bool, before: bool, after: bool) -> None:
    make = functools.partial(FusedRAdam, lr=0.1, backend=name, flatten=flatten)
    opt, whole = make(small(), capturable=before), make(small())
    train(whole, range(9))
    train(opt, range(5))
    state_dict = copy.deepcopy(opt.state_dict())
    assert all(
        entry["step"].dtype == torch.float32 and entry["step"].shape == () for entry in state_dict["state"].values()
    )
    params = [nn.Parameter(p.detach().clone()) for p in opt.param_groups[0]["params"]]
    state_dict["param_groups"][0]["capturable"] = after
    resumed = make(params)
    resumed.load_state_dict(state_dict)
    train(resumed, range(5, 9))
    assert resumed.param_groups[0]["capturable"] == after
    assert all_same(contents(resumed), contents(whole))


@pytest.mark.parametrize("capturable", [False, True], ids=["eager", "capturable"])
def test_torch_goes_on_from_our_checkpoint(capturable: bool) -> None:
    opt, whole = FusedRAdam(small(), lr=0.1, capturable=capturable), torch.optim.RAdam(small(), lr=0.1)
    train(opt, range(5))
    train(whole, range(9))
    theirs = torch.optim.RAdam([nn.Parameter(p.detach().clone()) for p in opt.param_groups[0]["params"]])
    theirs.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert theirs.param_groups[0]["capturable"] == capturable
    theirs.param_groups[0]["capturable"] = False  # torch refuses it on the CPU
    train(theirs, range(5, 9))
    assert all(deviation(a, b) < 10 * TOLERANCE for a, b in zip(contents(theirs), contents(whole), strict=True))


def test_checkpoint_after_a_skipped_first_step() -> None:
    """A count of 0 loads, here and in torch."""
    amp = Amp(opt := FusedRAdam(small(), lr=0.1))
    amp.backward(0)
    amp.params[0].grad.fill_(math.inf)
    amp.step()
    for resumed in (FusedRAdam(small(), lr=0.1), torch.optim.RAdam(small(), lr=0.1)):
        resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
        fresh = torch.optim.RAdam(small(), lr=0.1)
        for each in (resumed, fresh):
            train(each, range(8))
        assert all(deviation(a, b) < 10 * TOLERANCE for a, b in zip(contents(resumed), contents(fresh), strict=True))


# Models that change under the optimizer.

AROUND: dict[str, dict[str, Any]] = {
    "plain": {},
    "capturable": {"capturable": True},
    "clip": {"max_grad_norm": 1.0},
    "zero_grads": {"zero_grads": True},
}


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 7, bias=False))
    net[2].weight = net[0].weight  # tied
    return net


def backward(net: nn.Module, t: int) -> None:
    net(torch.arange(t, t + 5) % 7).square().mean().backward()


@pytest.mark.parametrize("options", AROUND.values(), ids=AROUND)
@both_ways
def test_tied_model_that_loads_another_state(flatten: bool, options: dict) -> None:
    nets = model(), model()
    opts = (
        FusedRAdam(nets[0].parameters(), lr=0.01, flatten=flatten, **options),
        torch.optim.RAdam(nets[1].parameters(), lr=0.01),
    )
    start = copy.deepcopy(nets[0].state_dict())
    for t in range(12):
        if t == 7:
            for net in nets:
                net.load_state_dict(start)
        for net, opt in zip(nets, opts, strict=True):
            opt.zero_grad()
            backward(net, t)
            if options.get("max_grad_norm") and opt is opts[1]:
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            opt.step()
    assert nets[0][2].weight is nets[0][0].weight
    assert len(opts[0].state) == 3
    assert all(
        deviation(p, q) < 10 * TOLERANCE for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True)
    )


@pytest.mark.parametrize("options", AROUND.values(), ids=AROUND)
@native
def test_model_moved_to_bfloat16_between_steps(name: str, options: dict) -> None:
    """Moments and counts stay; the steps are those of bfloat16 parameters that start with this state."""
    net = nn.Linear(4, 3)
    opt = FusedRAdam(net.parameters(), lr=0.1, backend=name, **options)
    train(opt, range(4))
    state_dict = copy.deepcopy(opt.state_dict())
    net.bfloat16()
    twin = [nn.Parameter(p.detach().clone()) for p in net.parameters()]
    other = FusedRAdam(twin, lr=0.1, backend=name, **options)
    other.load_state_dict(state_dict)
    for each in (opt, other):
        for p in each.param_groups[0]["params"]:
            p.grad = None
        train(each, range(4, 9))
    assert all_same(contents(opt), contents(other))
    assert [int(s["step"]) for s in opt.state.values()] == [9, 9]


@pytest.mark.parametrize("options", AROUND.values(), ids=AROUND)
@native
def test_model_moved_to_float64_between_steps_is_an_error(name: str, options: dict) -> None:
    net = nn.Linear(4, 3)
    opt = FusedRAdam(net.named_parameters(), backend=name, **options)
    train(opt, range(4))
    net.double()
    for p in net.parameters():
        p.grad = None
    give(list(net.parameters()), 4)
    before = contents(opt)
    with pytest.raises(TypeError, match=r"parameter 'weight' is now torch.float64: its state was made for"):
        opt.step()
    assert all_same(contents(opt), before)


def test_model_moved_in_part_is_an_error_with_a_way_out() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    opt = FusedRAdam(net.parameters())
    train(opt, range(4))
    net[0].bfloat16()
    net.zero_grad()
    give(list(net.parameters()), 4)
    before = contents(opt)
    with pytest.raises(TypeError, match=r"\[2\] is now torch.float32 and .*\[0\] torch.bfloat16: .*load_state_dict"):
        opt.step()
    assert all_same(contents(opt), before)
    opt.load_state_dict(opt.state_dict())
    assert all_same(contents(opt), before)
    opt.step()
    assert [int(s["step"]) for s in opt.state.values()] == [5] * 4


@pytest.mark.parametrize("options", AROUND.values(), ids=AROUND)
def test_replaced_storage_of_a_flat_parameter_is_an_error(options: dict) -> None:
    """Before anything is written, gradients and counts included."""
    params = small()
    opt = FusedRAdam(params, flatten=True, **options)
    train(opt, range(3))
    params[1].data = params[1].data.clone()
    give(params, 3)
    before, grads = contents(opt), [p.grad.clone() for p in params]
    with pytest.raises(RuntimeError, match=r"flatten=True: the storage of param_groups\[0\]\['params'\]\[1\] has been"):
        opt.step()
    assert all_same(contents(opt), before)
    assert all_same([p.grad for p in params], grads)


@pytest.mark.parametrize("options", AROUND.values(), ids=AROUND)
@native
def test_step_that_fails_counts_nothing(name: str, options: dict) -> None:
    """A gradient of another shape, in the last parameter; then it fits again."""
    opt, whole = (FusedRAdam(small(), lr=0.1, backend=name, **options) for _ in range(2))
    train(opt, range(3))
    params = opt.param_groups[0]["params"]
    give(params, 3)
    params[1].data = params[1].data[:4].clone()
    params[1].grad = noise((4,), 1)
    kept, before = whole.param_groups[0]["params"][1], [t for i, t in enumerate(contents(opt)) if i // 4 != 1]
    with pytest.raises(ValueError, match=r"\[1\] is now \(4,\)"):
        opt.step()
    assert all_same([t for i, t in enumerate(contents(opt)) if i // 4 != 1], before)
    train(whole, range(3))
    params[1].data = kept.detach().clone()
    params[1].grad = None
    for each in (opt, whole):
        train(each, range(3, 9))
    assert all_same(contents(opt), contents(whole))


@pytest.mark.parametrize("options", AROUND.values(), ids=AROUND)
def test_memory_format_changed_between_steps(options: dict) -> None:
    """The launch finds other strides, the moments follow, and the step counts once."""
    shape = (4, 6, 5, 7)
    trained = []
    for change in (False, True):
        p = nn.Parameter(noise(shape, 0))
        opt = FusedRAdam([p], lr=0.01, **{**options, **({"max_grad_norm": 1e9} if "max_grad_norm" in options else {})})
        for t in range(9):
            if t == 6 and change:
                p.data = p.data.to(memory_format=torch.channels_last)
                p.grad = None
            give([p], t)
            opt.step()
        assert int(opt.state[p]["step"]) == 9
        trained.append(contents(opt))
    assert all_same(*trained)


EDITS: dict[str, Callable[[torch.optim.Optimizer, nn.Parameter], Any]] = {
    "entry_dropped": lambda opt, p: opt.state.pop(p),
    "step_assigned": lambda opt, p: opt.state[p].update(step=torch.tensor(3.0)),
    "moment_assigned": lambda opt, p: opt.state[p].update(exp_avg_sq=torch.ones_like(p)),
    "nothing": lambda opt, p: None,
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("options", AROUND.values(), ids=AROUND)
@both_ways
def test_state_edited_before_a_group_is_added(flatten: bool, options: dict, edit: Callable) -> None:
    """Both before the next step, which is to see both."""
    if "max_grad_norm" in options:
        options = {"max_grad_norm": math.inf}
    opts = FusedRAdam(small(), lr=0.1, flatten=flatten, **options), torch.optim.RAdam(small(), lr=0.1)
    for opt in opts:
        train(opt, range(8))
        edit(opt, opt.param_groups[0]["params"][0])
        opt.add_param_group({"params": [nn.Parameter(torch.ones(3))], "lr": 0.01})
        train(opt, range(8, 12))
    assert all(deviation(a, b) < 10 * TOLERANCE for a, b in zip(contents(opts[0]), contents(opts[1]), strict=True))
