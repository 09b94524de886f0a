"""The study of a step under DeepSpeed: the page has the numbers of its file."""

from __future__ import annotations

import json

from bench.studies.deepspeed_step import FIRST, RESULTS, lines
from tests.support.paths import ROOT


def test_the_page_has_the_committed_numbers() -> None:
    found = json.loads((ROOT / RESULTS).read_text())
    page = (ROOT / "docs" / "trainers.md").read_text()
    assert [row["stage"] for row in found["rows"]] == [1, 2, 3]
    assert all(len(ms) == found["steps"] for row in found["rows"] for ms in row["ms"].values())
    assert FIRST > 5
    assert "\n".join(lines(found)) + "\n" in page
    found["rows"][0]["ms"]["FusedRAdam"] = [1.0] * found["steps"]  # the negative control
    assert "\n".join(lines(found)) not in page
