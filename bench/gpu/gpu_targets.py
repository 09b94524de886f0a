"""The performance targets on a GPU, each with a verdict from the results.

A target for FusedRAdam holds for `cuda` and `triton` each, with and without ``flatten``; the worse value decides.
Ratios must hold for the GPU's time and for the time in a loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from operator import eq
from typing import Any

from bench.gpu.gpu_tables import find_row, share, times
from bench.report.targets import PASS, UNMEASURED, at_least, verdict

BACKENDS = ("cuda", "triton")

Found = dict[str, Any]


def _ours(found: Found, case: str, dtype: str, backend: str) -> dict[str, Any]:
    """A backend's rows without and with flatten; None for a missing one."""
    names = {"tensors": backend, "flatten": f"{backend}-flat"}
    return {short: find_row(found, case, dtype, name) for short, name in names.items()}


def _bandwidth(found: Found) -> list[str]:
    """A step's bandwidth as a share of the copy's."""
    lines = []
    for dtype, least in (("fp32", 95.0), ("bf16", 93.0)):
        for case, name in (("256M", "1 × 256M"), ("llama", "Llama-3.2-1B")):
            for backend in BACKENDS:
                values = {}
                for short, row in _ours(found, case, dtype, backend).items():
                    part = share(found, row) if row else None
                    values[short] = 100 * part if part else None
                target = f"{dtype} {name} {backend} >= {least:.0f} % of copy"
                lines.append(verdict(target, values, at_least(least), " %"))
    return lines


def _against(
    found: Found, baseline: str, label: str, cases: Sequence[tuple[str, str]], least: float, dtype: str = "fp32"
) -> list[str]:
    """A baseline takes at least `least` times as long, in each of these cases."""
    lines = []
    for case, name in cases:
        theirs = find_row(found, case, dtype, baseline)
        for backend in BACKENDS:
            values: dict[str, float | None] = {}
            for short, row in _ours(found, case, dtype, backend).items():
                for key, which in (("gpu_ms", "GPU"), ("loop_ms", "in a loop")):
                    values[f"{short} {which}"] = times(theirs, row, key) if row and theirs else None
            target = f"{dtype} {name} {backend} >= {least:g} × {label}"
            lines.append(verdict(target, values, at_least(least), " ×"))
    return lines


def _launches(found: Found) -> list[str]:
    """One kernel launch per step."""
    lines = []
    for backend in BACKENDS:
        rows = [row for row in found["rows"] if row["backend"] == backend]
        counts = [row.get("launches") for row in rows]
        values = {"most": max((c for c in counts if c is not None), default=None)}
        values["fewest"] = min((c for c in counts if c is not None), default=None)
        line = verdict(f"1 launch per step, {backend}, {len(rows)} rows", values, partial(eq, 1))
        uncounted = sum(count is None for count in counts)
        lines.append(line + (f"; {uncounted} not counted" if uncounted else ""))
    return lines


def _host(found: Found) -> list[str]:
    """Host time: at most 20 µs with flatten, and 0.3 µs more per tensor without; every case must hold."""
    lines = []
    for backend in BACKENDS:
        for flatten in (True, False):
            name = f"{backend}-flat" if flatten else backend
            values: dict[str, float | None] = {}
            within = True
            for case in found["cases"]:
                allowed = 20.0 + (0.0 if flatten else 0.3 * found["cases"][case]["tensors"])
                row = find_row(found, case, "fp32", name)
                values[case] = row["host_us"]["median"] if row else None
                within = within and (row is None or row["host_us"]["median"] <= allowed)
            target = f"host time {name} <= 20 µs" + ("" if flatten else " + 0.3 µs per tensor")
            lines.append(verdict(target, values, (lambda _: True) if within else (lambda _: False), " µs"))
    return lines


def _bits(found: Found) -> list[str]:
    """Every row has the bits of `reference`."""
    lines = []
    for backend in BACKENDS:
        rows = [row for row in found["rows"] if row["backend"] == backend]
        right = [row["check"]["right"] for row in rows]
        known = [one for one in right if one is not None]
        same: dict[str, float | None] = {"rows with reference's bits": float(sum(known)) if known else None}
        line = verdict(f"reference's bits, {backend}, {len(rows)} rows", same, partial(eq, len(known)))
        unknown = len(right) - len(known)
        lines.append(line.replace(PASS, UNMEASURED) + f"; {unknown} not compared" if unknown else line)
    return lines


def lines(found: Found) -> list[str]:
    """Every target with its verdict."""
    everywhere = [(case, about["title"].split(", ")[0]) for case, about in found["cases"].items()]
    elsewhere = [(case, name) for case, name in everywhere if case not in ("llama", "small")]
    one_billion, small = [("llama", "Llama-3.2-1B")], [("small", "10,000 × 64")]
    result = [
        *_bandwidth(found),
        *_against(found, "radam-foreach", "torch RAdam foreach", one_billion, 3.0),
        *_against(found, "radam-foreach", "torch RAdam foreach", small, 10.0),
        *_against(found, "adamw-fused", "torch AdamW fused", elsewhere, 1.0),
        *_against(found, "adamw-fused", "torch AdamW fused", one_billion, 1.05),
        *_against(found, "adamw-fused", "torch AdamW fused", small, 3.0),
    ]
    for baseline, label in (("apex", "apex FusedAdam"), ("deepspeed", "DeepSpeed FusedAdam")):
        if any(row["candidate"] == baseline for row in found["rows"]):
            result += _against(found, baseline, label, everywhere, 1.1)
        else:
            result.append(f"{UNMEASURED} >= 1.1 × {label}: it is not installed here")
    return [*result, *_launches(found), *_host(found), *_bits(found)]
