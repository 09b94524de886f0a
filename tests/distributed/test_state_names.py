"""DTensor state has one set of names, the same in ``opt.state[p]``, in ``state_dict()`` and on every rank.

torch's `set_optimizer_state_dict` with ``flatten_optimizer_state_dict`` (torchtitan's way) reads ``opt.state[p]`` to
know what to load: a name that only the state_dict has is dropped without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

from radam_fused import FusedRAdam
from tests.distributed.ranks import Failed, Ranks
from tests.distributed.test_checkpoints import gradient
from tests.distributed.test_low_precision import FORMATS, apart, local
from tests.support.helpers import same_bits

ALL_FORMATS: dict[str, dict[str, Any]] = {
    **FORMATS,
    "fp32": {},
    "bf16-split": {"master_weights": "split"},
    "bf16-kahan": {"master_weights": "kahan"},
    "fp16": {"state_dtype": torch.float16},
}
BEFORE, AFTER = 7, 3
FLATTENED = StateDictOptions(flatten_optimizer_state_dict=True)


def made(form: str, shard: bool = True, rows: int = 1031) -> tuple[nn.Module, FusedRAdam]:
    torch.manual_seed(0)
    dtype = torch.float32 if form in ("fp32", "fp32-int8") else torch.bfloat16
    model = nn.Linear(129 if rows > 100 else 2048, rows, dtype=dtype)
    if shard:
        fully_shard(model)
    return model, FusedRAdam(model.parameters(), lr=0.01, seed=3, **ALL_FORMATS[form])


def train(model: nn.Module, optimizer: FusedRAdam, steps: range) -> list[Tensor]:
    """This rank's parts of the parameters and of their state, after some steps."""
    for t in steps:
        for k, p in enumerate(model.parameters()):
            p.grad = gradient(p, k, t)
        optimizer.step()
    params = list(model.parameters())
    return [local(t) for p in params for t in (p, *(optimizer.state[p][name] for name in sorted(optimizer.state[p])))]


def names(form: str, rows: int) -> list[list[str]]:
    """The names of each parameter's state, which both ways of asking have to give."""
    model, optimizer = made(form, rows=rows)
    train(model, optimizer, range(2))
    shown = [list(optimizer.state[p]) for p in model.parameters()]
    packed = [list(entry) for entry in optimizer.state_dict()["state"].values()]
    assert shown == packed
    return shown


@pytest.mark.sampled
@pytest.mark.parametrize("rows", [1031, 5])
@pytest.mark.parametrize("form", ALL_FORMATS)
def test_names(form: str, rows: int, ranks: Ranks) -> None:
    """Those of a plain parameter, also where a rank's part is small (two rows of five, one, or none)."""
    model, optimizer = made(form, shard=False, rows=rows)
    train(model, optimizer, range(2))
    expected = [list(optimizer.state[p]) for p in model.parameters()]
    for found in ranks.run(4, names, form, rows):
        assert found == expected


def save(form: str, folder: Path, rows: int) -> list[Tensor]:
    model, optimizer = made(form, rows=rows)
    train(model, optimizer, range(BEFORE))
    states = get_optimizer_state_dict(model, optimizer, options=FLATTENED)
    dcp.save({"model": get_model_state_dict(model), "optimizer": states}, checkpoint_id=folder)
    return train(model, optimizer, range(BEFORE, BEFORE + AFTER))


def load(form: str, folder: Path, rows: int, forgotten: str | None = None) -> list[Tensor]:
    """As torchtitan does: what to load is read from ``opt.state``."""
    model, optimizer = made(form, rows=rows)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(9.0)
    states = get_optimizer_state_dict(model, optimizer, options=FLATTENED)
    parts = {"model": get_model_state_dict(model), "optimizer": states}
    dcp.load(parts, checkpoint_id=folder)
    set_model_state_dict(model, parts["model"])
    if forgotten is not None:
        states = {key: value for key, value in states.items() if not key.endswith(forgotten)}
    set_optimizer_state_dict(model, optimizer, states, options=FLATTENED)
    return train(model, optimizer, range(BEFORE, BEFORE + AFTER))


