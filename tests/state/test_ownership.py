"""The state belongs to the user: moments assigned, moved, replaced or dropped, and whose memory that frees."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam
from radam_fused.state.bucket_builder import BucketBuilder
from tests.support.helpers import same_bits
from tests.support.mixed_dtypes import step

OPTIONS: dict[str, dict[str, Any]] = {
    "cpu": {},
    "reference": {"backend": "reference"},
    "flatten": {"flatten": True},
    "bf16": {"state_dtype": torch.bfloat16},
    "int8": {"state_dtype": torch.int8},
    "clipped": {"max_grad_norm": 1e9},
    "capturable": {"capturable": True},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def pair(count: int = 3, size: int = 5000, **options: Any) -> tuple[list[nn.Parameter], FusedRAdam]:
    params = [nn.Parameter(torch.linspace(-1.0, 1.0, size + k)) for k in range(count)]
    return params, FusedRAdam(params, lr=0.01, **options)


def same(opts: tuple[FusedRAdam, FusedRAdam]) -> bool:
    a, b = (opt.state_dict()["state"] for opt in opts)
    return all(same_bits(a[k][name], b[k][name]) for k in a for name in a[k])


def counting_layouts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many buckets each layout made, from now on."""
    made: list[int] = []
    build = BucketBuilder.build

    def noting(self: BucketBuilder, *args: Any) -> Any:
        result = build(self, *args)
        made.append(len(result))
        return result

    monkeypatch.setattr(BucketBuilder, "build", noting)
    return made


HOMES: dict[str, Callable[[dict[str, Any], str], None]] = {
    "data": lambda entry, key: setattr(entry[key], "data", entry[key].data.clone()),
    "set_": lambda entry, key: entry[key].set_(entry[key].clone()),
    "item": lambda entry, key: entry.__setitem__(key, entry[key].clone()),
    "update": lambda entry, key: entry.update({key: entry[key].clone()}),
    "pop": lambda entry, key: entry.__setitem__(key, entry.pop(key).clone()),
    "share_memory_": lambda entry, key: entry[key].share_memory_(),
}


@pytest.mark.parametrize("move", HOMES.values(), ids=HOMES)
@each_option
def test_moments_in_a_new_home_go_on(options: dict[str, Any], move: Callable[[dict[str, Any], str], None]) -> None:
    """The same values elsewhere: nothing changes, and what is shown is what is stepped, in every later step."""
    both = pair(**options), pair(**options)
    for t in range(7):
        for params, opt in both:
            step(params, opt, t)
    params, opt = both[0]
    for key in list(opt.state[params[1]]):
        move(opt.state[params[1]], key)
    if move is HOMES["share_memory_"]:
        with pytest.warns(UserWarning, match="is in shared memory; FusedRAdam copies its values"):
            opt.state_dict()
    for t in range(7, 12):
        for params, opt in both:
            step(params, opt, t)
    assert same((both[0][1], both[1][1]))
    assert all(same_bits(p, q) for p, q in zip(both[0][0], both[1][0], strict=True))


