"""``offload=True``: the same bits as without, whatever the chunks; bounded staging; errors; checkpoints.

On the CPU here: what is run is all of the offloaded step but the streams, which tests/gpu has. `Late` stands in for
them: its copies are done no sooner than the streams would have to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam
from radam_fused.backends import offload
from radam_fused.backends import staging as transfer
from radam_fused.numerics.layout import moment_strides
from tests.kernels import test_bits
from tests.support.helpers import LAYOUTS, filled, gradients, one_ulp_up, same_bits
from tests.support.offloaded import SMALL, model, results, same, train

STEPS = 12
PAIRS = pytest.mark.parametrize(
    ("dtype", "grad_dtype"),
    test_bits.PAIRS,
    ids=[f"{test_bits.SHORT[p]}-grad_{test_bits.SHORT[g]}" for p, g in test_bits.PAIRS],
)
DTYPES = pytest.mark.parametrize("dtype", test_bits.SHORT, ids=list(test_bits.SHORT.values()))


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


@PAIRS
def test_bits_of_every_layout(dtype: torch.dtype, grad_dtype: torch.dtype, small_slots: None) -> None:
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
def test_bits_with_options(options: dict[str, Any], dtype: torch.dtype, small_slots: None) -> None:
    ours, theirs = model(dtype=dtype, offload=True, **options), model(dtype=dtype, **options)
    assert same(train(*ours, range(8)), train(*theirs, range(8)))
    for p, q in zip(ours[0], theirs[0], strict=True):
        assert same_bits(p.grad, q.grad)
        assert bool((p.grad == 0).all()) == (options.get("zero_grads", False) or p.numel() == 0)
    if "max_grad_norm" in options:
        assert same_bits(ours[1].last_grad_norm, theirs[1].last_grad_norm)


def test_expanded_gradients_are_zeroed(small_slots: None) -> None:
    params, opt = model([(30, 40)], offload=True, zero_grads=True)
    value = torch.ones(30, 1)
    params[0].grad = value.expand(30, 40)
    opt.step()
    assert not value.any()


def test_complex_parameters(small_slots: None) -> None:
    trained = []
    for offloaded in (True, False):
        params, opt = model(dtype=torch.complex64, offload=offloaded)
        parts = [part for tensors in train(params, opt, range(8)) for t in tensors for part in (t.real, t.imag)]
        trained.append(parts)
        assert opt.state[params[0]]["exp_avg"].is_complex()
    assert all(same_bits(a, b) for a, b in zip(*trained, strict=True))


def test_several_dtypes(small_slots: None) -> None:
    """One bucket per dtype; they share the staging memory."""
    trained = []
    for offloaded in (True, False):
        params = [nn.Parameter(filled("matrix", dtype, k)) for k, dtype in enumerate(test_bits.SHORT)]
        trained.append(train(params, FusedRAdam(params, backend="cpu", offload=offloaded), range(8)))
    assert same(*trained)


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_nothing_is_used_before_it_is_there(
    slots: int, use_transfer: Callable, small_slots: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offload, "SLOTS", slots)
    use_transfer(late := Late())
    assert same(train(*model(offload=True), range(8)), train(*model(), range(8)))
    assert len(late.slots) == slots
    assert max(late.order.count(entry) for entry in late.order) > 8  # each slot several times a step


def test_chunks_overlap(use_transfer: Callable, small_slots: None) -> None:
    """All but the last chunks are stepped while the next ones are copied down, and none waits for a copy up."""
    use_transfer(late := Late())
    train(*model(offload=True), range(1))
    order = late.order
    assert [what for what, _ in order[:5]] == ["down", "down", "down", "wait", "up"]
    rounds = order[3:-6]
    assert len(rounds) > 6
    assert [what for what, _ in rounds] == ["wait", "up", "down"] * (len(rounds) // 3)
    assert all(rounds[k][1] == rounds[k + 2][1] for k in range(0, len(rounds), 3))


@pytest.mark.parametrize("way", ["down", "up"])
def test_a_corrupted_copy_is_noticed(way: str, use_transfer: Callable, small_slots: None) -> None:
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
    use_transfer(corrupt := CorruptOneWay())
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


def test_bits_with_a_grad_scaler(small_slots: None) -> None:
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
