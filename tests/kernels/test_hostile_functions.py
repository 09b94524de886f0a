"""Every function of the extension's modules with hostile arguments: an exception, or an answer, and no write elsewhere.

Some functions take addresses of tables that the package itself has made. An address cannot be checked; all else is.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("hypothesis", reason="requirements/dev.txt has it")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radam_fused import cpp_helpers
from radam_fused.options import GROUP_DEFAULTS

if not cpp_helpers.HAS_LOOPS:
    pytest.skip("the extension is not built", allow_module_level=True)

from radam_fused import _C
from tests.support.hostile_calls import CANARY, GUARD, LONGEST, Call, guarded, pointer_calls


def calls() -> dict[str, Callable[[], Call]]:
    def unchanged() -> Call:
        p = nn.Parameter(torch.ones(2))
        groups, state = [{"params": [p]}], {p: 1}
        ids = torch.tensor([1, id(state[p]), 1, 1, id(p), 0, 0, 0])
        return Call((groups, state, ids.data_ptr()), frozenset({(2,)}), [], [ids])

    def counts_shown() -> Call:
        shown, taken = guarded(1, torch.float32), guarded(1, torch.float64)
        at = (shown[GUARD:].data_ptr(), taken[GUARD:].data_ptr(), 1)
        return Call(at, frozenset({(0,), (1,)}), [shown, taken])

    def views() -> tuple[Tensor, list[Tensor]]:
        tensors = [torch.ones(3)]
        places = guarded(2 * LONGEST, torch.int64)
        _C.record_views(tensors, places[GUARD:].data_ptr())
        return places, tensors

    def record_views() -> Call:
        places, tensors = views()
        return Call((tensors, places[GUARD:].data_ptr()), frozenset({(1,)}), [places])

    def views_intact() -> Call:
        places, tensors = views()
        return Call((places[GUARD:].data_ptr(), 1), frozenset({(0,)}), [places], tensors)

    def record_params() -> Call:
        places = guarded(5 * LONGEST, torch.int64)
        return Call(([nn.Parameter(torch.ones(3))], places[GUARD:].data_ptr()), frozenset({(1,)}), [places])

    def write_scalars() -> Call:
        rows, taken = guarded(11, torch.float64), torch.zeros(1, dtype=torch.float64)
        group = {**GROUP_DEFAULTS, "params": [], "differentiable": False}
        arguments = (rows[GUARD:].data_ptr(), [group], [(0, 0)], taken.data_ptr())
        # The last number is a place in the array at `taken`, whose length is known to who made it alone.
        return Call(arguments, frozenset({(0,), (3,), (2, 0, 1)}), [rows], [taken])

    def find_tensor_offset() -> Call:
        sample = torch.ones(3)
        given = [(sample, sample._cdata, sample.data_ptr(), 3)]
        begin, end = object.__basicsize__, torch._C.TensorBase.__basicsize__
        return Call((Tensor, nn.Parameter, given, begin, end), frozenset({(2, 0, 1), (3,), (4,)}), [], [sample])

    return {
        "cpu_capability": lambda: Call(()),
        "unchanged": unchanged,
        "counts_shown": counts_shown,
        "record_views": record_views,
        "views_intact": views_intact,
        "share_no_memory": lambda: Call(([torch.ones(3), torch.ones(4)],)),
        "write_scalars": write_scalars,
        "find_tensor_offset": find_tensor_offset,
        "record_params": record_params,
        "gradients": lambda: Call(([nn.Parameter(torch.ones(3))],)),
        **pointer_calls(),
    }


CALLS = calls()


class ShrinksItsList:
    """Its gradient is read, and the list that is being read is emptied."""

    def __init__(self, owner: list[Any]) -> None:
        self.owner = owner

    @property
    def grad(self) -> None:
        self.owner.clear()


def shrinking() -> list[Any]:
    made: list[Any] = []
    made.extend(ShrinksItsList(made) for _ in range(20))
    return made


HOSTILE: dict[str, Callable[[], Any]] = {
    **{repr(value): lambda value=value: value for value in (None, True, 0, -1, 2**31, -(2**63), 2**64, 10**400, 0.5)},
    **{repr(value): lambda value=value: value for value in ("text", b"bytes", (), [], {}, (1,) * 6, [None], [(0, 0)])},
    "nan": lambda: float("nan"),
    "object": object,
    "class": lambda: int,
    "empty tensor": lambda: torch.zeros(0),
    "meta tensor": lambda: torch.zeros(3, device="meta"),
    "sparse tensor": lambda: torch.ones(3).to_sparse(),
    "tensors": lambda: [torch.zeros(3, device="meta"), torch.ones(3).to_sparse()],
    "other tensors": lambda: [nn.Parameter(torch.ones(2)), object()],
    "shrinking": shrinking,
    "bad groups": lambda: [{"lr": 10**400}, None],
    "bad pairs": lambda: [(5, 0), (-1, 0), "no", None],
    "negative pair": lambda: [(-1, 0)],
    "text pair": lambda: ["no"],
}
COUNTS = frozenset({"2147483648"})
"""Not for numbers of entries: a table's length is known to who made it alone, as its address is."""


