"""The numbers of README.md and of two pages of docs/ are those of the result files, and come from nowhere else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("rich")

from bench import keys
from bench.report import plot_style, plots, readme, times


def test_the_readme_is_what_the_files_say() -> None:
    """``make readme`` puts it right."""
    names = {path.name: re.findall(r"<!-- bench (\w+) -->", path.read_text()) for path in readme.PAGES}
    assert names == {
        "README.md": ["short"],
        "benchmarks.md": ["cpu", "training", "whole", "gpu"],
        "performance.md": ["machine_code"],
    }
    for path in readme.PAGES:
        assert readme.page(path) == path.read_text()


NOW = {
    "fp32": "fp32, gradients fp32",
    "bf16, fp32 moments": "bf16, gradients bf16",
    "bf16, gradients of fp16": "bf16, gradients fp16",
    "fp16 parameters and gradients": "fp16, gradients fp16",
    "fp32, bf16 moments": "fp32, moments bf16",
    "bf16, bf16 moments": "bf16, moments bf16",
    "fp32, int8 moments": "fp32, moments int8",
    "bf16, int8 moments": "bf16, moments int8",
    "bf16 `split`, int8 moments": "bf16, split, moments int8",
    "bf16 `stochastic`, int8 moments": "bf16, stochastic, moments int8",
}
"""The rows of the budgets in docs/performance.md, and the kernels of bench/results/cuda/machine_code.json."""


def test_the_budgets_of_the_page_are_those_of_the_machine_code() -> None:
    """Each kernel takes what the page says, within its budget, and none spills."""
    rows = json.loads((readme.RESULTS / "cuda" / "machine_code.json").read_text())["rows"]
    found = {row["kernel"]: row for row in rows if row["arch"] == 90}
    page = (readme.ROOT / "docs" / "performance.md").read_text()
    budgets = page[page.index("| before | budget | now |") : page.index("<!-- bench machine_code -->")]
    lines = re.findall(r"^\| ([^|]+?) \| [^|]+ \| (\d+) \| ([\d.]+) \|$", budgets, re.MULTILINE)
    assert {name for name, _, _ in lines} == NOW.keys()
    for name, budget, now in lines:
        taken = found[NOW[name]]["instructions"]
        assert abs(float(now) - taken) <= 0.0501, name
        assert taken <= float(budget)
    assert not any(row["spills"] for row in rows if not row["kernel"].startswith("torch"))


def test_other_machine_code_makes_another_page(tmp_path: Path) -> None:
    """The negative control: one register more, and the table is another."""
    found = json.loads((readme.RESULTS / "cuda" / "machine_code.json").read_text())
    (tmp_path / "cuda").mkdir()
    for more in (0, 1):
        found["rows"][0]["registers"] += more
        (tmp_path / "cuda" / "machine_code.json").write_text(json.dumps(found))
        same = readme.block("machine_code", tmp_path) == readme.block("machine_code")
        assert same is not bool(more)


SAID = {
    "adamw-fused": "with torch's AdamW(fused=True)",
    "radam-foreach": "with torch's RAdam (foreach)",
    "fused-flat": "with `flatten=True`",
    "fused-kept": "with gradients kept",
    "fused-flat-zeroed": "with `flatten=True, zero_grads=True`",
}


def test_what_the_page_says_of_training_steps() -> None:
    """The ratios to FusedRAdam's steps, and that keeping gradients is what flatten costs."""
    models = json.loads((readme.RESULTS / "cpu" / "whole-step.json").read_text())["models"]
    page = " ".join((readme.ROOT / "docs" / "benchmarks.md").read_text().split())
    for name, said in SAID.items():
        ratios = [model["candidates"][name]["ratio"]["median"] for model in models.values()]
        span = dict.fromkeys(f"{ratio:.2f}" for ratio in (min(ratios), max(ratios)))
        assert f"{said} {' to '.join(span)} times" in page
    for model in models.values():
        kept, flat, zeroed = (
            model["candidates"][n]["ratio"] for n in ("fused-kept", "fused-flat", "fused-flat-zeroed")
        )
        assert kept["q1"] < flat["q3"]
        assert flat["q1"] < kept["q3"]
        assert zeroed["median"] < flat["median"]


