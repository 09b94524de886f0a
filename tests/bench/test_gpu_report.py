"""What becomes of a GPU run's numbers: tables, verdicts and plots, from made-up results."""

from __future__ import annotations

import json

import pytest

from bench.gpu import gpu_plots, gpu_tables, gpu_targets
from bench.harness import results
from bench.optimizers.candidates import GPU_CANDIDATES
from bench.report.targets import MISS, PASS, UNMEASURED
from bench.workloads.cases import CASES, DTYPES, GPU_DEFAULT

COPY = 4000.0  # GB/s
TIMES = {"radam-foreach": 12.0, "adamw-fused": 4.0}


def quartiles(value: float) -> dict:
    return {"q1": 0.99 * value, "median": value, "q3": 1.01 * value, "samples": 20}


def made_up(share: float = 0.96, **changed: dict) -> dict:
    """Results in which ours reach this share of the copy's bandwidth; `changed` edits rows by candidate's name."""
    found = {
        "schema": gpu_tables.SCHEMA,
        "date": "2026-01-01T00:00:00+00:00",
        "commit": {"hash": "0" * 40, "modified": False},
        "gpu": {"name": "NVIDIA H200", "driver": "580.0", "clocks": {"clocks.sm": "1980"}},
        "versions": dict.fromkeys(("radam_fused", "torch", "triton", "nvcc", "python"), "1"),
        "cases": {
            name: {key: getattr(CASES[name], key) for key in ("title", "tensors", "elements")} for name in GPU_DEFAULT
        },
        "copies": [],
        "rows": [],
        "missing": [],
    }
    for dtype in DTYPES:
        for name in GPU_DEFAULT:
            moved = CASES[name].step_bytes(DTYPES[dtype])
            copy_ms = moved / COPY / 1e6
            found["copies"].append({"case": name, "dtype": dtype, "bytes": moved, "ms": quartiles(copy_ms)})
            for candidate in GPU_CANDIDATES.values():
                if not candidate.ours and candidate.name not in TIMES:
                    reason = "ModuleNotFoundError: No module named 'x'"
                    entry = {"candidate": candidate.name, "label": candidate.label, "backend": None}
                    found["missing"].append({**entry, "case": name, "dtype": dtype, "reason": reason})
                    continue
                ms = copy_ms / share * TIMES.get(candidate.name, 1.0)
                found["rows"].append(
                    {
                        "candidate": candidate.name,
                        "label": candidate.label,
                        "ours": candidate.ours,
                        "backend": candidate.backend,
                        "case": name,
                        "dtype": dtype,
                        "bytes": moved,
                        "gpu_ms": quartiles(ms),
                        "gpu_ms_from": "events",
                        "host_us": quartiles(15.0),
                        "loop_ms": quartiles(ms),
                        "launches": 1 if candidate.ours else 55,
                        "memcpys": 0,
                        "check": {"right": candidate.kind == "radam" or None, "difference": 1e-8},
                        **changed.get(candidate.name.replace("-", "_"), {}),
                    }
                )
    return found


def verdicts(found: dict, text: str) -> set[str]:
    chosen = [line.split()[0] for line in gpu_targets.lines(found) if text in line]
    assert chosen
    return set(chosen)


def test_all_hold():
    lines = [line for line in gpu_targets.lines(made_up()) if "not installed" not in line]
    assert {line.split()[0] for line in lines} == {PASS}, lines
    assert "PASS fp32 1 × 256M cuda >= 95 % of copy: tensors 96 %, flatten 96 %" in lines


@pytest.mark.parametrize(
    ("changed", "text", "others"),
    [
        ({"share": 0.94}, "of copy", "launch"),
        ({"cuda": {"launches": 2}}, "1 launch per step, cuda", "1 launch per step, triton"),
        ({"triton_flat": {"host_us": quartiles(20.1)}}, "host time triton-flat", "host time triton <="),
        ({"cuda": {"check": {"right": False}}}, "reference's bits, cuda", "reference's bits, triton"),
        ({"adamw_fused": {"loop_ms": quartiles(1e-4)}}, "torch AdamW", "torch RAdam"),
        ({"radam_foreach": {"gpu_ms": quartiles(1e-4)}}, "torch RAdam", "torch AdamW"),
    ],
    ids=["bandwidth", "launches", "host", "bits", "adamw", "radam"],
)
def test_each_can_miss(changed: dict, text: str, others: str):
    found = made_up(**changed)
    assert MISS in verdicts(found, text)
    assert MISS not in verdicts(found, others)