@pytest.mark.sampled
@pytest.mark.parametrize("rows", [1031, 5])
@pytest.mark.parametrize("form", ALL_FORMATS)
def test_a_tool_that_reads_the_state_loses_nothing(form: str, rows: int, ranks: Ranks, tmp_path: Path) -> None:
    ended = ranks.run(4, save, form, tmp_path, rows)
    for ours, theirs in zip(ended, ranks.run(4, load, form, tmp_path, rows), strict=True):
        assert len(ours) == len(theirs)
        assert all(map(same_bits, ours, theirs))
    if rows != 5:
        whole = torch.cat([values[0] for values in ended])
        for world in (1, 3):
            found = torch.cat([values[0] for values in ranks.run(world, load, form, tmp_path, rows)])
            assert apart(found, whole) < 0.01


@pytest.mark.parametrize(("form", "forgotten"), [("bf16-split", "master_low"), ("int8", "exp_avg_octave_code")])
def test_a_name_that_is_lost(form: str, forgotten: str, ranks: Ranks, tmp_path: Path) -> None:
    """The negative control: without one of the names the load is refused."""
    ranks.run(2, save, form, tmp_path, 1031)
    for outcome in ranks.outcomes(2, load, form, tmp_path, 1031, forgotten):
        assert isinstance(outcome, Failed)
        assert forgotten in outcome.message


def _read_entry_by_entry(optimizer: FusedRAdam, packed: dict[str, Any]) -> dict[str, Any]:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return {k: {name: packed["state"][k][name] for name in optimizer.state[p]} for k, p in enumerate(params)}


def _shown(optimizer: FusedRAdam, packed: dict[str, Any]) -> dict[str, Any]:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return {k: {name: value.clone() for name, value in optimizer.state[p].items()} for k, p in enumerate(params)}


def either(form: str, way: Callable[[FusedRAdam, dict[str, Any]], dict[str, Any]]) -> tuple[list[Tensor], list[Tensor]]:
    """A run, and one that goes on from its state by one of the two ways."""
    model, optimizer = made(form)
    train(model, optimizer, range(BEFORE))
    packed = optimizer.state_dict()
    packed = {**packed, "state": way(optimizer, packed)}
    again, resumed = made(form)
    again.load_state_dict(model.state_dict())
    resumed.load_state_dict(packed)
    steps = range(BEFORE, BEFORE + AFTER)
    return train(model, optimizer, steps), train(again, resumed, steps)


@pytest.mark.sampled
@pytest.mark.parametrize("way", [_read_entry_by_entry, _shown])
@pytest.mark.parametrize("form", ALL_FORMATS)
def test_it_loads_by_either(form: str, way: Any, ranks: Ranks) -> None:
    for ours, theirs in ranks.run(2, either, form, way):
        assert all(map(same_bits, ours, theirs))


def gathered(form: str, to: str) -> tuple[list[Tensor], list[Tensor]]:
    """Whole tensors on one rank, sent to all; or on all, as plain tensors."""
    model, optimizer = made(form)
    train(model, optimizer, range(BEFORE))
    everywhere = to == "load_state_dict"
    options = StateDictOptions(full_state_dict=True, cpu_offload=not everywhere)
    states = get_optimizer_state_dict(model, optimizer, options=options)
    again, resumed = made(form)
    again.load_state_dict(model.state_dict())
    if everywhere:
        packed = {name: dict(entry) for name, entry in states["state"].items()}
        resumed.load_state_dict(
            {**resumed.state_dict(), "state": dict(enumerate(packed[n] for n in ("weight", "bias")))}
        )
    else:
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_optimizer_state_dict(again, resumed, states, options=options)
    steps = range(BEFORE, BEFORE + AFTER)
    return train(model, optimizer, steps), train(again, resumed, steps)


@pytest.mark.sampled
@pytest.mark.parametrize("to", ["broadcast", "load_state_dict"])
@pytest.mark.parametrize("form", ALL_FORMATS)
def test_whole_tensors(form: str, to: str, ranks: Ranks) -> None:
    for ours, theirs in ranks.run(2, gathered, form, to):
        assert all(map(same_bits, ours, theirs))


