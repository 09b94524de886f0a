"""What `low_precision_training` recorded is what the project targets of learning, and what the docs say."""

from __future__ import annotations

import json
import statistics
from typing import Any

import pytest

from bench.studies import low_precision_training

ROWS: list[dict[str, Any]] = json.loads(low_precision_training.RESULTS.read_text())["rows"]
LOSS, COSINE, SEEDS = 0.005, 0.999, 5


def runs(model: str, form: str, short: bool) -> list[dict[str, Any]]:
    chosen = [row for row in ROWS if (row["model"], row["form"]) == (model, form)]
    found = [row for row in chosen if (row["steps"] == low_precision_training.SHORT_STEPS) == short]
    assert len(found) == SEEDS
    return found


def loss_against_first(model: str, form: str) -> float:
    first = next(iter(low_precision_training.MODELS[model][1]))
    losses = [statistics.fmean(row["loss"] for row in runs(model, name, short=False)) for name in (form, first)]
    return losses[0] / losses[1] - 1


@pytest.mark.parametrize(
    ("model", "form"),
    [("float32 model", "int8 moments"), ("bfloat16 model", "kahan"), ("bfloat16 model", "stochastic")],
)
def test_losses_are_those_of_more_bits(model: str, form: str) -> None:
    assert abs(loss_against_first(model, form)) < LOSS


def test_rounding_to_nearest_is_worse() -> None:
    """The control: what the forms are for shows in the same measure."""
    assert loss_against_first("bfloat16 model", "nearest") > 2 * LOSS


def test_split_is_the_run_with_a_master_copy() -> None:
    losses = [[row["loss"] for row in runs("bfloat16 model", form, short=False)] for form in ("split", "fp32 master")]
    assert losses[0] == losses[1]
    assert all(row["same"] for row in runs("bfloat16 model", "split", short=True))


def test_weights_go_the_same_way() -> None:
    """With 8-bit moments, of every seed and at every count of steps; with Adam, the control, they do not."""
    for form, near in (("int8 moments", True), ("Adam", False)):
        cosines = [c for row in runs("float32 model", form, short=True) for c in row["cosines"].values()]
        assert (min(cosines) > COSINE) == near


def test_the_docs_have_these_numbers() -> None:
    with_integers = [
        {**row, "cosines": {int(t): c for t, c in row["cosines"].items()}} if "cosines" in row else row for row in ROWS
    ]
    assert low_precision_training.tables(with_integers) in low_precision_training.REPORT.read_text()
