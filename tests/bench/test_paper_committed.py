"""What the repository shows of the paper: the full form, whole, in time, and the report that it makes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytest.importorskip("numpy")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from bench.paper import choices, early, report, robustness
from bench.paper import run as runs
from bench.paper.sizes import SIZES
from bench.paper.units import Store, Unit

RESULTS = ROOT / "bench" / "results" / "paper"
REPORT = ROOT / "docs" / "paper.md"
FIGURES = ("lengths", "figure8", "figure9", "approximation", "early", "gradients", "robustness", "choices")


def made(folder: Path) -> str:
    """The report of the results in a folder, as if it stood beside the committed one."""
    return report.markdown(Store(folder), [f"{name}.png" for name in FIGURES], "../bench/results/paper")


@pytest.fixture(autouse=True)
def _no_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CIFAR10", raising=False)


def test_the_full_form_is_all_there() -> None:
    store, units = Store(RESULTS), runs.plan(SIZES["full"], "cpu", list(runs.PARTS))
    assert not store.missing(units)
    assert {store.about(part)["sizes"] for part in runs.PARTS} == {"full"}
    # Negative control: another seed's run is not there.
    other = next(unit for unit in units if unit.part == "choices")
    assert store.missing([Unit(other.part, other.name, {**other.settings, "seed": 99}, other.seconds)])


def test_it_is_what_was_asked_for() -> None:
    records = {part: Store(RESULTS).records(part) for part in runs.PARTS}
    settings = {part: [record["settings"] for record in found.values()] for part, found in records.items()}
    ninth = records["theory"]["figure9"]["settings"]
    assert (ninth["beta2"], ninth["paths"], ninth["steps"]) == (0.999, 5000, 6000)
    assert ninth["means"] == [0, 0.001, 0.01, 0.1, 1, 10]
    eighth = records["theory"]["figure8"]["settings"]
    assert (eighth["first"], eighth["last"]) == (5, 500)

    assert {s["method"] for s in settings["early"]} == set(early.METHODS)
    assert {s["task"] for s in settings["early"]} == {"deep", "reverse"}
    assert {s["hold"] for s in settings["early"] if s["method"] == "adam-2k"} == {2000}
    assert early.METHODS["adam-eps"].options == {"eps": 1e-4}
    for s in settings["early"]:
        found = records["early"][f"{s['task']}/{s['method']}/{s['seed']}"]["result"]
        assert s["seed"] or found["diverged"] or set(found["histograms"]) == set(map(str, early.AT))

    for task in ("digits", "text", "deep"):
        for name in robustness.OPTIMIZERS:
            runs_of = [s for s in settings["robustness"] if (s["task"], s["optimizer"]) == (task, name)]
            assert {s["lr"] for s in runs_of} == {0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001}
            assert {s["seed"] for s in runs_of} == set(range(5))
        for name in choices.VARIANTS:
            runs_of = [s for s in settings["choices"] if (s["task"], s["variant"]) == (task, name)]
            assert [s["seed"] for s in runs_of] == list(range(5))


def test_in_forty_minutes_of_two_cores() -> None:
    """By the CPU time of all units: the machine had others' work to do as well."""
    assert sum(Store(RESULTS).about(part)["cpu"] for part in runs.PARTS) / 2 < 40 * 60


def test_the_report_is_that_of_the_results(tmp_path: Path) -> None:
    text = REPORT.read_text()
    assert text == made(RESULTS)
    # Negative control: of one loss that is another it is another report.
    for path in RESULTS.glob("*.json"):
        shutil.copy(path, tmp_path)
    found = json.loads((tmp_path / "robustness.json").read_text())
    found["units"][0]["result"]["final"]["loss"] += 0.5
    (tmp_path / "robustness.json").write_text(json.dumps(found))
    assert text != made(tmp_path)


def test_it_shows_its_figures_and_says_what_does_not_hold() -> None:
    text = REPORT.read_text()
    assert {path.stem for path in RESULTS.glob("*.png")} == set(FIGURES)
    assert all(f"](../bench/results/paper/{name}.png)" in text for name in FIGURES)
    flowing = " ".join(text.split())
    for claim in (
        "needs ν > 4, where Var[X] is finite. ψ's own variance, Theorem 1, is finite for ρ > 2 already",
        "at ρ = 5 it is 3.31 times too large",
        "At t = 1,000 ρ_t is 836 against 924.2. So r_t has a dip of its own",
        "Of 3 tasks RAdam's spread over the paper's learning rates is below Adam's on 0, above it on 2",
    ):
        assert claim in flowing
    # The README says the last of them in its own words.
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert "Adam 3.27, with warm-up 1.82, RAdam 1.8 |" in text
    assert "1.82 with a warm-up and 1.80 with RAdam" in readme
    assert "RAdam's losses spread no less over learning rates than Adam's on any of three tasks" in readme


def test_the_readme_links_it_and_the_questions_show_a_figure() -> None:
    text = (ROOT / "README.md").read_text()
    assert "](docs/paper.md)" in text
    questions = (ROOT / "docs" / "faq.md").read_text()
    shown = [line for line in questions.splitlines() if line.startswith("![") and "bench/results/paper/" in line]
    assert len(shown) == 1
    assert (ROOT / "docs" / shown[0].split("](")[1].rstrip(")")).exists()
