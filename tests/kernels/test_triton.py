"""The Triton kernels of norms, of rows and of zeroed gradients, interpreted, against ``reference``, bit for bit."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from radam_fused.backends.ops import OPERATORS
from radam_fused.backends.triton import tables as triton_tables
from radam_fused.numerics.layout import fingerprint, segment_starts
from radam_fused.numerics.scalars import SKIP, hyper, step_row
from radam_fused.options import GROUP_DEFAULTS
from radam_fused.rectification import KINDS
from tests.support.helpers import LAYOUTS, filled, noise, one_ulp_up, same_bits

TRITON, REFERENCE = OPERATORS["triton"], OPERATORS["reference"]
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=["fp32", "fp64", "fp16", "bf16"]
)


# squares


def odd_gradients(dtype: torch.dtype) -> list[Tensor]:
    """Every layout of `LAYOUTS`, tile boundaries, and gradients with gaps in one dimension or in three."""
    grads = [filled(name, dtype, seed) for seed, name in enumerate(LAYOUTS)]
    values = noise(500_000).to(dtype)
    grads += [values[:n] for n in (1023, 1024, 1025)] + [values[1:2050]]
    grads.append(values[7].expand(40, 30))
    grads.append(values[:360].reshape(6, 5, 12)[::2, 1:, ::5].transpose(0, 2))
    grads.append(values[:9000].reshape(2, 4500).t()[3:])
    grads.append(values[: 3 * 2000].reshape(2000, 3)[:, :2].t())  # the inner dimension longer than a tile
    return grads


@DTYPES
def test_squares_equal_reference(dtype: torch.dtype) -> None:
    grads = odd_gradients(dtype)
    ours, expected = TRITON.squares(grads), REFERENCE.squares(grads)
    assert same_bits(ours, expected)
    exact = sum(float(g.double().square().sum()) for g in grads)
    assert float(ours.sum()) == pytest.approx(exact, rel=1e-12)
    changed = list(grads)
    changed[list(LAYOUTS).index("size_50021")] = filled("size_50021", dtype, 6).index_fill(0, torch.tensor([77]), 3.0)
    assert not same_bits(ours, REFERENCE.squares(changed))  # the negative control


def test_squares_of_several_tiles_a_sum() -> None:
    """More tiles than sums: the lanes go on from tile to tile, and from one gradient to the next."""
    grads = [noise(500_000)[:n].float() for n in (430_001, 5, 0, 499_000, 120_000, 1_000)]
    ours = TRITON.squares(grads)
    assert same_bits(ours, REFERENCE.squares(grads))
    assert not same_bits(ours, REFERENCE.squares(grads[::-1]))  # the negative control: order shows


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_squares_of_special_values(value: float) -> None:
    grads = [torch.tensor([1.0, value, -0.0]), torch.ones(5)]
    ours = TRITON.squares(grads)
    assert same_bits(ours, REFERENCE.squares(grads))
    assert not same_bits(ours, REFERENCE.squares([torch.ones(3), torch.ones(5)]))


def test_squares_without_an_element() -> None:
    assert same_bits(TRITON.squares([torch.zeros(0), torch.zeros(3, 0)]), torch.zeros(1024, dtype=torch.float64))


def test_squares_refuse_what_they_cannot_read() -> None:
    with pytest.raises(ValueError, match="gradient 1"):
        TRITON.squares([torch.zeros(3), torch.zeros(3, dtype=torch.float64)])
    with pytest.raises(TypeError, match="int32"):
        TRITON.squares([torch.zeros(3, dtype=torch.int32)])


# rows

BETA2 = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9995, 0.9999, 0.99999, 0.999999)
STEPS = (*range(40), 999, 2**24 - 3)
GROUPS = [
    {
        **GROUP_DEFAULTS,
        "lr": 0.01 + 0.001 * k,
        "betas": ((0.0, 0.9, 0.95)[k % 3], beta2),
        "rectification": kind,
        "weight_decay": 0.1 * (k % 2),
        "decoupled_weight_decay": k % 4 == 1,
        "degenerated_to_sgd": k % 5 != 0,
        "maximize": k % 7 == 0,
        "rho_threshold": 4.0 + k % 2,
    }
    for k, (beta2, kind) in enumerate(itertools.product(BETA2, KINDS))
]


def row_arguments(groups: list[dict] = GROUPS, **changes: object) -> dict:
    """Every group at every count; the segments of odd counts do not step."""
    steps = torch.tensor(STEPS, dtype=torch.float32)
    arguments = {
        "hyper": torch.tensor([hyper(group, float(group["lr"])) for group in groups], dtype=torch.float64),
        "pairs": torch.cartesian_prod(torch.arange(len(groups)), torch.arange(len(steps))),
        "counted": (steps % 2 == 0).float(),
        "steps": steps,
        "taken": steps.double(),
        "lr": None,
        "squares": None,
        "max_grad_norm": 1.0,
        "grad_scale": None,
        "found_inf": None,
    }
    return {**arguments, **changes}


def both(arguments: dict) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Rows, norm and counts, of Triton and of reference."""
    results = []
    for operators in (TRITON, REFERENCE):
        own = {**arguments, "steps": arguments["steps"].clone(), "taken": arguments["taken"].clone()}
        results.append((*operators.rows(*own.values()), own["steps"]))
        assert torch.equal(own["taken"], own["steps"].double())
    return results


