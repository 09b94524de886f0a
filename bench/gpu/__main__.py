"""``python -m bench.gpu``, which is ``make gpu``: build, test, sanitize and measure on a machine with an NVIDIA GPU.

Every stage has a time limit, a stage that fails does not stop the others, and the exit status is 1 if any stage failed.
Seven files are kept: gpu.json, gpu.md and three plots (bench), stages.json with the results of the stages formats and
tune, and log.txt.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.gpu import gpu_tables, gpu_targets
from bench.gpu.stage_list import DEFAULT, ROOT, TOTAL, stages
from bench.gpu.stages import FAILED, Outcome, Stage, run

FOLDED = ("formats", "tune")
"""Stages that write a small JSON file of that name, which becomes a part of stages.json."""
TAIL = 1500
"""Characters of a failed task's log that are printed; log.txt has the whole log."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    names = list(stages(Path()))
    parser.add_argument(
        "--stages", nargs="+", choices=names, default=list(DEFAULT), metavar="NAME", help=", ".join(names)
    )
    parser.add_argument("--results", help="folder of the results (bench/results/<name of the GPU>)")
    parser.add_argument("--seconds", type=float, default=TOTAL, help="for all stages together (%(default)s)")
    return parser.parse_args(arguments)


def ask_machine() -> dict[str, Any]:
    """The output of `bench.gpu.gpu_info` in a separate process: this one must not use the GPU."""
    command = [sys.executable, "-m", "bench.gpu.gpu_info"]
    try:
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=90).stdout
        return json.loads(said.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        return {"gpu": {"name": "unknown"}, "versions": {}, "reason": f"{type(error).__name__}"}


def slug(name: str) -> str:
    """A folder's name for a GPU: "nvidia-h200" for "NVIDIA H200"."""
    return "-".join("".join(c if c.isalnum() and c.isascii() else " " for c in name.lower()).split()) or "unknown"


def scrubbed(log: str) -> str:
    """A log without this machine's folders and name."""
    for private, instead in (
        (str(ROOT), "."),
        (sys.prefix, "<python>"),
        (str(Path.home()), "~"),
        (platform.node(), "-"),
    ):
        if len(private) > 4:
            log = log.replace(private, instead)
    return log


def table(outcomes: Sequence[Outcome]) -> str:
    """One line per task."""
    lines = [f"{o.status:<8}{o.stage + ' ' + o.task:<20}{o.seconds:>6.0f} s  {o.reason}".rstrip() for o in outcomes]
    failed = sum(outcome.status == FAILED for outcome in outcomes)
    return "\n".join([*lines, f"{failed} of {len(outcomes)} failed" if failed else "nothing failed"])


def fold(folder: Path) -> dict[str, Any]:
    """Reads and removes the files of `FOLDED`."""
    found = {}
    for path in (folder / f"{name}.json" for name in FOLDED):
        if path.exists():
            found[path.stem] = json.loads(path.read_text())
            path.unlink()
    return found


def keep(outcomes: Sequence[Outcome], about: dict[str, Any], folder: Path) -> None:
    """Writes stages.json and log.txt."""
    shown = [{key: value for key, value in vars(outcome).items() if key != "log"} for outcome in outcomes]
    for outcome in shown:
        outcome["seconds"] = round(outcome["seconds"], 1)
        outcome["reason"] = scrubbed(outcome["reason"])
    (folder / "stages.json").write_text(json.dumps({**about, "stages": shown}, indent=1, ensure_ascii=False) + "\n")
    parts = [f"##### {o.stage} {o.task}: {o.status} {o.reason}\n{o.log.rstrip()}\n" for o in outcomes]
    (folder / "log.txt").write_text(scrubbed("\n".join(parts)))


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    began = time.monotonic()
    about = ask_machine()
    name = about["gpu"]["name"]
    folder = Path(options.results) if options.results else ROOT / "bench" / "results" / slug(name)
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{name}; {about['versions']}\nresults in {options.results or folder.relative_to(ROOT)}", flush=True)
    done: list[Outcome] = []

    def before(stage: Stage, limit: float) -> None:
        print(f"-- {stage.name}, at most {limit:.0f} s", flush=True)

    def after(stage: Stage, outcomes: list[Outcome]) -> None:
        done.extend(outcomes)
        print(table(outcomes), flush=True)
        for outcome in outcomes:
            if outcome.status == FAILED and outcome.log:
                print(f"the end of {outcome.stage} {outcome.task}:\n{scrubbed(outcome.log)[-TAIL:]}", flush=True)
        about.update(fold(folder))
        keep(done, about, folder)

    available = stages(folder)
    chosen = [stage for name, stage in available.items() if name in options.stages]
    fold(folder)  # removes files of an earlier, interrupted run
    fresh = time.time()
    with TemporaryDirectory() as logs:
        outcomes = run(chosen, options.seconds - (time.monotonic() - began), Path(logs), before, after)

    results = folder / "gpu.json"
    if "bench" in options.stages and results.exists() and results.stat().st_mtime >= fresh - 1.0:
        found = json.loads(results.read_text())
        print(gpu_tables.document(found).text(), *gpu_targets.lines(found), sep="\n")
    print(f"\nall stages, {time.monotonic() - began:.0f} s:\n{table(outcomes)}")
    return int(any(outcome.status == FAILED for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
