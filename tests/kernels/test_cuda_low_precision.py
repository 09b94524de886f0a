"""The CUDA kernels over low-precision state, run on the host warp by warp: the same bits as ``reference``."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from radam_fused.backends.ops import OPERATORS
from radam_fused.numerics.layout import layout_hash
from tests.support.cuda_host import Geometry, host_step, same_layout
from tests.support.helpers import LAYOUTS, gradients
from tests.support.paths import ROOT
from tests.support.state_formats import FORMATS, Case, Format

REFERENCE = OPERATORS["reference"]

SHORT = [name for name in LAYOUTS if name != "size_50021"]
"""Up to two tiles, the last of them with a single element."""
GEOMETRIES = (
    Geometry(),
    Geometry(blocks=7, backwards=True),
    Geometry(blocks=61, threads=32, in_tables=True),
)
INT8 = Format(torch.bfloat16, torch.bfloat16, torch.int8, None, stochastic=True)
FORM = pytest.mark.parametrize("form", FORMATS, ids=str)


def differing(ours: list[Tensor], theirs: list[Tensor], names: list[str]) -> list[str]:
    return [name for name, a, b in zip(names, ours, theirs, strict=True) if not torch.equal(a, b)]


@FORM
def test_kernel_equals_reference(host_kernels: ctypes.CDLL, form: Format) -> None:
    expected = Case(form, SHORT).run(REFERENCE.step)
    for geometry in GEOMETRIES:
        case = Case(form, SHORT)
        assert not differing(case.run(host_step(host_kernels, geometry)), expected, case.names()), geometry


@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
@pytest.mark.parametrize("thread", [0, 128 + 32 + 31, 128 + 5])
def test_a_skipped_thread_is_noticed(host_kernels: ctypes.CDLL, state: torch.dtype, thread: int) -> None:
    """The negative control: one thread of 256 does not run."""
    form = replace(INT8, state=state)
    expected = Case(form, SHORT).run(REFERENCE.step, steps=2)
    geometry = Geometry(blocks=2, backwards=True, skipped=thread)
    case = Case(form, SHORT)
    wrong = differing(case.run(host_step(host_kernels, geometry), steps=2), expected, case.names())
    assert {"exp_avg", "exp_avg_sq"} <= {*wrong}


@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
def test_random_bits_begin_anywhere(host_kernels: ctypes.CDLL, state: torch.dtype) -> None:
    """A shard's random numbers begin where it does in the whole tensor: between two groups of eight, and far out."""
    form, layouts = replace(INT8, state=state), ["size_4097", "size_257", "transposed"]
    ours, theirs, other = (Case(form, layouts) for _ in range(3))
    step = host_step(host_kernels, Geometry(blocks=7, backwards=True))
    for by in range(8):
        ours.rng_offsets = theirs.rng_offsets = torch.tensor([8192 + by, (1 << 45) + 8 * by + 3, 64 * by])
        assert not differing(ours.run(step, steps=2), theirs.run(REFERENCE.step, steps=2), ours.names()), by
    other.rng_offsets = torch.tensor([8192 + 6, (1 << 45) + 8 * 7 + 3, 64 * 7])
    assert "size_4097" in differing(ours.bits(), other.run(REFERENCE.step, steps=2), ours.names())


@pytest.mark.parametrize("form", FORMATS[::5], ids=str)
def test_gradients_are_cleared(host_kernels: ctypes.CDLL, form: Format) -> None:
    """With a step that is skipped among them, gradients of two dtypes, and one whose elements share memory."""
    results = []
    for step in (REFERENCE.step, host_step(host_kernels, Geometry(blocks=5, backwards=True))):
        case = Case(form, SHORT)
        grads = gradients([p.shape for p in case.params], form.grad, 1)
        grads[3] = grads[3].to(torch.float16 if form.grad == torch.float32 else torch.float32)
        grads[5] = grads[5][:1].expand(257)
        buffers = case.exp_avg, case.exp_avg_sq, case.segments, case.scalar_index, case.rows(4)
        step(case.params, grads, *buffers, True, case.scales, case.master, form.stochastic)
        assert not any(grad.any() for grad in grads)
        results.append(case.bits())
    assert not differing(*results, case.names())


@FORM
def test_special_values(host_kernels: ctypes.CDLL, form: Format) -> None:
    """NaN, infinities, subnormals and signed zeros in parameter and gradient: two whole blocks and a ragged one."""
    special = torch.tensor(
        [0.0, -0.0, 1.0, -1.5, 1e-45, -1e-40, 6e-8, 65504.0, 1e38, -3e38, float("inf"), -float("inf"), float("nan")]
    )
    values = special.repeat(45)[:523]
    p = values.to(form.param)
    grads = [values.flip(0).to(form.grad), values.roll(5).to(form.grad)]
    results = []
    for step in (REFERENCE.step, host_step(host_kernels, Geometry(blocks=2))):
        case = Case(form, ["size_1"])
        case.params = [same_layout(p)]
        for name in ("exp_avg", "exp_avg_sq", "master"):
            buffer = getattr(case, name)
            setattr(case, name, None if buffer is None else torch.zeros(1024, dtype=buffer.dtype))
        case.scales = None if case.scales is None else torch.zeros(2, 4)
        case.segments = torch.tensor([(256, layout_hash(p.shape, p.stride()))])
        for t in (1, 9):
            buffers = case.exp_avg, case.exp_avg_sq, case.segments, torch.tensor([2]), case.rows(t)
            step(case.params, [grads[t > 1]], *buffers, False, case.scales, case.master, form.stochastic)
        results.append(case.bits())
    assert not differing(*results, case.names())


def test_the_tile_loop_is_in_one_place() -> None:
    """The kernel calls what these tests run, and does nothing besides."""
    kernel = (ROOT / "csrc" / "cuda" / "low_precision_kernel.cu").read_text()
    body = kernel[kernel.index("__global__") :]
    body = body[body.index("{") + 1 : body.index("\n}")]
    assert body.count(";") == 2
    assert "step_low_precision_tiles<kMoments, kThreads / kWarp>" in body