def places(arguments: tuple[Any, ...] | list[Any], above: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for index, value in enumerate(arguments):
        found.append((*above, index))
        if isinstance(value, tuple | list):
            found.extend(places(value, (*above, index)))
    return found


def replaced(arguments: Any, place: tuple[int, ...], value: Any) -> Any:
    inner = value if len(place) == 1 else replaced(arguments[place[0]], place[1:], value)
    return type(arguments)([*arguments[: place[0]], inner, *arguments[place[0] + 1 :]])


def has_no_address(call: Call, place: tuple[int, ...]) -> bool:
    """A tuple that holds addresses may be replaced by something that is no tuple."""
    return place not in call.addresses


def attempt(name: str, place: tuple[int, ...] | None, hostile: str, shorter: bool = False) -> None:
    call = CALLS[name]()
    arguments = call.arguments
    if place is not None:
        value = HOSTILE[hostile]()
        is_count = isinstance(_at(arguments, place), int) and hostile in COUNTS
        holds_addresses = any(address[: len(place)] == place for address in call.addresses) and isinstance(value, tuple)
        if not has_no_address(call, place) or is_count or (holds_addresses and value):
            return
        arguments = replaced(arguments, place, value)
    if shorter:
        arguments = arguments[:-1]
    with contextlib.suppress(Exception):
        call_function(name, arguments)
    for tensor in call.memory:
        assert (tensor[:GUARD] == CANARY).all()
        assert (tensor[-GUARD:] == CANARY).all()


def _at(arguments: Any, place: tuple[int, ...]) -> Any:
    for index in place:
        arguments = arguments[index]
    return arguments


def call_function(name: str, arguments: Iterable[Any]) -> Any:
    """A call; `find_tensor_offset` notes what it has found, so the package's own call of it is repeated."""
    try:
        return getattr(_C, name)(*arguments)
    finally:
        if name == "find_tensor_offset":
            samples = [(t, t._cdata, t.data_ptr(), t.numel()) for t in cpp_helpers._SAMPLES]
            bounds = object.__basicsize__, torch._C.TensorBase.__basicsize__
            assert _C.find_tensor_offset(Tensor, nn.Parameter, samples, *bounds)


def test_every_function_is_driven() -> None:
    for module in ("_C", "_C_cuda"):
        text = (Path(cpp_helpers.__file__).parent / f"{module}.pyi").read_text()
        names = {node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
        if module == "_C":
            assert names == set(CALLS)
            assert names == {name for name in dir(_C) if not name.startswith("_")}
        else:
            assert names == {"cuda_version", "architectures", "code"}, "functions without arguments need no test"


@pytest.mark.parametrize("name", CALLS)
def test_the_call_itself_works(name: str) -> None:
    call = CALLS[name]()
    assert call_function(name, call.arguments) is not False or name in ("unchanged", "pairs_unmoved")


@pytest.mark.parametrize("name", CALLS)
def test_every_argument_is_replaced_by_everything(name: str) -> None:
    for place in places(CALLS[name]().arguments):
        for hostile in HOSTILE:
            attempt(name, place, hostile)
    attempt(name, None, "", shorter=True)


@settings(max_examples=300, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_several_arguments_at_once(data: Any) -> None:
    name = data.draw(st.sampled_from(sorted(CALLS)))
    call = CALLS[name]()
    chosen = [place for place in range(len(call.arguments)) if not any(a[0] == place for a in call.addresses)]
    arguments = list(call.arguments)
    for place in data.draw(st.sets(st.sampled_from(chosen), max_size=3)) if chosen else ():
        hostile = data.draw(st.sampled_from(sorted(HOSTILE.keys() - COUNTS)))
        arguments[place] = HOSTILE[hostile]()
    with contextlib.suppress(Exception):
        call_function(name, arguments)
    for tensor in call.memory:
        assert (tensor[:GUARD] == CANARY).all()
        assert (tensor[-GUARD:] == CANARY).all()


def test_a_write_outside_is_noticed() -> None:
    """The negative control: a list longer than its table."""
    call = CALLS["record_params"]()
    _C.record_params([nn.Parameter(torch.ones(3)) for _ in range(LONGEST + 1)], call.arguments[1])
    assert not (call.memory[0][-GUARD:] == CANARY).all()
