"""The step against the truth: float64 with exact scalars, by the textbook's lines, over many steps of random gradients.

Rounding errors of one step average out over steps and elements; what stays is what a line does wrong in every step.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam
from radam_fused.backends.ops import OPERATORS
from radam_fused.backends.triton import step as triton
from radam_fused.numerics.layout import layout_hash
from radam_fused.numerics.quantization import join, low_bits, to_parameter
from radam_fused.numerics.scalars import compute_scalars
from radam_fused.options import GROUP_DEFAULTS
from tests.support.cuda_host import Geometry, host_step
from tests.support.helpers import same_bits

Step = Callable[..., None]
BETA1, EPS = 0.9, 1e-8
LENGTH, STEPS = 2**18, 16
T = 1000
"""The step to begin at, with moments as they are by then."""
STEPPERS = ("cpu", "reference", "triton", "cuda_on_the_host")
DECAYS = (2e-8, 3e-8, 1e-7, 1e-6, 1e-4)


@pytest.fixture(params=STEPPERS)
def stepper(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Step:
    """A backend's step over flat buffers; CUDA's is its kernels' body, run on the host."""
    monkeypatch.setattr(triton, "INTERPRETED_TILE", 2**17)
    if request.param == "cuda_on_the_host":
        return host_step(request.getfixturevalue("host_kernels"), Geometry(blocks=3))
    return OPERATORS[request.param].step


class Run:
    """Parameters in the upper half of a binade, where rounding is finest, and moments in the middle of a training."""

    def __init__(self, decay: float, lr: float = 1e-6, beta2: float = 0.999, length: int = LENGTH) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.p = (1.5 + 0.5 * torch.rand(length, generator=self.generator)) * 2.0**-6
        self.m = 0.2 * torch.randn(length, generator=self.generator)
        self.v = 1.0 + torch.rand(length, generator=self.generator)
        self.decay, self.lr, self.beta2 = decay, lr, beta2
        self.group: dict[str, Any] = {
            **GROUP_DEFAULTS,
            **{"lr": lr, "betas": (BETA1, beta2), "eps": EPS, "weight_decay": decay / lr, "rectification": "none"},
            "decoupled_weight_decay": True,
        }
        self.layout = torch.tensor([(0, layout_hash((length,), (1,)))])
        self.scalar_index = torch.zeros(1, dtype=torch.int64)

    def gradient(self) -> Tensor:
        return torch.randn(self.p.shape, generator=self.generator)

    def rows(self, t: int) -> Tensor:
        return torch.tensor([compute_scalars(self.group, t)], dtype=torch.float64)

    def decay_done(self, step: Step, split: bool) -> float:
        """What has been taken from the parameters for decay over what is due, after `STEPS` steps."""
        param = to_parameter(self.p, torch.bfloat16) if split else self.p.clone()
        master = low_bits(self.p) if split else None
        m, v = self.m.clone(), self.v.clone()
        truth = self.p.double(), self.m.double(), self.v.double()
        undecayed = truth
        for t in range(T, T + STEPS):
            g = self.gradient()
            step([param], [g], m, v, self.layout, self.scalar_index, self.rows(t), False, None, master)
            truth = self.exactly(t, g.double(), *truth, self.decay)
            undecayed = self.exactly(t, g.double(), *undecayed, 0.0)
        value = join(param, master) if master is not None else param
        return float((undecayed[0] - value).mean() / (undecayed[0] - truth[0]).mean())

    def exactly(self, t: int, g: Tensor, p: Tensor, m: Tensor, v: Tensor, decay: float) -> tuple[Tensor, ...]:
        """A step of AdamW (Loshchilov & Hutter, algorithm 2) in float64."""
        m = BETA1 * m + (1 - BETA1) * g
        v = self.beta2 * v + (1 - self.beta2) * g * g
        step = self.lr / (1 - BETA1**t) * m / ((v / (1 - self.beta2**t)).sqrt() + EPS)
        return p * (1 - decay) - step, m, v


def old_lines(params: list[Tensor], grads: list[Tensor], m: Tensor, v: Tensor, *others: Any) -> None:
    """The first version of the contract, which torch.optim.RAdam has too: beta2 and 1 - decay rounded to float32."""
    (p,), (g,), row = params, grads, others[2][0].tolist()
    one_minus_beta1, beta2, one_minus_beta2, eps, _, decay, alpha = row[:7]
    m.copy_(m + (g - m) * one_minus_beta1)
    v.copy_(v * beta2 + (g * one_minus_beta2) * g)
    p.copy_(p * (1.0 - decay) - (m / (v.sqrt() + eps)) * alpha)