def test_what_was_not_measured_does_not_pass():
    found = made_up()
    found["rows"] = [row for row in found["rows"] if row["backend"] != "cuda"]
    assert verdicts(found, " cuda") == {UNMEASURED}
    found["rows"] = []
    assert PASS not in {line.split()[0] for line in gpu_targets.lines(found)}
    one_form = made_up()
    one_form["rows"] = [row for row in one_form["rows"] if row["candidate"] != "cuda-flat"]
    assert verdicts(one_form, "256M cuda >= 95") == {UNMEASURED}


def test_launches_that_were_not_counted_are_named():
    found = made_up(cuda={"launches": None})
    assert any("10 not counted" in line for line in gpu_targets.lines(found))


def test_rows_that_were_not_compared_are_named():
    """Were there no memory for the comparison, say: neither right nor wrong."""
    found = made_up(cuda={"check": {"right": None, "reason": "not compared: OutOfMemoryError"}})
    (line,) = [line for line in gpu_targets.lines(found) if "reference's bits, cuda" in line]
    assert line.startswith(UNMEASURED)
    assert line.endswith("10 not compared")
    found = made_up(cuda={"check": {"right": None}}, cuda_flat={"check": {"right": False}})
    assert verdicts(found, "reference's bits, cuda") == {MISS}


def test_tables_and_markdown():
    found = made_up()
    text = gpu_tables.document(found).text()
    assert "Llama-3.2-1B, 146 tensors, bf16; copy 4 TB/s" in text
    assert "96 %" in text
    assert "same bits" in text
    assert "apex FusedAdam did not run: ModuleNotFoundError" in text
    assert len(text) < 10_000
    markdown = gpu_tables.document(found, gpu_targets.lines(found), gpu_plots.NAMES).markdown()
    for name in gpu_plots.NAMES:
        assert f"({name})" in markdown
    assert "| FusedRAdam cuda, flatten | " in markdown
    # Twelve times as long as ours, which is in the table as 1.
    row = next(line for line in markdown.splitlines() if line.startswith("| torch RAdam, foreach"))
    assert row.split("|")[-4:-2] == [" 12 ", " 12 "]


def test_wrong_results_are_named():
    assert gpu_tables.wrong(made_up()) == []
    found = made_up(triton={"check": {"right": False, "difference": 0.0}})
    assert len(gpu_tables.wrong(found)) == 10
    assert "OTHER BITS" in gpu_tables.wrong(found)[0]
    found = made_up(adamw_fused={"check": {"right": None, "moves": False}})
    assert "DOES NOT MOVE" in gpu_tables.wrong(found)[0]
    found = made_up()
    entry = {"candidate": "cuda", "label": "FusedRAdam cuda", "backend": "cuda", "case": "gpt2", "dtype": "fp32"}
    found["missing"].append({**entry, "reason": "failed: RuntimeError: illegal access"})
    assert len(gpu_tables.wrong(found)) == 1
    found["ended_early"] = "KeyboardInterrupt"
    assert len(gpu_tables.wrong(found)) == 2


def test_counts_stand_in_for_missing_events():
    row = {"gpu_ms": None, "gpu_ms_from": None}
    gpu_tables.add_counts(row, None)
    assert row["gpu_ms"] is None
    gpu_tables.add_counts(row, {"launches": 5000, "profiled_ms": 12.5})
    assert (row["gpu_ms"]["median"], row["gpu_ms_from"], row["launches"]) == (12.5, "profiler", 5000)
    timed = {"gpu_ms": quartiles(3.0), "gpu_ms_from": "events"}
    gpu_tables.add_counts(timed, {"launches": 1, "profiled_ms": 12.5})
    assert (timed["gpu_ms"]["median"], timed["gpu_ms_from"]) == (3.0, "events")


def test_rows_without_gpu_time_are_shown():
    found = made_up(radam_foreach={"gpu_ms": None, "gpu_ms_from": None, "launches": None})
    assert "torch RAdam, foreach" in gpu_tables.document(found).text()
    assert UNMEASURED in verdicts(found, "torch RAdam")


def test_results_survive_json(tmp_path):
    found = made_up()
    results.write(found, tmp_path / "gpu.json")
    again = json.loads((tmp_path / "gpu.json").read_text())
    assert gpu_tables.document(again).text() == gpu_tables.document(found).text()


def test_plots(tmp_path):
    pytest.importorskip("matplotlib")
    # One without a GPU time, one that ran in one case only.
    found = made_up(radam_foreach={"gpu_ms": None})
    found["rows"] = [row for row in found["rows"] if row["candidate"] != "cuda" or row["case"] == "gpt2"]
    gpu_plots.draw(found, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(gpu_plots.NAMES)
    for name in gpu_plots.NAMES:
        data = (tmp_path / name).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) < 2**20
    gpu_plots.draw({**found, "rows": []}, tmp_path / "nowhere")
