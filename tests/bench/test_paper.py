"""The paper's training runs, and the whole pipeline on tiny sizes."""

from __future__ import annotations

import json
import math
import pickle
from io import StringIO
from pathlib import Path

import pytest

pytest.importorskip("numpy")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

import numpy
import torch
from rich.console import Console

from bench.paper import choices, early, report, report_training, robustness, tasks
from bench.paper import run as runs
from bench.paper.__main__ import main, parse
from bench.paper.sizes import SIZES
from bench.paper.training import LABELS, optimizer, train
from bench.paper.units import Store, Unit
from radam_fused import FusedRAdam


def test_every_radam_is_ours_and_every_adam_torchs() -> None:
    for name in LABELS:
        made = optimizer(name, 0.1)([torch.nn.Parameter(torch.ones(2))])
        assert isinstance(made, FusedRAdam) == name.startswith("radam")
    assert all(m.optimizer in LABELS for m in early.METHODS.values())
    kinds = {tuple(options.values()) for options in choices.VARIANTS.values()}
    assert len(kinds) == len(choices.VARIANTS) == 9


def test_adam_2k_moves_the_second_moment_alone() -> None:
    task = tasks.task("reverse", "cpu", **SIZES["tiny"].model("reverse"))
    made = []

    def make(parameters):
        made.append(optimizer("adam", 0.1)(parameters))
        return made[-1]

    def look(step, model):
        if step == 1:
            start = task.model(0)
            pairs = zip(model.parameters(), start.parameters(), strict=True)
            assert all(torch.equal(p, q) for p, q in pairs)
            for parameter in model.parameters():
                state = made[0].state[parameter]
                assert state["step"] == 5
                assert not state["exp_avg"].any()
            assert any(made[0].state[p]["exp_avg_sq"].any() for p in model.parameters())

    train(task, make, 0, 2, hold=5, after_backward=look)
    with pytest.raises(AssertionError):  # negative control: Adam that does not wait has moved by its second step
        train(task, make, 0, 2, after_backward=lambda step, model: look(step - 1, model))


def test_a_run_that_diverges_is_charged_with_knowing_nothing() -> None:
    task = tasks.task("text", "cpu", **SIZES["tiny"].model("text"))
    found = train(task, optimizer("sgd", 1e30), 0, 20)
    assert found["diverged"]
    assert robustness.charged({**found, "final": {"loss": None}}) == pytest.approx(math.log(256))
    assert robustness.charged({**found, "final": {"loss": 1.0}}) == 1.0
    below = {"mean": -1.0, "error": 0.1, "smaller": 5, "seeds": 5}
    assert robustness.verdict(below) == "below"
    assert robustness.verdict({**below, "smaller": 4}) == robustness.verdict({**below, "error": 0.6})
    assert robustness.verdict({**below, "mean": 1.0, "smaller": 0}) == "above"


def losses_record(lr: float, seed: int, key: str, loss: float | None) -> dict:
    settings = {"task": "text", "optimizer": key, "lr": lr, "seed": seed}
    return {"settings": settings, "result": {"final": {"loss": loss}, "chance": 5.0}}


SGD_FAILS = {f"sgd/{seed}": losses_record(0.1, seed, "sgd", 5.0) for seed in range(2)}


def test_the_spread_is_a_seeds_largest_less_its_smallest() -> None:
    table = {
        "radam": {0.1: (3.0, 3.1), 0.01: (2.5, 2.0), 0.0001: (4.0, 4.5)},
        "adam": {0.1: (None, 9.0), 0.01: (2.0, 2.0), 0.0001: (3.0, 3.0)},
    }
    records = {
        f"{key}/{lr}/{seed}": losses_record(lr, seed, key, loss)
        for key, by_lr in table.items()
        for lr, losses in by_lr.items()
        for seed, loss in enumerate(losses)
    }
    ours, theirs = (robustness.spreads(records, "text", key) for key in ("radam", "adam"))
    assert ours == pytest.approx({0: 0.5, 1: 1.1})
    assert theirs == pytest.approx({0: 3.0, 1: 3.0})  # a run that diverged, or worse, is charged with 5
    assert robustness.spreads(records, "text", "radam", (0.1, 0.01, 0.0001)) == pytest.approx({0: 1.5, 1: 2.5})
    found = robustness.compare(ours, theirs)
    assert found["mean"] == pytest.approx(-2.2)
    assert found["error"] == pytest.approx(0.3)  # the differences -2.5 and -1.9 deviate by 0.6 / √2
    assert robustness.verdict(found) == "below"
    assert robustness.verdict(robustness.compare(theirs, ours)) == "above"
    assert not choices.real(found)  # two seeds say little: t of 99 % is 63.7
    assert choices.real({**found, "error": 0.03})
    # The best mean is 2, near it is up to 2.3: 2.25 and 2 are, 3.05 is not.
    assert robustness.usable(records | SGD_FAILS, "text") == {"sgd": 0, "adam": 1, "radam": 1}


