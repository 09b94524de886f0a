"""The JSON files that runs leave: what every file says about its run, and how it is written.

Times are in milliseconds, bandwidths in GB/s (10^9 bytes).
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench.harness import machine


def about(suite: str, schema: int) -> dict[str, Any]:
    """The head of a suite's file: when, from which commit and with which versions it ran."""
    return {
        "schema": schema,
        "suite": suite,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "versions": machine.versions(),
    }


def write(found: dict[str, Any], path: Path) -> None:
    """As JSON."""
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
