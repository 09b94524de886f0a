"""What `make mutants` counts as noticed, which reasons it accepts, and which tests it runs first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.mutants.order import in_order
from tests.mutants.results import Mutant, all_mutants, changed_lines, read_reasons, reason_of, table

DIFF = """--- radam_fused/options.py
+++ radam_fused/options.py
@@ -1,2 +1,2 @@
 def check(x):
-    return x < 1
+    return x <= 1
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Mutants of a module: killed, killed by a time limit, survived, one that ended the runner, and one not tried."""
    codes = dict(
        zip((f"radam_fused.options.x_check__mutmut_{n}" for n in range(5)), (1, 152, 0, 255, None), strict=True)
    )
    (tmp_path / "radam_fused").mkdir()
    (tmp_path / "radam_fused" / "options.py.meta").write_text(json.dumps({"exit_code_by_key": codes}))
    return tmp_path


def test_what_counts_as_killed(folder: Path) -> None:
    mutants = list(all_mutants(folder))
    assert [one.fate for one in mutants] == ["killed", "killed", "survived", "unclear", "not tried"]
    assert {one.function for one in mutants} == {"radam_fused.options.check"}
    assert "| `all` | 5 | 4 | 2 | 50.0 % | 1 | 1 |" in table(mutants, {mutants[2].name: "the same"})


def test_the_function_of_a_method() -> None:
    mutant = Mutant("radam_fused.state.bucket.xǁBucketǁ_take__mutmut_12", Path("bucket.py"), "killed")
    assert mutant.function == "radam_fused.state.bucket.Bucket._take"


@pytest.mark.parametrize(
    ("changed", "accepted"),
    [
        ({}, True),
        ({"function": r"radam_fused\.options\.other"}, False),
        ({"was": "x > 1"}, False),
        ({"becomes": "x < 2"}, False),
    ],
    ids=["its own", "another function's", "another line's", "another change's"],
)
def test_a_reason_holds_for_what_it_names_alone(changed: dict[str, str], accepted: bool, tmp_path: Path) -> None:
    named = {"function": r"radam_fused\.options\.check", "was": "return x < 1", "becomes": "x <= 1", **changed}
    (tmp_path / "reasons.json").write_text(json.dumps([{"reason": "x is whole", "mutants": [named]}]))
    mutant = Mutant("radam_fused.options.x_check__mutmut_2", Path("options.py"), "survived")
    found = reason_of(mutant, changed_lines(DIFF), read_reasons(tmp_path / "reasons.json"))
    assert found == ("x is whole" if accepted else None)


def test_every_reason_can_be_read() -> None:
    assert all(one.reason and one.function for one in read_reasons())


def test_one_case_of_each_test_comes_first() -> None:
    seconds = {"t.py::a[1]": 0.1, "t.py::a[2]": 0.2, "t.py::b": 0.5, "t.py::c": 9.0}
    assert in_order(seconds, seconds, [], 1.0) == ["t.py::a[1]", "t.py::b"]
    assert in_order(seconds, seconds, [], 99.0) == ["t.py::a[1]", "t.py::b", "t.py::c", "t.py::a[2]"]
    assert in_order(seconds, seconds, ["t.py::c"], 1.0) == ["t.py::c"]


def test_tests_that_share_words_with_the_function_come_first() -> None:
    seconds = {"t/test_options.py::a": 0.1, "t/test_flat.py::b": 0.5, "t/test_flat.py::zero_grad": 0.9}
    order = in_order(seconds, seconds, [], 99.0, "radam_fused.state.flat_buffers.xǁFlatBuffersǁzero_grads")
    assert order == ["t/test_flat.py::zero_grad", "t/test_flat.py::b", "t/test_options.py::a"]
