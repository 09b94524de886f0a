"""``offload=True``: the same bits as without, whatever the chunks; bounded staging; errors; checkpoints.

On the CPU here: what is run is all of the offloaded step but the streams, which tests/gpu has. `Late` stands in for
them: its copies are done no sooner than the streams would have to.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam, offload, transfer
from radam_fused.layout import moment_strides
from tests.kernels import test_bits
from tests.support.helpers import LAYOUTS, filled, gradients, one_ulp_up, same_bits

Results = tuple[list[Tensor], list[Tensor]]
STEPS = 12
SMALL = 4096
SHAPES = [(1000,), (33, 17), (), (7, 300), (0, 5)]
PAIRS = pytest.mark.parametrize(
    ("dtype", "grad_dtype"),
    test_bits.PAIRS,
    ids=[f"{test_bits.SHORT[p]}-grad_{test_bits.SHORT[g]}" for p, g in test_bits.PAIRS],
)
DTYPES = pytest.mark.parametrize("dtype", test_bits.SHORT, ids=list(test_bits.SHORT.values()))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots of a few hundred elements: many chunks a step, tensors cut in pieces, slots used again and again."""
    monkeypatch.setattr(offload, "SLOT_BYTES", SMALL)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[transfer.Transfer], None]:
    """Makes offloaded steps copy by a given transfer."""
    return lambda chosen: monkeypatch.setattr(offload, "transfer_for", lambda device: chosen)