@pytest.mark.sampled
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("split", [False, True], ids=["fp32", "split"])
def test_a_small_decay_is_done_once(decay: float, split: bool, stepper: Step) -> None:
    assert abs(Run(decay).decay_done(stepper, split) - 1.0) < 2e-3


@pytest.mark.parametrize(("decay", "done"), [(2e-8, 0.0), (3e-8, 2.27), (1e-7, 1.36), (1e-6, 1.01)])
def test_the_old_line_did_it_another_number_of_times(decay: float, done: float) -> None:
    """The negative control: the same measure of a rounded 1 - decay, which is 1 or a whole number of 2^-24 from it."""
    assert abs(Run(decay).decay_done(old_lines, False) - done) < 0.01


def bias(step: Step, beta2: float, length: int = 2**14, steps: int = 1000) -> float:
    """Where the second moment settles beside the mean of the squares, relative to it.

    Both runs begin there, spread as a long run is; what is found after so many steps is a known part of what it will
    come to.
    """
    run = Run(0.0, beta2=beta2, length=length)
    scale = torch.linspace(1.0, 2.0, length)
    p, m = run.p.clone(), run.m.clone()
    v = scale * (1.0 + (1.0 - beta2) ** 0.5 * run.gradient())
    exact = v.double()
    rows = run.rows(T)
    for _ in range(steps):
        g = scale.sqrt() * run.gradient()
        step([p], [g], m, v, run.layout, run.scalar_index, rows)
        exact = beta2 * exact + (1.0 - beta2) * g.double() ** 2
    return float(((v.double() - exact) / scale).mean()) / (1.0 - beta2**steps)


BETAS = [(0.999, 1e-6), (0.9995, 1e-6), (0.9999, 1e-6), (0.99999, 1e-5)]


@pytest.mark.parametrize(("beta2", "allowed"), BETAS)
def test_the_second_moment_settles_at_the_mean(beta2: float, allowed: float) -> None:
    assert abs(bias(OPERATORS["cpu"].step, beta2)) < allowed


@pytest.mark.parametrize(("beta2", "off"), [(0.999, 1.3e-5), (0.9995, -4.7e-5), (0.9999, -1.7e-4), (0.99999, -1.4e-3)])
def test_the_old_line_settled_beside_it(beta2: float, off: float) -> None:
    """The negative control: the rounded beta2 and 1 - beta2 do not add up to 1."""
    found = bias(old_lines, beta2)
    assert found == pytest.approx(off, rel=0.1)
    assert abs(found) > 10 * dict(BETAS)[beta2]


# Beside torch's own.


def distances(options: dict[str, Any], steps: int = 3000, length: int = 4096) -> dict[str, dict[str, float]]:
    """Of this package and of torch.optim.RAdam in float32 from float64: the mean of p and of v, relatively."""
    generator = torch.Generator().manual_seed(1)
    start = 0.02 * (1 + torch.rand(length, generator=generator))
    runs: dict[str, tuple[nn.Parameter, torch.optim.Optimizer]] = {}
    for name in ("here", "torch", "exact"):
        p = nn.Parameter(start.double() if name == "exact" else start.clone())
        own = {"backend": "cpu"} if name != "torch" else {"foreach": True}
        runs[name] = p, (torch.optim.RAdam if name == "torch" else FusedRAdam)([p], **options, **own)
    for _ in range(steps):
        g = torch.randn(length, generator=generator)
        for p, opt in runs.values():
            p.grad = g.to(p.dtype)
            opt.step()
    p, opt = runs.pop("exact")
    truth = p.detach(), opt.state[p]["exp_avg_sq"]
    found = {}
    for name, (q, other) in runs.items():
        values = q.detach(), other.state[q]["exp_avg_sq"]
        errors = [abs(float((a.double() - b).mean() / b.mean())) for a, b in zip(values, truth, strict=True)]
        found[name] = dict(zip(("p", "v"), errors, strict=True))
    return found


@pytest.mark.parametrize("beta2", [0.999, 0.9995, 0.9999])
def test_nearer_to_the_truth_than_torch(beta2: float) -> None:
    """Side by side, in the mean over all elements: both start alike and get the same gradients."""
    decoupled = {"weight_decay": 0.1, "decoupled_weight_decay": True}
    found = distances({"lr": 1e-6, "betas": (0.9, beta2), **decoupled})
    assert found["here"]["p"] < found["torch"]["p"] / 20
    assert found["here"]["v"] < found["torch"]["v"] / 20