def assert_same(arguments: dict) -> tuple[Tensor, Tensor, Tensor]:
    ours, expected = both(arguments)
    for name, a, b in zip(("rows", "norm", "steps"), ours, expected, strict=True):
        assert same_bits(a, b), name
    return ours


def test_rows_equal_reference_and_the_host() -> None:
    """The host's own formulas are those of `radam_fused.rectification`, with the same bits."""
    rows, norm, steps = assert_same(row_arguments())
    assert norm == 0
    host = [step_row(group, int(taken) + 1) for group, taken in itertools.product(GROUPS, STEPS)]
    assert same_bits(rows, torch.tensor(host, dtype=torch.float64))
    assert torch.equal(steps, torch.tensor(STEPS) + (torch.tensor(STEPS) % 2 == 0).float())
    changed = rows.clone()
    one_ulp_up(changed, 9 * 777 + 6)  # the negative control
    assert not same_bits(changed, rows)


def norms(value: float, buckets: int = 2) -> Tensor:
    squares = noise(1024 * buckets).square().reshape(buckets, 1024).clone()
    squares[-1, 513] = value
    return squares


@pytest.mark.parametrize("value", [0.5, 1e-320, float("inf"), float("nan")])
@pytest.mark.parametrize("max_grad_norm", [0.1, 1e6, float("inf"), 0.0])
def test_clipping(value: float, max_grad_norm: float) -> None:
    arguments = row_arguments(GROUPS[:2], squares=norms(value), max_grad_norm=max_grad_norm)
    rows, norm, _ = assert_same(arguments)
    factor = abs(rows[0, 7])
    clipped = max_grad_norm / (float(norm) + 1e-6)
    assert float(factor) == pytest.approx(clipped if not clipped > 1 else 1.0, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("layout", ["plain", "expanded", "strided"])
def test_tensor_learning_rates(dtype: torch.dtype, layout: str) -> None:
    values = torch.linspace(0.001, 0.1, 2 * len(GROUPS), dtype=dtype)
    lr = {"plain": values[: len(GROUPS)], "expanded": values[3].expand(len(GROUPS)), "strided": values[::2]}[layout]
    rows, _, _ = assert_same(row_arguments(lr=lr))
    other, _, _ = both(row_arguments(lr=lr + 1e-3))[0]
    assert not same_bits(rows, other)


@pytest.mark.parametrize("found", [0.0, 1.0, float("nan")])
@pytest.mark.parametrize("shape", [(), (1,)], ids=["0-d", "1-d"])
def test_scale_and_found_inf(found: float, shape: tuple[int, ...]) -> None:
    arguments = row_arguments(
        GROUPS[:3],
        squares=norms(1.0, buckets=3),
        grad_scale=torch.full(shape, 3.0),
        found_inf=torch.full(shape, found),
    )
    rows, _, steps = assert_same(arguments)
    skipped = found != 0
    assert bool((rows[:, 8] == SKIP).all()) == skipped
    assert torch.equal(steps, arguments["steps"]) == skipped


def test_rows_read_counts_before_they_count() -> None:
    """Many rows of one leader, more than a block of them, and more segments than a block counts."""
    groups = [{**GROUP_DEFAULTS, "lr": 0.001 * k} for k in range(300)]
    arguments = row_arguments(
        groups,
        pairs=torch.stack([torch.arange(300), torch.full((300,), 2999)], dim=1),
        steps=torch.full((3000,), 6.0),
        taken=torch.full((3000,), 6.0, dtype=torch.float64),
        counted=torch.ones(3000),
    )
    rows, _, steps = assert_same(arguments)
    assert same_bits(rows[299], torch.tensor(step_row(groups[299], 7), dtype=torch.float64))
    assert not same_bits(rows[299], torch.tensor(step_row(groups[299], 8), dtype=torch.float64))
    assert steps.eq(7.0).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hyper", torch.zeros(2, 14, dtype=torch.float64)),
        ("pairs", torch.zeros(4, 2, dtype=torch.int32)),
        ("counted", torch.ones(3)),
        ("steps", torch.zeros(2 * len(STEPS))[::2]),
        ("lr", torch.zeros(1)),
        ("squares", torch.zeros(1, 1000, dtype=torch.float64)),
        ("grad_scale", torch.ones(2)),
        ("found_inf", torch.zeros(1, dtype=torch.float64)),
    ],
)
def test_rows_refuse_what_does_not_fit(name: str, value: Tensor) -> None:
    with pytest.raises(ValueError, match=name):
        TRITON.rows(*row_arguments(**{name: value}).values())