@pytest.mark.parametrize(
    ("count", "held"), [(3, False), (3, True), (400, False)], ids=["few", "few_old_memory_held", "many"]
)
def test_assigned_moments_are_used_from_the_next_step_on(count: int, held: bool) -> None:
    params, opt = pair(count, size=16)
    expected, other = pair(count, size=16)
    for t in range(7):
        step(params, opt, t)
        step(expected, other, t)
    kept = []
    for each, where in ((params, opt), (expected, other)):
        entry = where.state[each[count // 2]]
        kept.append(entry["exp_avg"].data if held else None)
        value = torch.full_like(entry["exp_avg"], 3.0)
        if where is opt:
            entry["exp_avg"].data = value
        else:
            entry["exp_avg"].copy_(value)
    step(params, opt, 7)
    step(expected, other, 7)
    assert same((opt, other))


def test_by_turns_every_view_is_looked_at() -> None:
    """Of 400 tensors, one whose old memory is held: seen within a round of looks, and in state_dict at once."""
    params, opt = pair(400, size=16)
    step(params, opt, 0)
    entry = opt.state[params[211]]
    old = entry["exp_avg"].data
    entry["exp_avg"].data = torch.zeros_like(old)
    assert opt._bucket_manager.buckets[0].intact()
    opt.state_dict()
    assert opt.state[params[211]]["exp_avg"].data_ptr() not in (0, old.data_ptr())
    before = opt.state[params[211]]["exp_avg"].clone()
    step(params, opt, 1)
    assert not torch.equal(opt.state[params[211]]["exp_avg"], before)


def test_an_assignment_that_is_not_seen_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: without the look at the views, the step would go on with the old moments."""
    monkeypatch.setattr("radam_fused.state.views.views_intact", lambda *_: True)
    params, opt = pair()
    step(params, opt, 0)
    opt.state[params[0]]["exp_avg"].data = torch.full_like(params[0], 3.0)
    step(params, opt, 1)
    assert (opt.state[params[0]]["exp_avg"] == 3.0).all()


def test_moments_of_another_shape_are_refused_by_name() -> None:
    params, opt = pair()
    step(params, opt, 0)
    opt.state[params[1]]["exp_avg"].data = torch.zeros(3)
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=r"'exp_avg' of param_groups\[0\]\['params'\]\[1\] has shape \(3,\)"):
        opt.step()
    assert all(same_bits(p, q) for p, q in zip(params, before, strict=True))


# Memory.


DROPS: dict[str, Callable[[FusedRAdam], None]] = {
    "items": lambda opt: (
        [e.__setitem__(k, v.double()) for e in opt.state.values() for k, v in list(e.items())] and None
    ),
    "entries": lambda opt: opt.state.update({p: {k: v.clone() for k, v in e.items()} for p, e in opt.state.items()}),
    "clear": lambda opt: opt.state.clear(),
    "clear_entries": lambda opt: [e.clear() for e in opt.state.values()] and None,
}


@pytest.mark.parametrize("drop", DROPS.values(), ids=DROPS)
@pytest.mark.parametrize("options", [{}, {"flatten": True}], ids=["tensors", "flatten"])
def test_state_moved_off_frees_its_memory_at_once(drop: Callable[[FusedRAdam], None], options: dict[str, Any]) -> None:
    params, opt = pair(**options)
    step(params, opt, 0)
    view = opt.state[params[0]]["exp_avg"]
    storage = torch.multiprocessing.reductions.StorageWeakRef(opt._bucket_manager.buckets[0].exp_avg.untyped_storage())
    drop(opt)
    assert not storage.expired()  # the view that is held here keeps it
    del view
    gc.collect()
    assert storage.expired()


def test_a_whole_parameter_replaced_by_its_shard_is_not_kept_alive() -> None:
    whole = [nn.Parameter(torch.ones(50)) for _ in range(2)]
    opt = FusedRAdam(whole, lr=0.01)
    refs = [weakref.ref(p) for p in whole]
    opt.param_groups[0]["params"] = [nn.Parameter(p.detach()[:25].clone()) for p in whole]
    del whole
    gc.collect()
    assert all(ref() is None for ref in refs)
    for p in opt.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    opt.step()
    assert all(float(opt.state[p]["step"]) == 1.0 for p in opt.param_groups[0]["params"])


@each_option
def test_a_step_after_the_state_was_dropped_starts_again(options: dict[str, Any]) -> None:
    params, opt = pair(**options)
    for t in range(3):
        step(params, opt, t)
    opt.state.clear()
    step(params, opt, 3)
    assert [float(opt.state[p]["step"]) for p in params] == [1.0] * 3


# What else the user keeps there.


def test_an_entry_that_the_user_adds_costs_no_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    params, opt = pair()
    step(params, opt, 0)
    made = counting_layouts(monkeypatch)
    for t in range(1, 6):
        for p in params:
            opt.state[p]["ema"] = torch.full_like(p, float(t))
        opt.state["note"] = {"t": t}
        step(params, opt, t)
    assert sum(made) == 0
    assert all((opt.state[p]["ema"] == 5.0).all() for p in params)
    opt.state[params[0]]["exp_avg"] = opt.state[params[0]]["exp_avg"].clone()  # the negative control
    step(params, opt, 6)
    assert sum(made) == 1
    assert all((opt.state[p]["ema"] == 5.0).all() for p in params)


def test_an_entry_that_the_user_adds_is_loaded_as_torch_does() -> None:
    p = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    ours, theirs = FusedRAdam([p]), torch.optim.RAdam([p])
    for opt in (ours, theirs):
        p.grad = torch.ones_like(p)
        opt.step()
        opt.state[p]["ema"] = torch.full((4,), 1.5, dtype=torch.float32)
        opt.state[p]["count"] = 3
        opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert ours.state[p]["ema"].dtype == theirs.state[p]["ema"].dtype == torch.bfloat16
    assert ours.state[p]["count"] == 3
    assert ours.state[p]["exp_avg"].dtype == torch.float32


# Views with storages of their own.


@each_option
@pytest.mark.parametrize("way", ["torch.save", "pickle", "deepcopy"])
def test_one_entry_brings_its_own_bytes_alone(options: dict[str, Any], way: str) -> None:
    params, opt = pair(count=40, **options)
    step(params, opt, 0)
    entry = opt.state[params[3]]
    own = sum(t.numel() * t.element_size() for t in entry.values())
    if way == "deepcopy":
        copied = copy.deepcopy(entry)
        assert sum(t.untyped_storage().nbytes() for t in copied.values()) == own
    else:
        file = io.BytesIO()
        (torch.save if way == "torch.save" else pickle.dump)(entry, file)
        assert own < len(file.getvalue()) < own + 6000
    assert all(t.untyped_storage().nbytes() == t.numel() * t.element_size() for t in entry.values())


def test_views_keep_their_buffer_alive() -> None:
    params, opt = pair()
    step(params, opt, 0)
    view = opt.state[params[0]]["exp_avg"]
    value = view.clone()
    del opt, params
    gc.collect()
    junk: list[Tensor] = [torch.full((15003,), 7.0) for _ in range(20)]
    assert same_bits(view, value)
    del junk