def test_what_the_page_says_of_gpt2() -> None:
    models = json.loads((readme.RESULTS / "cpu" / "step.json").read_text())["training"]
    ms = {name: row["ms"] for name, row in models[0]["optimizers"].items()}
    ours, theirs, flat = (ms[name] for name in ("fused", "adamw-fused", "fused-flat"))
    assert ours["q1"] < theirs["q3"]
    assert theirs["q1"] < ours["q3"]
    assert ours["q3"] < flat["q1"]
    longer = round(100 * (flat["median"] / ours["median"] - 1))
    assert (
        f"and {longer} % longer with `flatten=True`, beyond them"
        in (readme.ROOT / "docs" / "benchmarks.md").read_text()
    )


def text_of(picture: Path) -> dict[str, str]:
    """What a PNG file says of itself."""
    found, at, data = {}, 8, picture.read_bytes()
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"tEXt":
            key, value = data[at + 8 : at + 8 + length].split(b"\0")
            found[key.decode()] = value.decode()
        at += 12 + length
    return found


def test_the_pictures_show_the_committed_results() -> None:
    """``make readme`` makes them again."""
    found = json.loads((readme.RESULTS / "cpu" / "step.json").read_text())
    for name in plots.PICTURES:
        assert text_of(readme.RESULTS / "cpu" / name)["Source"] == plot_style.digest(found), name
    found["cases"].pop()
    assert plot_style.digest(found) != text_of(readme.RESULTS / "cpu" / "step.png")["Source"]


def test_no_point_of_a_picture_is_cut_off(tmp_path: Path) -> None:
    """All points of the README's picture are inside its axes, which are logarithmic and have a unit."""
    pytest.importorskip("matplotlib")
    found = json.loads((readme.RESULTS / "cpu" / "step.json").read_text())
    for case in found["cases"]:
        _, panel = plot_style.pyplot().subplots()
        times._panel(panel, case)
        low, high = panel.get_xlim()
        ms = [row["ms"] for row in case[keys.CANDIDATES].values()]
        assert low < min(row["q1"] for row in ms)
        assert max(row["q3"] for row in ms) < high
        assert panel.get_xscale() == "log"
        assert panel.get_xlabel().startswith("ms")
        plot_style.pyplot().close(panel.figure)


def test_links_begin_where_the_page_is(results: Path) -> None:
    text = readme.rewritten("<!-- bench cpu -->\n<!-- end cpu -->", results, top="../")
    assert "](../bench/results/cpu/step.md)" in text


def case(name: str, **rows: float) -> dict:
    candidates = {
        candidate: {
            "label": candidate,
            "role": {keys.ROOFLINE: keys.ROOFLINE, "fused": "ours"}.get(candidate, keys.BASELINE),
            "bytes_per_element": 16 if candidate == "eight" else 28,
            "ms": {"median": ms},
        }
        for candidate, ms in rows.items()
    }
    return {"name": name, "title": name.upper(), keys.CANDIDATES: candidates}


FOUND = {
    "commit": {"hash": "0123456789abcdef", "modified": True},
    "versions": {"torch": "2.0"},
    "date": "2026-01-02T00:00:00",
    "machine": {"cores": 2, "cpu": "CPU", "vector": "AVX"},
    "cases": [case("16M", baseline=1.5, ceiling=1.0, fused=2.0), case("small", fused=0.1, eight=1234.5)],
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "step.json").write_text(json.dumps(FOUND))
    return tmp_path


def test_rows_where_a_baseline_wins_stay(results: Path) -> None:
    text = readme.rewritten("a\n<!-- bench cpu -->\nstale\n<!-- end cpu -->\nz\n", results)
    assert text.startswith("a\n<!-- bench cpu -->\nMilliseconds")
    assert text.endswith("\n<!-- end cpu -->\nz\n")
    assert "stale" not in text
    assert '`make bench CASES="16M small"` reproduces it (0123456789ab with changes, torch 2.0, 2026-01-02)' in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows == [
        "| ms per step | 16M | SMALL |",
        "| :-- | --: | --: |",
        "| roofline (adds only) | 1 | – |",
        "| FusedRAdam | 2 | **0.1** |",
        "| baseline | **1.5** | – |",
        "| eight (8-bit moments) | – | 1,234 |",
    ]
    assert readme.rewritten(text, results) == text


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    text = readme.rewritten("<!-- bench gpu -->\n<!-- end gpu -->", tmp_path)
    assert text == "<!-- bench gpu -->\n" + readme.BLOCKS["gpu"][2] + "\n<!-- end gpu -->"


@pytest.mark.parametrize(
    ("text", "message"),
    [("<!-- bench oh -->\n<!-- end oh -->", "no block 'oh'"), ("<!-- bench cpu -->\n", "0 ends for its beginning")],
)
def test_wrong_markers_are_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        readme.rewritten(text, tmp_path)