# The step: zeros in gradients, skipped steps, and tables that are kept.


class Step:
    """A step of every layout, each with a plain gradient, a strided one and one of another order."""

    def __init__(self, dtype: torch.dtype, grad_dtype: torch.dtype) -> None:
        names = [name for name in LAYOUTS for _ in range(2)]
        self.params = [filled(name, dtype, seed) for seed, name in enumerate(names)]
        self.grads = [
            torch.stack([g, g], -1)[..., 0] if k % 2 else g.clone(memory_format=torch.preserve_format)
            for k, g in enumerate(filled(name, grad_dtype, seed + 50) for seed, name in enumerate(names))
        ]
        starts, length = segment_starts([p.numel() for p in self.params])
        self.segments = torch.tensor(
            [(start, fingerprint(p.shape, p.stride())) for start, p in zip(starts, self.params, strict=True)]
        )
        moments = torch.float64 if dtype == torch.float64 else torch.float32
        self.moments = [torch.rand(length, generator=torch.Generator().manual_seed(k)).to(moments) for k in range(2)]
        self.rows = torch.tensor([step_row(GROUP_DEFAULTS, t) for t in (3, 9, 9)], dtype=torch.float64)
        self.rows[2, 8] = SKIP
        self.row_of = torch.arange(len(self.params)) % 3

    def run(self, backend: str, zero_grads: bool) -> None:
        OPERATORS[backend].step(
            self.params, self.grads, *self.moments, self.segments, self.row_of, self.rows, zero_grads
        )

    def tensors(self) -> list[Tensor]:
        return [*self.params, *self.grads, *self.moments]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(same_bits(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("zero_grads", [False, True], ids=["left", "zeroed"])
@pytest.mark.parametrize(
    ("dtype", "grad_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.bfloat16),
    ],
    ids=["fp32", "fp64", "bf16-grad_fp32", "fp32-grad_fp16", "bf16"],
)
def test_step_equals_reference(dtype: torch.dtype, grad_dtype: torch.dtype, zero_grads: bool) -> None:
    ours, theirs, before = (Step(dtype, grad_dtype) for _ in range(3))
    ours.run("triton", zero_grads)
    theirs.run("reference", zero_grads)
    assert equal(ours.tensors(), theirs.tensors())
    assert all(not g.any() for g in ours.grads) == zero_grads
    skipped = [p for k, p in enumerate(ours.params) if k % 3 == 2]
    assert equal(skipped, [p for k, p in enumerate(before.params) if k % 3 == 2])
    if not zero_grads:
        assert equal(ours.grads, before.grads)
    # The negative control: the same without a skipped row.
    before.rows[2, 8] = 1.0
    before.run("triton", zero_grads)
    assert not equal(before.tensors(), ours.tensors())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.segments.__setitem__((-1, 0), 10**9), "start"),
        (lambda s: s.segments.__setitem__((-1, 0), -64), "start"),
        (lambda s: s.row_of.__setitem__(-1, 3), "row"),
        (lambda s: setattr(s, "rows", s.rows[:, :8]), "rows"),
        (lambda s: setattr(s, "rows", s.rows.float()), "rows"),
        (lambda s: s.moments.__setitem__(1, torch.zeros(64)), "exp_avg"),
        (lambda s: setattr(s, "row_of", s.row_of[:-1]), "one entry a segment"),
    ],
    ids=["start", "negative_start", "row", "row_columns", "row_dtype", "moments", "count"],
)
def test_step_refuses_before_it_writes(change, message: str) -> None:
    step = Step(torch.float32, torch.float32)
    step.run("triton", zero_grads=False)  # the tables of a good step are there
    change(step)
    before = [t.clone() for t in step.tensors()]
    with pytest.raises((ValueError, RuntimeError), match=message):
        step.run("triton", zero_grads=False)
    assert equal(step.tensors(), before)