# Which line of the contract the scalars choose, and special values.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("beta2", [0.0, 0.3, 0.5 - 1e-4, 0.5 - 1e-9, 0.5, 0.5 + 1e-9, 0.7], ids=str)
def test_every_backend_takes_the_same_line(beta2: float, dtype: torch.dtype, host_kernels: ctypes.CDLL) -> None:
    """Around beta2 = 1/2, which float32 rounds to; and decays that float32 rounds to 0."""
    steps = [*(OPERATORS[name].step for name in STEPPERS[:3]), host_step(host_kernels, Geometry(blocks=2)), old_lines]
    for decay in (0.0, 1e-50, 1e-44, 0.01):
        results = []
        for step in steps:
            run = Run(decay, beta2=beta2, length=3000)
            p, m, v = (x.to(dtype) for x in (run.p, run.m, run.v))
            v[0], p[1], p[2] = math.inf, math.inf, -math.inf
            for _ in range(3):
                step([p], [run.gradient().to(dtype)], m, v, run.layout, run.scalar_index, run.rows(7))
            results.append((p, m, v))
        *ours, old = results
        assert all(same_bits(a, b) for other in ours[1:] for a, b in zip(ours[0], other, strict=True))
        by_difference = torch.tensor(beta2, dtype=dtype) >= 0.5
        assert same_bits(ours[0][2], old[2]) == (not by_difference)


def stepped(step: Step, p: float, m: float, v: float, g: float, **group: Any) -> tuple[float, float, float]:
    """One element after one rectified step."""
    run = Run(0.0, length=1)
    run.group.update(group)
    tensors = [torch.tensor([x]) for x in (p, m, v)]
    step(tensors[:1], [torch.tensor([g])], *tensors[1:], run.layout, run.scalar_index, run.rows(T))
    return tuple(float(x) for x in tensors)  # type: ignore[return-value]


INF = math.inf


FORMATS = [{}, {"master_weights": "fp32"}, {"master_weights": "split"}, {"master_weights": "kahan"}]
FORMATS += [{"rounding": "stochastic"}, {"state_dtype": torch.float16, "master_weights": "kahan"}]


@pytest.mark.parametrize("backend", STEPPERS[:3])
@pytest.mark.parametrize("options", FORMATS, ids=lambda options: "-".join(map(str, options.values())) or "alone")
def test_an_infinite_parameter_stays_in_every_form(options: dict[str, Any], backend: str) -> None:
    """Unless something decays, also one that a step has made infinite: its neighbours move on."""
    start = [INF, -INF, 1.0, 3e38]
    for decay in (0.0, 0.1):
        p = nn.Parameter(torch.tensor(start, dtype=torch.bfloat16))
        opt = FusedRAdam([p], lr=1e37, weight_decay=decay, decoupled_weight_decay=True, backend=backend, **options)
        for _ in range(4):
            p.grad = torch.tensor([1.0, 1.0, 1.0, -100.0], dtype=torch.bfloat16)
            opt.step()
        values = p.detach().float()
        if decay:  # the negative control
            assert values[:2].isnan().all()
        else:
            assert values[[0, 1, 3]].tolist() == [INF, -INF, INF]
            assert values[2].isfinite()


def test_special_values_of_the_lines(stepper: Step) -> None:
    """docs/design.md has the table."""
    # An infinite second moment shows, from beta2 = 1/2 on; below, the element stands still, as ever.
    p, _, v = stepped(stepper, 1.0, 0.5, INF, 1.0)
    assert math.isnan(v)
    assert math.isnan(p)
    assert stepped(stepper, 1.0, 0.5, INF, 1.0, betas=(0.9, 0.4))[::2] == (1.0, INF)
    # A gradient whose square overflows: infinite now, and a NaN by the next step.
    assert stepped(stepper, 1.0, 0.0, 1.0, 1e30)[::2] == (1.0, INF)
    # An infinite parameter stays where nothing is taken of it, and is a NaN where something is.
    for sign in (INF, -INF):
        assert stepped(stepper, sign, 0.5, 1.0, 1.0, weight_decay=0.0)[0] == sign
        assert stepped(stepper, sign, 0.5, 1.0, 1.0, weight_decay=1e-45)[0] == sign  # lr * decay is 0 in float32
        assert math.isnan(stepped(stepper, sign, 0.5, 1.0, 1.0, weight_decay=0.1)[0])
    # Signed zeros, and a moment that has come to rest.
    assert math.copysign(1.0, stepped(stepper, -0.0, 0.0, 1.0, 0.0, weight_decay=0.1)[0]) == -1.0
    assert stepped(stepper, 1.0, 0.0, 0.0, 0.0, weight_decay=0.0) == (1.0, 0.0, 0.0)
