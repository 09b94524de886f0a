"""Units of work and their results: one JSON file per unit during a run, one per part afterwards."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench.harness import machine

SCHEMA = 1
DIGITS = 6


@dataclass(frozen=True)
class Unit:
    """Work that depends only on its settings, which are plain JSON values.

    Attributes:
        part: the module that does it.
        name: its own within the part.
        settings: the arguments of the module's `run`; a stored result belongs to this unit if its settings are equal.
        seconds: about how long it takes on one core.
    """

    part: str
    name: str
    settings: dict[str, Any] = field(hash=False)
    seconds: float = 1.0

    @property
    def file(self) -> str:
        return f"{self.part}-{self.name}.json".replace("/", "_")


def rounded(value: Any) -> Any:
    """Rounds numbers to six significant digits; NaN and infinity become null, since JSON has neither."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return value


def _write(path: Path, text: str) -> None:
    """Writes a file atomically: an interrupt never leaves half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, path)


class Store:
    """Results in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loose = folder / "units"

    def _merged(self, part: str) -> dict[str, Any]:
        path = self.folder / f"{part}.json"
        return json.loads(path.read_text()) if path.exists() else {"units": []}

    def records(self, part: str) -> dict[str, dict[str, Any]]:
        """The results of a part, by name."""
        found = {record["name"]: record for record in self._merged(part)["units"]}
        for path in sorted(self.loose.glob(f"{part}-*.json")):
            record = json.loads(path.read_text())
            found[record["name"]] = record
        return found

    def about(self, part: str) -> dict[str, Any]:
        """Where and when a part was computed."""
        return self._merged(part).get("about", {})

    def missing(self, units: list[Unit]) -> list[Unit]:
        """The units without a result, or whose result has other settings."""
        have = {part: self.records(part) for part in {unit.part for unit in units}}
        return [u for u in units if have[u.part].get(u.name, {}).get("settings") != rounded(u.settings)]

    def keep(self, unit: Unit, result: dict[str, Any], wall: float, cpu: float) -> None:
        """``wall`` and ``cpu``: the seconds that it took, and those of CPU time in them."""
        cost = {"seconds": round(wall, 2), "cpu": round(cpu, 2)}
        record = {"name": unit.name, "settings": unit.settings, **cost, "result": result}
        _write(self.loose / unit.file, json.dumps(rounded(record), separators=(",", ":"), allow_nan=False) + "\n")

    def merge(self, units: list[Unit], sizes: str, workers: int) -> None:
        """Writes one file per part, a line per unit, and deletes the units' files. A part without new results stays."""
        for part in sorted({unit.part for unit in units}):
            loose = list(self.loose.glob(f"{part}-*.json"))
            records = self.records(part)
            wanted = [records[unit.name] for unit in units if unit.part == part and unit.name in records]
            if not loose and len(wanted) == len(self._merged(part)["units"]):
                continue
            about = {
                "schema": SCHEMA,
                "sizes": sizes,
                "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "commit": machine.commit(),
                "machine": machine.machine(),
                "versions": machine.versions(),
                "workers": workers,
                # Sums over the units, which may come from several calls.
                "seconds": round(sum(record["seconds"] for record in wanted), 1),
                "cpu": round(sum(record["cpu"] for record in wanted), 1),
            }
            lines = ",\n".join(json.dumps(record, separators=(",", ":")) for record in wanted)
            _write(
                self.folder / f"{part}.json",
                f'{{"about":{json.dumps(about, separators=(",", ":"))},\n"units":[\n{lines}\n]}}\n',
            )
            for path in loose:
                path.unlink()
        if self.loose.exists() and not any(self.loose.iterdir()):
            self.loose.rmdir()
