"""Every block of docs/trainers.md runs as it stands, on two ranks."""

from __future__ import annotations

import pytest

from tests.distributed.ranks import Failed, Ranks
from tests.tools import page_runs

TITLES = [title for title in page_runs.blocks(page_runs.page()) if title != "The blocks"]


@pytest.mark.parametrize("title", TITLES)
def test_a_block_runs(title: str, ranks: Ranks) -> None:
    ranks.run(2, page_runs.run, title, page_runs.page())


def test_there_are_no_other_blocks() -> None:
    assert page_runs.page().count("```python") == len(TITLES) + 1 > 14


def test_a_wrong_block_is_found(ranks: Ranks) -> None:
    """The negative control."""
    wrong = "## The blocks\n```python\nx = 1\n```\n## A tool\n```python\nassert x == 2\n```\n"
    assert all(isinstance(outcome, Failed) for outcome in ranks.outcomes(2, page_runs.run, "A tool", wrong))