def test_a_repair_in_part_is_called_that() -> None:
    loss = {"adam": 3.3, "adam-warmup": 1.8, "adam-2k": 1.85, "adam-eps": 2.7, "adam-untuned": 3.25}
    found = [report_training._repairs(loss, key) for key in ("adam-2k", "adam-eps", "adam-untuned")]
    assert found == ["repairs it", "repairs it in part", "does not repair it"]


@pytest.mark.parametrize("archive", ["bin", "py"])
def test_cifar10_from_a_folder(archive, tmp_path, monkeypatch) -> None:
    pixels = [k % 256 for k in range(3072)]
    for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]:
        if archive == "bin":
            (tmp_path / f"{name}.bin").write_bytes(bytes([7, *pixels]) * 3)
        else:
            data = {b"data": numpy.array([pixels] * 3, numpy.uint8), b"labels": [7] * 3}
            (tmp_path / name).write_bytes(pickle.dumps(data))
    monkeypatch.setenv("CIFAR10", str(tmp_path))
    assert tasks.images() == ["digits", "cifar10"]
    tasks._images.cache_clear()
    task = tasks.task("cifar10", "cpu", **SIZES["tiny"].model("cifar10"))
    assert task.x.shape == (15, 3, 32, 32)
    assert set(task.y.tolist()) == {7}
    assert task.x[0, 1, 0, 5] == pytest.approx((5 / 255 - 0.4822) / 0.2435)  # pixel 5 of the green ones
    found = train(task, optimizer("radam", 0.01), 0, 3)
    assert math.isfinite(found["losses"][-1])
    planned = [u for u in runs.plan(SIZES["tiny"], "cpu", ["robustness"]) if u.name.startswith("cifar10")]
    assert planned
    assert str(tmp_path) not in json.dumps([u.settings for u in planned])


def test_budget() -> None:
    """The estimates keep the promise: 40 minutes and 3 on two cores."""
    for name, seconds in (("full", 2400), ("quick", 180)):
        units = runs.plan(SIZES[name], "cpu", list(runs.PARTS))
        assert sum(unit.seconds for unit in units) / 2 < 0.75 * seconds
        assert len({unit.file for unit in units}) == len(units)


def test_quick_results_stay_away_from_the_full_ones() -> None:
    full, quick = parse(["--sizes", "full", "--device", "cpu"]), parse(["--sizes", "quick", "--device", "cpu"])
    assert full.results.parts[-3:] == ("bench", "results", "paper")
    assert full.report.parts[-2:] == ("docs", "paper.md")
    assert "build" in quick.results.parts
    assert quick.report.parent == quick.results


def test_the_same_command_does_more_on_a_gpu() -> None:
    cpu, gpu = parse(["--device", "cpu"]), parse(["--device", "cuda"])
    assert (cpu.sizes.name, gpu.sizes.name, gpu.workers) == ("full", "large", 1)
    assert gpu.report.parent == gpu.results != cpu.results
    units = runs.plan(gpu.sizes, "cuda", list(runs.PARTS))
    assert {unit.settings["device"] for unit in units if unit.part != "theory"} == {"cuda"}
    for name in ("text", "deep", "reverse"):
        small, large = cpu.sizes.model(name), gpu.sizes.model(name)
        assert all(large[key] > small[key] for key in ("layers", "width", "context", "batch"))
    for name, steps in gpu.sizes.steps.items():
        assert steps.robustness > cpu.sizes.steps[name].robustness
    assert gpu.sizes.paths > cpu.sizes.paths
    assert (gpu.sizes.seeds, gpu.sizes.lrs) == (cpu.sizes.seeds, cpu.sizes.lrs)