def model(
    shapes: list[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[list, FusedRAdam]:
    """Parameters in two groups, and their optimizer; the same values for the same shapes."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in shapes]
    groups = [{"params": params[::2], "lr": 0.01}, {"params": params[1::2], "lr": 0.02, "weight_decay": 0.1}]
    return params, FusedRAdam(groups, backend="cpu", **options)


def train(params: list[Tensor], opt: FusedRAdam, steps: range) -> Results:
    for t in steps:
        for p, grad in zip(params, gradients([p.shape for p in params], torch.float32, t), strict=True):
            p.grad = grad.to(p.dtype)
        opt.step()
    return results(params, opt)


def results(params: list[Tensor], opt: FusedRAdam) -> Results:
    moments = [opt.state[p][key] for p in params for key in ("exp_avg", "exp_avg_sq")]
    return [p.detach() for p in params], moments


def same(ours: Results, theirs: Results) -> bool:
    return all(same_bits(a, b) for a, b in zip(ours[0] + ours[1], theirs[0] + theirs[1], strict=True))


class Late(transfer.Transfer):
    """Copies that are done as late as streams may do them: down when waited for, up when their slot is needed."""

    def __init__(self) -> None:
        self._down: dict[transfer.Slot, transfer.Copies] = {}
        self._up: dict[transfer.Slot, transfer.Copies] = {}
        self.order: list[tuple[str, int]] = []
        self.slots: list[transfer.Slot] = []

    def slot(self, nbytes: int) -> transfer.Slot:
        self.slots.append(super().slot(nbytes))
        self.slots[-1].memory.fill_(0xFF)  # NaNs: what is read before it is there shows
        return self.slots[-1]

    def note(self, what: str, slot: transfer.Slot) -> None:
        self.order.append((what, self.slots.index(slot)))

    def down(self, slot: transfer.Slot, copies: transfer.Copies) -> None:
        assert slot not in self._down, "copies down into a slot that was not computed yet"
        self.note("down", slot)
        self._down[slot] = copies

    def wait(self, slot: transfer.Slot) -> None:
        super().up(slot, self._up.pop(slot, ()))
        super().down(slot, self._down.pop(slot))
        self.note("wait", slot)

    def up(self, slot: transfer.Slot, copies: transfer.Copies) -> None:
        self.note("up", slot)
        self._up[slot] = copies

    def finish(self) -> None:
        for slot in self.slots:
            super().up(slot, self._up.pop(slot, ()))


# The same bits.


@PAIRS
def test_bits_of_every_layout(dtype: torch.dtype, grad_dtype: torch.dtype, small: None) -> None:
    """Several groups, missing and expanded gradients, and 100,003 elements in chunks of some 500."""
    expected = test_bits.train("cpu", dtype, grad_dtype, steps=STEPS)
    test_bits.assert_same(test_bits.train("cpu", dtype, grad_dtype, steps=STEPS, offload=True), expected)


@pytest.mark.parametrize("slot_bytes", [192, 1024, 1 << 26])
@pytest.mark.parametrize("slots", [1, 2, 3])
def test_bits_in_slots_of_any_size(slot_bytes: int, slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "SLOT_BYTES", slot_bytes)
    monkeypatch.setattr(offload, "SLOTS", slots)
    assert same(train(*model(offload=True), range(3)), train(*model(), range(3)))


OPTIONS: dict[str, dict[str, Any]] = {
    "clipped": {"max_grad_norm": 0.5},
    "measured": {"max_grad_norm": float("inf")},
    "zeroed": {"zero_grads": True},
    "clipped and zeroed": {"max_grad_norm": 0.1, "zero_grads": True},
}


@DTYPES
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_bits_with_options(options: dict[str, Any], dtype: torch.dtype, small: None) -> None:
    ours, theirs = model(dtype=dtype, offload=True, **options), model(dtype=dtype, **options)
    assert same(train(*ours, range(8)), train(*theirs, range(8)))
    for p, q in zip(ours[0], theirs[0], strict=True):
        assert same_bits(p.grad, q.grad)
        assert bool((p.grad == 0).all()) == (options.get("zero_grads", False) or p.numel() == 0)
    if "max_grad_norm" in options:
        assert same_bits(ours[1].last_grad_norm, theirs[1].last_grad_norm)


def test_expanded_gradients_are_zeroed(small: None) -> None:
    params, opt = model([(30, 40)], offload=True, zero_grads=True)
    value = torch.ones(30, 1)
    params[0].grad = value.expand(30, 40)
    opt.step()
    assert not value.any()


def test_complex_parameters(small: None) -> None:
    trained = []
    for offloaded in (True, False):
        params, opt = model(dtype=torch.complex64, offload=offloaded)
        parts = [part for tensors in train(params, opt, range(8)) for t in tensors for part in (t.real, t.imag)]
        trained.append(parts)
        assert opt.state[params[0]]["exp_avg"].is_complex()
    assert all(same_bits(a, b) for a, b in zip(*trained, strict=True))


def test_several_dtypes(small: None) -> None:
    """A bucket a dtype; they share the staging memory."""
    trained = []
    for offloaded in (True, False):
        params = [nn.Parameter(filled("matrix", dtype, k)) for k, dtype in enumerate(test_bits.SHORT)]
        trained.append(train(params, FusedRAdam(params, backend="cpu", offload=offloaded), range(8)))
    assert same(*trained)


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_nothing_is_used_before_it_is_there(
    slots: int, use: Callable, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offload, "SLOTS", slots)
    use(late := Late())
    assert same(train(*model(offload=True), range(8)), train(*model(), range(8)))
    assert len(late.slots) == slots
    assert max(late.order.count(entry) for entry in late.order) > 8  # each slot several times a step


def test_chunks_overlap(use: Callable, small: None) -> None:
    """All but the last chunks are computed while the next ones are on their way down, and none waits for a way up."""
    use(late := Late())
    train(*model(offload=True), range(1))
    order = late.order
    assert [what for what, _ in order[:5]] == ["down", "down", "down", "wait", "up"]
    rounds = order[3:-6]
    assert len(rounds) > 6
    assert [what for what, _ in rounds] == ["wait", "up", "down"] * (len(rounds) // 3)
    assert all(rounds[k][1] == rounds[k + 2][1] for k in range(0, len(rounds), 3))


@pytest.mark.parametrize("way", ["down", "up"])
def test_a_corrupted_copy_is_noticed(way: str, use: Callable, small: None) -> None:
    """The negative control: one element of one of the chunks, one unit in the last place."""

    class Corrupt(transfer.Transfer):
        calls = 0

        def spoil(self, staged: Tensor) -> None:
            self.calls += 1
            if self.calls == 7:
                one_ulp_up(staged, staged.numel() // 2)

        def down(self, slot: transfer.Slot, copies: transfer.Copies) -> None:
            super().down(slot, copies)
            self.spoil(copies[0][0])

        def up(self, slot: transfer.Slot, copies: transfer.Copies) -> None:
            self.spoil(copies[0][1])
            super().up(slot, copies)

    class CorruptOneWay(Corrupt):
        def spoil(self, staged: Tensor) -> None:
            pass

    setattr(CorruptOneWay, way, getattr(Corrupt, way))
    CorruptOneWay.spoil = Corrupt.spoil
    use(corrupt := CorruptOneWay())
    assert not same(train(*model(offload=True), range(2)), train(*model(), range(2)))
    assert corrupt.calls >= 7


def test_chunks_hold_every_element_once() -> None:
    """Of every layout, with gradients in the same order and in others; each chunk within its bounds."""
    for capacity in (192, 777, SMALL, 1 << 20):
        names = [name for name in LAYOUTS if capacity > 1000 or name != "size_50021"]
        wholes, expected = [], torch.zeros(0, dtype=torch.int64)
        for k, name in enumerate(names):
            p = LAYOUTS[name](torch.float32)
            moments = torch.arange(p.numel()).as_strided(p.shape, moment_strides(p)) + len(expected)
            p.copy_(moments)
            grad = p.clone(memory_format=torch.contiguous_format) if k % 2 else p
            wholes.append(offload.Piece(*offload.in_order_of_moments(p, grad), len(expected), k, 0))
            expected = torch.arange(len(expected) + p.numel())
        found = []
        for chunk in offload.chunks(wholes, capacity):
            assert 0 < sum(offload.staged_bytes(piece.param, piece.grad) for piece in chunk) <= capacity
            for piece in chunk:
                assert torch.equal(piece.param, piece.grad)
                assert piece.param.reshape(-1)[0] == piece.start
                found.append(piece.param.reshape(-1))
        assert torch.equal(torch.cat(found).long(), expected)


# What is moved, and how much memory that takes.


class Count(transfer.Transfer):
    """Counts bytes."""

    def __init__(self) -> None:
        self.moved = {"down": 0, "up": 0}
        self.allocated = 0

    def slot(self, nbytes: int) -> transfer.Slot:
        self.allocated += nbytes
        return super().slot(nbytes)

    def down(self, slot: transfer.Slot, copies: transfer.Copies) -> None:
        self.moved["down"] += sum(to.numel() * to.element_size() for to, _ in copies)
        super().down(slot, copies)

    def up(self, slot: transfer.Slot, copies: transfer.Copies) -> None:
        self.moved["up"] += sum(to.numel() * to.element_size() for to, _ in copies)
        super().up(slot, copies)


def test_twelve_bytes_an_element(use: Callable, small: None) -> None:
    """Of float32: parameter and gradient down, parameter up; the moments stay where they are."""
    use(count := Count())
    params, opt = model(offload=True)
    train(params, opt, range(1))
    elements = sum(p.numel() for p in params)
    assert count.moved == {"down": 8 * elements, "up": 4 * elements}


def test_staging_memory_is_bounded(use: Callable, small: None) -> None:
    """However large the model, with gradients of one dtype or another; a small one takes what it needs."""
    use(count := Count())
    train(*model([(100_000,), (300, 400)], offload=True), range(3))
    assert count.allocated == offload.SLOTS * SMALL
    count.allocated = 0
    train(*model([(100,)], offload=True), range(3))
    assert count.allocated < 2 * (100 * 8) < SMALL


def test_staging_grows_with_the_gradients(use: Callable, small: None) -> None:
    use(count := Count())
    params, opt = model([(100,), (100_000,)], offload=True)
    params[0].grad = torch.ones(100)
    opt.step()
    first = count.allocated
    assert 0 < first < SMALL
    train(params, opt, range(2))
    assert count.allocated - first == offload.SLOTS * SMALL


@pytest.mark.parametrize("zero_grads", [False, True])
def test_a_skipped_step_moves_nothing(zero_grads: bool, use: Callable) -> None:
    use(count := Count())
    params, opt = model(offload=True, zero_grads=zero_grads)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    train(params, opt, range(2))
    before, moved = copy.deepcopy(results(params, opt)), dict(count.moved)
    scaler.scale(params[0].sum())
    params[0].grad[3] = float("inf")
    params[1].grad.fill_(1.0)
    scaler.step(opt)
    scaler.update()
    assert scaler.get_scale() == 4.0
    assert same(results(params, opt), before)
    assert count.moved == moved
    assert [int(s["step"]) for s in opt.state.values()] == [2] * len(SHAPES)
    assert bool(params[1].grad.any()) != zero_grads


def test_bits_with_a_grad_scaler(small: None) -> None:
    trained = []
    for offloaded in (True, False):
        params, opt = model(offload=offloaded, max_grad_norm=1.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for t in range(9):
            opt.zero_grad()
            loss = sum(
                (p * g).sum()
                for p, g in zip(params, gradients([p.shape for p in params], torch.float32, t), strict=True)
            )
            scaler.scale(loss * (float("inf") if t == 4 else 1.0)).backward()
            scaler.step(opt)
            scaler.update()
        trained.append(results(params, opt))
        assert int(opt.state[params[0]]["step"]) == 8
    assert same(*trained)


# Errors.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"offload": 1}, TypeError, "offload = 1: must be True or False"),
        (
            {"offload": True, "backend": "reference"},
            ValueError,
            "backend = 'reference' .*: must be 'auto' or 'cpu' with",
        ),
        ({"offload": True, "flatten": True}, ValueError, "flatten = True: must be False with offload=True, which"),
        ({"offload": True, "capturable": True}, ValueError, "capturable = True: must be False with offload=True, as"),
        (
            {"offload": True, "differentiable": True},
            ValueError,
            r"offload = True: must be one of \(False,\) with differ",
        ),
    ],
    ids=["kind", "backend", "flatten", "capturable", "differentiable"],
)
def test_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FusedRAdam([nn.Parameter(torch.ones(3))], **options)


def test_the_environments_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RADAM_FUSED_BACKEND", "reference")
    with pytest.raises(ValueError, match=r"backend = 'reference' .*RADAM_FUSED_BACKEND.*: must be 'auto' or 'cpu'"):
        FusedRAdam([nn.Parameter(torch.ones(3))], offload=True)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"params": [nn.Parameter(torch.ones(3, device="meta"))]}, r"\['params'\]\[0\] is on meta: must be on one of"),
        (
            {"params": [nn.Parameter(torch.ones(3))], "capturable": True},
            r"param_groups\[2\]\['capturable'\] = True: must",
        ),
    ],
    ids=["device", "capturable"],
)
def test_groups(group: dict[str, Any], message: str) -> None:
    _, opt = model(offload=True)
    with pytest.raises(ValueError, match=message):
        opt.add_param_group(group)
    assert len(opt.param_groups) == 2


def wrong_shape(p: nn.Parameter) -> None:
    p.grad.data = torch.ones(5)


def wrong_dtype(p: nn.Parameter) -> None:
    p.data = p.data.bfloat16()


def sparse(p: nn.Parameter) -> None:
    p.grad = p.grad.to_sparse()


def reshaped(p: nn.Parameter) -> None:
    p.grad = None
    p.data = p.data.reshape(30, 70)
    p.grad = torch.ones(30, 70)


@pytest.mark.parametrize("spoil", [wrong_shape, wrong_dtype, sparse, reshaped])
def test_all_or_nothing(spoil: Callable, small: None) -> None:
    """A tensor that does not fit is found before the first chunk is written."""
    params, opt = model(offload=True)
    train(params, opt, range(2))
    train_grads = gradients([p.shape for p in params], torch.float32, 5)
    for p, grad in zip(params, train_grads, strict=True):
        p.grad = grad
    spoil(params[3])
    before = copy.deepcopy(results(params, opt))
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        opt.step()
    assert same(results(params, opt), before)
    assert [int(s["step"]) for s in opt.state.values()] == [2] * len(SHAPES)


def test_strides_that_change_are_followed(small: None) -> None:
    trained = []
    for offloaded in (True, False):
        params, opt = model([(2, 30, 5, 5), (40, 30)], offload=offloaded)
        train(params, opt, range(4))
        params[0].data = params[0].data.to(memory_format=torch.channels_last)
        params[1].data = params[1].data.t().contiguous().t()
        trained.append(train(params, opt, range(4, 8)))
    assert same(*trained)


# Checkpoints and copies.


@pytest.mark.parametrize("before", [False, True], ids=["from gpu", "from offload"])
@pytest.mark.parametrize("after", [False, True], ids=["to gpu", "to offload"])
def test_checkpoints_both_ways(before: bool, after: bool, small: None) -> None:
    expected = train(*model(), range(10))
    params, opt = model(offload=before)
    train(params, opt, range(5))
    others, resumed = model(offload=after)
    with torch.no_grad():
        for p, q in zip(others, params, strict=True):
            p.copy_(q)
    resumed.load_state_dict(pickle.loads(pickle.dumps(opt.state_dict())))
    assert same(train(others, resumed, range(5, 10)), expected)


def test_checkpoint_of_torch(small: None) -> None:
    params, _ = model()
    theirs = torch.optim.RAdam([{"params": params[::2]}, {"params": params[1::2]}])
    for p in params:
        p.grad = torch.ones_like(p)
    theirs.step()
    twins = []
    for offloaded in (True, False):
        own, opt = model(offload=offloaded)
        opt.load_state_dict(copy.deepcopy(theirs.state_dict()))
        twins.append(train(own, opt, range(6)))
    assert same(*twins)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))], ids=["deepcopy", "pickle"]
)
def test_copies_are_offloaded(duplicate: Callable, use: Callable, small: None) -> None:
    params, opt = model(offload=True, zero_grads=True)
    expected = copy.deepcopy(train(params, opt, range(5)))
    twin = duplicate(opt)
    own = [twin.param_groups[k % 2]["params"][k // 2] for k in range(len(params))]
    assert same(results(own, twin), expected)
    use(count := Count())
    twin.load_state_dict(twin.state_dict())
    assert same(train(own, twin, range(5, 8)), train(params, opt, range(5, 8)))
    assert count.moved["down"] > 0


def test_added_groups(small: None) -> None:
    trained = []
    for offloaded in (True, False):
        params, opt = model(offload=offloaded)
        train(params, opt, range(3))
        late = nn.Parameter(filled("channels_last", torch.float64, 7))
        opt.add_param_group({"params": [late], "lr": 0.1})
        trained.append(train([*params, late], opt, range(3, 8)))
    assert same(*trained)


def test_edited_parameters_and_state(small: None) -> None:
    """Parameters are read anew in every step, and the moments are the ones that the state shows."""
    trained = []
    for offloaded in (True, False):
        params, opt = model(offload=offloaded)
        train(params, opt, range(6))
        with torch.no_grad():
            params[0].mul_(-2.0)
        opt.state[params[1]]["exp_avg"].zero_()
        opt.state[params[3]]["exp_avg_sq"] = torch.ones(7, 300)
        trained.append(train(params, opt, range(6, 9)))
    assert same(*trained)


def test_compiled_steps_are_refused() -> None:
    params, opt = model(offload=True)
    train(params, opt, range(1))
    before = copy.deepcopy(results(params, opt))
    torch.compiler.reset()
    with pytest.raises(Exception, match=r"offload=True under torch\.compile: step outside of"):
        torch.compile(opt.step, backend="eager")()
    assert same(results(params, opt), before)