def old_names(form: str) -> tuple[list[Tensor], list[Tensor]]:
    """A state_dict with the names that state_dict() gave before: ratios and roots for codes, a master for low bits.

    The codes were others, so a run with codes goes on from what those ratios and roots stand for, in float32.
    """
    from radam_fused.state.codec import CODES, RATIO, first_and_root, wrapped

    model, optimizer = made(form)
    train(model, optimizer, range(BEFORE))
    packed, plain = optimizer.state_dict(), optimizer.state_dict()
    for k, p in enumerate(model.parameters()):
        entry, shown = packed["state"][k], optimizer.state[p]
        if CODES[0] in shown:
            m, root = first_and_root({name: getattr(shown[name], "_local_tensor", shown[name]) for name in CODES})
            ratio = torch.where(root > 0.0, m / root, 0.0)
            entry = {name: value for name, value in entry.items() if name not in CODES}
            moments = {"exp_avg": ratio * root, "exp_avg_sq": root.square()}
            plain["state"][k] = {**entry, **{name: wrapped(p, value) for name, value in moments.items()}}
            entry |= {name: wrapped(p, value) for name, value in zip(RATIO, (ratio, root), strict=True)}
        if "master_low" in entry:
            low = entry.pop("master_low").to_local()
            bits = (p.to_local().detach().view(torch.int16).int() << 16) + low.int()
            entry["master"] = wrapped(p, bits.view(torch.float32))
        packed["state"][k] = entry
    optimizer.load_state_dict(plain)
    again, resumed = made(form)
    again.load_state_dict(model.state_dict())
    resumed.load_state_dict(packed)
    steps = range(BEFORE, BEFORE + AFTER)
    return train(model, optimizer, steps), train(again, resumed, steps)


@pytest.mark.parametrize("form", ["int8", "int8-split", "bf16-split"])
def test_the_names_of_before_load(form: str, ranks: Ranks) -> None:
    for ours, theirs in ranks.run(2, old_names, form):
        assert all(map(same_bits, ours, theirs))


def spoilt(key: str, change: str) -> None:
    model, optimizer = made("int8-split")
    train(model, optimizer, range(2))
    packed = optimizer.state_dict()
    entry = packed["state"][0]
    if change == "shape":
        entry[key] = torch.zeros(3)
    else:
        entry[key].to_local().fill_(1 << 15)
    optimizer.load_state_dict(packed)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("exp_avg_scale", "shape", "'exp_avg_scale' of .* has shape"),
        ("master_low", "value", "'master_low' of .* holds 32768: must be integers from -32768 to 32767"),
    ],
)
def test_what_does_not_fit_is_refused(key: str, change: str, message: str, ranks: Ranks) -> None:
    import re

    for outcome in ranks.outcomes(2, spoilt, key, change):
        assert isinstance(outcome, Failed)
        assert outcome.name == "ValueError"
        assert re.search(message, outcome.message)


def complex_run(form: str) -> tuple[list[Tensor], list[Tensor]]:
    """A complex matrix, whose moments in few bits are of real numbers: two columns an element."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    runs = []
    for _ in range(2):
        whole = torch.randn(101, 64, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
        p = nn.Parameter(distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None))
        runs.append((nn.ParameterList([p]), FusedRAdam([p], lr=0.01, **COMPLEX_FORMATS[form])))
    (model, optimizer), (again, resumed) = runs
    train(model, optimizer, range(BEFORE))
    again.load_state_dict(model.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    steps = range(BEFORE, BEFORE + AFTER)
    return train(model, optimizer, steps), train(again, resumed, steps)


COMPLEX_FORMATS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"state_dtype": torch.bfloat16},
    "fp16": {"state_dtype": torch.float16},
    "int8": {"state_dtype": torch.int8},
}


@pytest.mark.parametrize("form", COMPLEX_FORMATS)
def test_complex(form: str, ranks: Ranks) -> None:
    for ours, theirs in ranks.run(2, complex_run, form):
        assert all(map(same_bits, ours, theirs))
