"""Every state format gives the same bits in every backend that runs here, whatever the threads and instruction sets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from radam_fused.numerics.scalars import StepScalars
from tests.support.helpers import LAYOUTS
from tests.support.paths import ROOT
from tests.support.state_formats import FORMATS, Case, Format

ops = torch.ops.radam_fused


@pytest.fixture(scope="module")
def expected() -> dict[Format, list[Tensor]]:
    """The results of ``reference``, computed once per state format."""
    return {}


def layouts_of(form: Format) -> list[str]:
    """One parameter of every layout; for most formats none that takes long."""
    return [name for name in LAYOUTS if name != "size_50021" or form in FORMATS[::4]]


def reference(expected: dict[Format, list[Tensor]], form: Format) -> list[Tensor]:
    if form not in expected:
        expected[form] = Case(form, layouts_of(form)).run(ops.step_reference)
    return expected[form]


def differing(case: Case, theirs: list[Tensor]) -> list[str]:
    pairs = zip(case.names(), case.bits(), theirs, strict=True)
    return [name for name, a, b in pairs if not torch.equal(a, b)]


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_cpu_equals_reference(form: Format, expected: dict) -> None:
    theirs = reference(expected, form)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        case = Case(form, layouts_of(form))
        case.run(ops.step_native)
        assert differing(case, theirs) == []


@pytest.mark.parametrize("form", [form for form in FORMATS if form.grad == torch.bfloat16], ids=str)
def test_one_bit_is_noticed(form: Format, expected: dict) -> None:
    """The negative control: one bit of one element of the state before the last step shows."""
    theirs = reference(expected, form)
    case = Case(form, layouts_of(form))
    case.run(ops.step_native, steps=6)
    whole = case.exp_avg_sq if case.master is None else case.master
    place = case.segments[case.layouts.index("size_4097"), 0] + 17
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    whole.view(integers[whole.element_size()])[place] ^= 1 << (8 * whole.element_size() - 3)
    case.run(ops.step_native, steps=(7, 7))
    assert {"exp_avg_sq", "master"} & set(differing(case, theirs))


@pytest.mark.parametrize("form", [form for form in FORMATS if form.master], ids=str)
def test_parameters_written_between_steps(form: Format) -> None:
    """Infinities that user code writes over a value of which more is stored: steps without an update leave them."""
    cases = []
    for step in (ops.step_native, ops.step_reference):
        case = Case(form, layouts_of(form))
        generator = torch.Generator().manual_seed(0)
        case.master.view(torch.int16).random_(-(2**14), 2**14, generator=generator)
        for p in case.params:
            p[torch.rand(p.shape, generator=generator) < 0.1] *= float("inf")
        cases.append((case, case.run(step, steps=4)))
    (case, _), (_, theirs) = cases
    assert differing(case, theirs) == []
    assert any(p.isinf().any() for p in case.params)


SPECIAL = [0.0, -0.0, 1.0, -1.5, 1e-45, -1e-40, 6e-8, 65504.0, 65519.0]
TOO_LARGE = [65520.0, 1e38, -3e38, float("inf"), -float("inf"), float("nan")]


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_special_values(form: Format) -> None:
    """NaN, infinities, subnormals and signed zeros in parameter and gradient, in half of the blocks."""
    results = []
    for step in (ops.step_native, ops.step_reference, None):
        case = Case(form, ["size_4097"])
        values = torch.tensor(SPECIAL).repeat(500)[:4097]
        values[2048:] = torch.tensor(SPECIAL + TOO_LARGE).repeat(200)[:2049]
        case.params[0].copy_(values)
        for t in (1, 9):
            grads = [torch.cat([half.roll(5 * t) for half in values.split(2048)]).to(form.grad)]
            if step is None:  # the negative control: one gradient is another number
                grads[0][3] += 1.0
            buffers = case.exp_avg, case.exp_avg_sq, case.segments, torch.tensor([2]), case.rows(t)
            stored = case.scales, case.master, form.stochastic, case.rng_offsets
            (step or ops.step_native)(case.params, grads, *buffers, False, *stored)
        results.append(case.bits())
    names = case.names()
    assert [name for name, a, b in zip(names, *results[:2], strict=True) if not torch.equal(a, b)] == []
    assert any(not torch.equal(a, b) for a, b in zip(results[0], results[2], strict=True))
    assert case.params[0].isnan().any()
    assert case.params[0].isfinite().any()


DRAWING = [form for form in FORMATS if form.stochastic or form.state != torch.float32]


@pytest.mark.parametrize("form", DRAWING[::4], ids=str)
@pytest.mark.parametrize("column", ["seed", "step"])
def test_random_bits_depend_on_seed_and_step(form: Format, column: str, expected: dict) -> None:
    case = Case(form, layouts_of(form))
    rows = case.rows

    def other(t: int) -> Tensor:
        table = rows(t)
        table[:, StepScalars._fields.index(column)] += 1
        return table

    case.rows = other  # type: ignore[method-assign]
    case.run(ops.step_native)
    assert differing(case, reference(expected, form))


@pytest.mark.parametrize("form", DRAWING[::4], ids=str)
def test_random_bits_depend_on_the_offset_alone(form: Format) -> None:
    """State stored elsewhere, with the same offsets, comes out the same; other offsets give other random bits."""
    layouts = ["size_4097", "matrix"]
    results = []
    anywhere = (1 << 45) + 5, 8199
    for shift, rng_offsets in ((0, (256, 8192)), (512, (256, 8192)), (0, (8192, 256)), (256, anywhere)):
        case = Case(form, layouts, first=256 + shift)
        case.rng_offsets = torch.tensor(rng_offsets)
        case.run(ops.step_native)
        reference = Case(form, layouts, first=256 + shift)
        reference.rng_offsets = torch.tensor(rng_offsets)
        reference.run(ops.step_reference)
        assert differing(case, reference.bits()) == []
        start = case.segments[:, 0].tolist()
        results.append([p.clone() for p in case.params] + [case.exp_avg_sq[s : s + 33 * 17] for s in start])
    assert all(map(torch.equal, results[0], results[1]))
    assert not all(map(torch.equal, results[0], results[2]))


@pytest.mark.parametrize("capability", [pytest.param("baseline", marks=pytest.mark.long), "avx2"])
def test_instruction_sets_agree(
    capability: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict
) -> None:
    chosen = FORMATS[::5]
    script = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); import radam_fused._C as C; "
        "from tests.kernels.test_low_precision_bits import layouts_of; from tests.support.state_formats import *; "
        "out = [Case(f, layouts_of(f)).run(torch.ops.radam_fused.step_native) for f in FORMATS[::5]]; "
        "torch.save((C.cpu_capability(), out), sys.argv[2])"
    )
    monkeypatch.setenv("RADAM_FUSED_CPU_ISA", capability)
    path = tmp_path / "out.pt"
    subprocess.run([sys.executable, "-c", script, str(ROOT), str(path)], check=True)
    used, out = torch.load(path)
    assert used == capability
    for form, found in zip(chosen, out, strict=True):
        assert all(map(torch.equal, found, reference(expected, form))), str(form)


BROKEN = {
    "codes_without_scales": (torch.int8, {"scales": None}, "scales"),
    "scales_without_codes": (torch.bfloat16, {"scales": torch.zeros(2, 1)}, "scales"),
    "scales_of_another_size": (torch.int8, {"scales": torch.zeros(2, 1)}, "scales must be"),
    "master_of_another_size": (torch.bfloat16, {"master": torch.zeros(3)}, "master must be"),
    "master_of_another_dtype": (torch.bfloat16, {"master": "float16"}, "master"),
    "master_and_stochastic": (torch.bfloat16, {"master": "float32", "stochastic": True}, "stochastic"),
    "second_moment_of_another_dtype": (torch.bfloat16, {"exp_avg_sq": torch.float32}, "exp_avg|no state format"),
    "rng_offsets_of_another_size": (torch.bfloat16, {"rng_offsets": torch.zeros(9, dtype=torch.int64)}, "rng_offsets"),
}


@pytest.mark.parametrize("op", ["native", "reference", "triton"])
@pytest.mark.parametrize(("state", "change", "message"), BROKEN.values(), ids=list(BROKEN))
def test_forms_that_do_not_go_together(op: str, state: torch.dtype, change: dict, message: str) -> None:
    """Refused before anything is written."""
    case = Case(Format(torch.bfloat16, torch.bfloat16, state), ["size_4097", "matrix"])
    length = case.exp_avg.numel()
    given = {"scales": case.scales, "master": None, "stochastic": False, "rng_offsets": None, **change}
    if isinstance(given["master"], str):
        given["master"] = torch.zeros(length, dtype=getattr(torch, given["master"]))
    exp_avg_sq = case.exp_avg_sq.to(given.pop("exp_avg_sq")) if "exp_avg_sq" in given else case.exp_avg_sq
    before = case.bits()
    step = getattr(ops, f"step_{op}")
    grads = [torch.ones_like(p) for p in case.params]
    with pytest.raises((RuntimeError, ValueError), match=message):
        step(case.params, grads, case.exp_avg, exp_avg_sq, case.segments, case.scalar_index, case.rows(9), **given)
    assert differing(case, before) == []