def uploads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tables each upload from now on carries."""
    carried: list[int] = []
    upload = triton_tables._upload

    def counting(device: torch.device, parts: list[Tensor], capturing: bool) -> list[Tensor]:
        carried.append(len(parts))
        return upload(device, parts, capturing)

    monkeypatch.setattr(triton_tables, "_upload", counting)
    return carried


def test_tables_are_kept_and_follow_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has not changed is not made again; other gradients, layouts or rows are another table."""
    ours, theirs = Step(torch.float32, torch.float32), Step(torch.float32, torch.float32)
    monkeypatch.setattr(triton_tables, "_kept", {})
    carried = uploads(monkeypatch)

    def both_step() -> None:
        ours.run("triton", zero_grads=False)
        theirs.run("reference", zero_grads=False)
        assert equal(ours.tensors(), theirs.tensors())

    both_step()
    both_step()
    assert carried == [2, 0]
    for step in (ours, theirs):
        step.grads[3] = step.grads[3] * 2.0 + 1.0
    both_step()
    for step in (ours, theirs):
        step.row_of.fill_(1)
    both_step()
    both_step()
    assert carried == [2, 0, 1, 1, 0]


def test_tables_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_tables, "KEPT", 3)
    monkeypatch.setattr(triton_tables, "_kept", {})
    carried = uploads(monkeypatch)
    for k in (0, 1, 2, 0, 3, 0, 1):  # the fourth takes the place of the second, which was used least lately
        table = triton_tables.Table(lambda k=k: torch.tensor([k, k]), place=k, facts="unchanged")
        assert triton_tables.on_device(torch.device("cpu"), [table])[0].tolist() == [k, k]
    assert carried == [1, 1, 1, 0, 1, 0, 1]
    assert len(triton_tables._kept) == 3
