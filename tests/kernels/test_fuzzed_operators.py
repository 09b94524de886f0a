"""Every operator with valid arguments of which some are mutated: the bits of `reference`, or an error and no write.

`radam_fused::step_from_pointers` has no CPU kernel; tests/kernels/test_hostile_functions.py has the functions of C.
"""

from __future__ import annotations

import collections
import contextlib
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

pytest.importorskip("hypothesis", reason="requirements/dev.txt has it")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radam_fused.backends.ops import OPERATORS
from radam_fused.cpp_helpers import HAS_LOOPS
from radam_fused.numerics.tensor_checks import is_stored
from tests.support.operator_mutations import FORMATS, LISTS, OTHERS, TENSORS, VALID, WRITTEN, Arguments

if not HAS_LOOPS:
    pytest.skip("the extension is not built", allow_module_level=True)

LONG = 6000
seen: collections.Counter[str] = collections.Counter()
Mutation = tuple[str, int, str]
"""An argument, an index where it is a list (-1: the list itself), and what is done with it."""


def apply(arguments: Arguments, mutation: Mutation) -> None:
    """Mutates an argument; a mutation that does not apply to it leaves it as it is."""
    name, index, how = mutation
    value = arguments[name]
    target = value[index] if index >= 0 and isinstance(value, list) and index < len(value) else value
    if isinstance(target, Tensor) and memory(target) is not None and not is_stored(target):
        return  # what was freed stays so: torch itself would read it
    with contextlib.suppress(Exception):  # a shape of which it makes no sense, say
        if how.startswith("shares "):
            _, other, place = how.split(" ")
            shared = arguments[other][int(place)] if isinstance(arguments[other], list) else arguments[other]
            size = (value[index] if index >= 0 else value).shape
            made = shared.view(-1)[: size.numel()].view(size)
        elif index >= 0:
            made = TENSORS[how](value[index])
        elif isinstance(value, list):
            made = LISTS[how](value)
        else:
            made = TENSORS[how](value) if isinstance(value, Tensor) else OTHERS[how]
        if index >= 0:
            value[index] = made
        else:
            arguments[name] = made


@st.composite
def mutations(draw: Any, arguments: Arguments) -> list[Mutation]:
    found = []
    for _ in range(draw(st.integers(1, 4))):
        name = draw(st.sampled_from(sorted(arguments)))
        value, index = arguments[name], -1
        if isinstance(value, list) and draw(st.booleans()):
            index = draw(st.integers(0, len(value) - 1))
        if index >= 0 or isinstance(value, Tensor):
            hows = list(TENSORS)
            if draw(st.integers(0, 9)) == 0:
                other = draw(st.sampled_from(sorted(n for n, v in arguments.items() if isinstance(v, Tensor | list))))
                hows = [f"shares {other} {draw(st.integers(0, 2))}"]
        else:
            hows = list(LISTS if isinstance(value, list) else OTHERS)
        found.append((name, index, draw(st.sampled_from(hows))))
    return found


def tensors_of(arguments: Arguments) -> list[tuple[str, Tensor]]:
    flat = [(name, t) for name, value in arguments.items() for t in (value if isinstance(value, list) else [value])]
    return [(name, t) for name, t in flat if isinstance(t, Tensor)]


