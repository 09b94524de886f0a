"""Memory that runs out at each allocation of a call in turn: the call is done whole, or it leaves no trace.

Two kinds of allocations fail everywhere: `operator new` called from the extension, and the memory of tensors.
libtorch's own small objects and CPython's are left out but for steps over the pointer table, as torch and CPython 3.11
do not survive all of theirs: of 190 allocations of a step under ``flatten`` 16 end the process in libtorch (12 by
signal 11 and 4 by `std::terminate`, most of them where DLPack makes a view), and a comprehension of CPython 3.11 and
torch's `record_function` end it by signal 11.

Each test is a process of its own, with a library preloaded that fails the allocations.
"""

from __future__ import annotations

import pytest

from radam_fused.cpp_helpers import HAS_POINTER_PATH
from tests.support.allocation_cases import CASES
from tests.support.failing_allocations import EXTENSION, LIBTORCH, PYTHON, TENSOR_MEMORY, run
from tests.support.sampling import WHOLE

if not HAS_POINTER_PATH:
    pytest.skip("the extension is not built", allow_module_level=True)

QUICK = ["step-cpu-one", "step-cpu-several", "missing-cpu-several", "zero_grad-flatten-one", "load-cpu-one"]
OTHERS = [name for name in CASES if name not in QUICK]
"""All under ``make faults``; otherwise one in five."""
POINTERS = ["step-cpu-one", "step-cpu-several", "step-int8-one", "step-zero_grads-one"]
"""Steps over the pointer table alone: survivable whatever fails."""


def test_a_step_and_a_load() -> None:
    seen = run(EXTENSION | TENSOR_MEMORY, QUICK)
    assert all(seen[name] for name in QUICK), "of each some allocation must have failed"


@pytest.mark.long
@pytest.mark.parametrize("name", OTHERS if WHOLE else OTHERS[::5])
def test_every_call(name: str) -> None:
    run(EXTENSION | TENSOR_MEMORY, [name])


@pytest.mark.long
@pytest.mark.parametrize("kinds", [LIBTORCH, PYTHON], ids=["libtorch", "CPython"])
def test_steps_over_the_pointer_table_survive_everything(kinds: int) -> None:
    assert all(run(kinds, POINTERS).values())


@pytest.mark.long
def test_an_exception_does_not_leave_read_pairs() -> None:
    """It would end the process."""
    assert run(EXTENSION, ["read_pairs"])["read_pairs"]


@pytest.mark.long
def test_buckets_that_are_stepped_one_by_one_are_noticed() -> None:
    """The negative control."""
    with pytest.raises(AssertionError, match="changed, step-cpu-several"):
        run(EXTENSION | TENSOR_MEMORY, ["step-cpu-several"], "--one-by-one")