def test_a_bar_shows_how_far_it_is(tmp_path) -> None:
    shown = StringIO()
    console = Console(file=shown, force_terminal=True, width=100)
    run = runs.Run(SIZES["tiny"], "cpu", Store(tmp_path), 1, ["theory"], console)
    run.start()
    assert "tiny: 5 of 5 units to do" in shown.getvalue()
    assert "5/5 theory/" in shown.getvalue()
    assert "100%" in shown.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The whole pipeline on tiny sizes, interrupted once."""
    folder = tmp_path_factory.mktemp("paper")
    arguments = ["--sizes", "tiny", "--device", "cpu", "--workers", "1", "--results", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CIFAR10", raising=False)
        work, done = runs.work, []

        def interrupted(unit: Unit):
            if len(done) == 40:
                raise KeyboardInterrupt
            done.append(unit.file)
            return work(unit)

        patch.setattr(runs, "work", interrupted)
        assert main(arguments) == 130
        assert sorted(path.name for path in (folder / "units").iterdir()) == sorted(done)
        again = []

        def counted(unit: Unit):
            again.append(unit.file)
            return work(unit)

        patch.setattr(runs, "work", counted)
        assert main(arguments) == 0
        assert not set(again) & set(done)
        assert len(again) + 40 == len(runs.plan(SIZES["tiny"], "cpu", list(runs.PARTS)))

        def never(unit: Unit):
            raise AssertionError(f"{unit.name} was computed again")

        patch.setattr(runs, "work", never)
        before = {path.name: path.read_bytes() for path in folder.glob("*.json")}
        assert main(arguments) == 0
        assert {path.name: path.read_bytes() for path in folder.glob("*.json")} == before
    return folder


@pytest.mark.long
def test_the_pipeline_ends_with_few_files_a_report_and_figures(finished) -> None:
    assert sorted(path.name for path in finished.glob("*.json")) == [f"{part}.json" for part in sorted(runs.PARTS)]
    assert not (finished / "units").exists()
    text = (finished / "paper.md").read_text()
    assert "Sizes: TINY" in text
    assert "Not run yet" not in text
    assert max(map(len, (line for line in text.splitlines() if line[:1] not in "|-"))) <= 120
    figures = {line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")}
    assert figures == {path.name for path in finished.glob("*.png")}
    assert len(figures) == 8
    for table in text.split("\n\n"):
        if table.startswith("|"):
            widths = {line.replace("\\|", "").count("|") for line in table.splitlines()}
            assert len(widths) == 1, table
    assert not any(word in text for word in ("nan", "inf ", "None"))


@pytest.mark.long
def test_results_are_plain_json_without_a_path(finished) -> None:
    for part in runs.PARTS:
        text = (finished / f"{part}.json").read_text()
        found = json.loads(text, parse_constant=pytest.fail)
        assert found["about"]["sizes"] == "tiny"
        assert str(Path.home()) not in text
        assert str(finished) not in text


@pytest.mark.long
def test_other_settings_are_other_work(finished) -> None:
    units = runs.plan(SIZES["tiny"], "cpu", ["choices"])
    store = Store(finished)
    assert not store.missing(units)
    changed = [Unit(u.part, u.name, {**u.settings, "seed": 77}) for u in units[:3]]
    assert store.missing(changed) == changed


@pytest.mark.long
def test_runs_are_reproducible(finished) -> None:
    record = Store(finished).records("robustness")["text/radam/0.01/1"]
    again = robustness.run(record["settings"])
    assert again["final"]["loss"] == pytest.approx(record["result"]["final"]["loss"], rel=1e-5)
    other = robustness.run({**record["settings"], "seed": 2})
    assert other["final"]["loss"] != pytest.approx(record["result"]["final"]["loss"], rel=1e-5)


@pytest.mark.long
def test_a_report_of_a_part_alone(tmp_path, finished) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "theory.json").write_bytes((finished / "theory.json").read_bytes())
    report.write(Store(tmp_path / "results"), tmp_path / "docs" / "paper.md")
    text = (tmp_path / "docs" / "paper.md").read_text()
    assert text.count("Not run yet.") == 3
    assert "](../results/figure8.png)" in text