def memory(tensor: Tensor) -> Tensor | None:
    """All bytes of a tensor's storage, guards included."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor._is_zerotensor():
        return None
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def numbers(tensor: Tensor) -> Tensor:
    """A storage for comparison: of two NaNs the bits may differ."""
    found = memory(tensor)
    assert found is not None
    if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
        return found
    whole = found.view(tensor.dtype)
    return torch.where(whole.isnan(), torch.full_like(whole, float("nan")), whole).view(torch.uint8)


def call(backend: str, op: str, arguments: Arguments) -> list[Tensor] | Exception:
    try:
        # torch's message for a wrong type prints the arguments, and printing a tensor whose storage was freed crashes.
        with torch.no_grad(), mock.patch.object(Tensor, "__repr__", return_value="a tensor"):
            result = getattr(OPERATORS[backend], op)(*arguments.values())
    except Exception as error:  # any is fine
        return error
    return [result] if isinstance(result, Tensor) else list(result or ())


def check(op: str, form: str, rule: int, changes: list[Mutation], backend: str = "cpu") -> str:
    """Calls the operator and `reference` with the same arguments; returns what has happened.

    Raises:
        AssertionError: a write where none may be, or other bits than those of `reference`.
    """
    ours, theirs = VALID[op](form, rule), VALID[op](form, rule)
    for mutation in changes:
        apply(ours, mutation)
        apply(theirs, mutation)
    pairs = [
        (n, t, q) for (n, t), (_, q) in zip(tensors_of(ours), tensors_of(theirs), strict=True) if memory(t) is not None
    ]
    # A copy-on-write tensor gets memory of its own at the first write.
    before = [memory(t).clone() for _, t, _ in pairs]
    addresses = [t.untyped_storage()._cdata for _, t, _ in pairs]
    found, expected = call(backend, op, ours), call("reference", op, theirs)
    if isinstance(found, Exception):
        for (name, t, _), bytes_before in zip(pairs, before, strict=True):
            assert torch.equal(memory(t), bytes_before), f"{name} was written, and then {found!r}"
        return "refused"
    shared = any(how.startswith("shares") or how == "twice the same" for _, _, how in changes)
    for (name, t, _), bytes_before, address in zip(pairs, before, addresses, strict=True):
        others = [n for (n, u, _), a in zip(pairs, addresses, strict=True) if a == address]
        if not set(others) & set(WRITTEN[op]):
            assert torch.equal(memory(t), bytes_before), f"{name} was written"
    assert not isinstance(expected, Exception) or shared, f"accepted, but reference says {expected!r}"
    if shared or isinstance(expected, Exception):  # the order of reads and writes is then another
        return "shared"
    for name, t, q in pairs:
        assert torch.equal(numbers(t), numbers(q)), f"{name}: other bits than reference"
    for a, b in zip(found, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert torch.equal(numbers(a.contiguous()), numbers(b.contiguous())), "result: other bits than reference"
    return "same bits"


@st.composite
def examples(draw: Any) -> tuple[str, str, int, list[Mutation]]:
    op, form, rule = (
        draw(st.sampled_from(sorted(VALID))),
        draw(st.sampled_from(sorted(FORMATS))),
        draw(st.integers(1, 12)),
    )
    return op, form, rule, draw(mutations(VALID[op](form, rule)))


def configured(count: int) -> Any:
    return settings(
        max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )


@configured(200)
@given(examples())
def test_mutated_arguments(example: tuple[str, str, int, list[Mutation]]) -> None:
    seen[f"{example[0]}: {check(*example)}"] += 1


@pytest.mark.long
@configured(LONG)
@given(examples())
def test_many_mutated_arguments(example: tuple[str, str, int, list[Mutation]]) -> None:
    seen[f"{example[0]}: {check(*example)}"] += 1


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("op", VALID)
def test_the_arguments_themselves_are_valid(op: str, form: str) -> None:
    for rule in (1, 2, 3, 12):
        assert check(op, form, rule, []) == "same bits"


@pytest.mark.parametrize("where", [-1, 300, 10**4])
def test_a_write_outside_is_noticed(where: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: an operator that writes an element too many, and one that writes and then raises."""
    real = OPERATORS["cpu"]

    def interfering(params: list[Tensor], *rest: Any) -> None:
        if where < 10**4:
            real.step(params, *rest)
        params[0].as_strided((1,), (1,), params[0].storage_offset() + min(where, 0))[0] += 1.0
        if where == 10**4:
            raise RuntimeError("played")
        params[0].as_strided((1,), (1,), params[0].storage_offset() + where)[0] += 1.0

    monkeypatch.setitem(OPERATORS, "cpu", real._replace(step=interfering))
    with pytest.raises(AssertionError, match="params"):
        check("step", "fp32", 5, [])
