"""What the project promises of a GPU, each line decided by the results: PASS, MISS, or UNMEASURED.

A promise about FusedRAdam holds for `cuda` and `triton` each, with and without ``flatten``; the worse decides. Ratios
have to hold for the GPU's time and for that of a step in a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import eq, le
from typing import Any

from bench.gpu import report

BACKENDS = ("cuda", "triton")
PASS, MISS, UNMEASURED = "PASS", "MISS", "UNMEASURED"

Found = dict[str, Any]


def _line(text: str, values: dict[str, float | None], holds: Callable[[float], bool], unit: str) -> str:
    """One promise: its verdict, the promise, and the numbers behind it."""
    known = [value for value in values.values() if value is not None]
    status = UNMEASURED if not values or len(known) < len(values) else PASS
    if not all(map(holds, known)):
        status = MISS
    numbers = ", ".join(
        f"{name} {report.plain(value)}{unit if value is not None else ''}" for name, value in values.items()
    )
    return f"{status} {text}: {numbers or 'nothing measured'}"


def _ours(found: Found, case: str, dtype: str, backend: str, flatten: bool | None = None) -> dict[str, Any]:
    """Our rows of a backend by a short name, None where one is missing."""
    names = {False: {"tensors": backend}, True: {"flatten": f"{backend}-flat"}}
    chosen = {**names[False], **names[True]} if flatten is None else names[flatten]
    return {short: report.row_of(found, case, dtype, name) for short, name in chosen.items()}


def _bandwidth(found: Found) -> list[str]:
    lines = []
    for dtype, least in (("fp32", 95.0), ("bf16", 93.0)):
        for case, name in (("256M", "1 × 256M"), ("llama", "Llama-3.2-1B")):
            for backend in BACKENDS:
                values = {}
                for short, row in _ours(found, case, dtype, backend).items():
                    part = report.share(found, row) if row else None
                    values[short] = 100 * part if part else None
                text = f"{dtype} {name} {backend} >= {least:.0f} % of copy"
                lines.append(_line(text, values, partial(le, least), " %"))
    return lines


def _against(
    found: Found, peer: str, label: str, cases: Sequence[tuple[str, str]], least: float, dtype: str = "fp32"
) -> list[str]:
    """That a peer takes at least so many times as long; nothing for one that is absent everywhere."""
    lines = []
    for case, name in cases:
        theirs = report.row_of(found, case, dtype, peer)
        for backend in BACKENDS:
            values: dict[str, float | None] = {}
            for short, row in _ours(found, case, dtype, backend).items():
                for key, which in (("gpu_ms", "GPU"), ("loop_ms", "in a loop")):
                    values[f"{short} {which}"] = report.times(theirs, row, key) if row and theirs else None
            lines.append(_line(f"{dtype} {name} {backend} >= {least:g} × {label}", values, partial(le, least), " ×"))
    return lines


def _launches(found: Found) -> list[str]:
    lines = []
    for backend in BACKENDS:
        rows = [row for row in found["rows"] if row["backend"] == backend]
        counts = [row.get("launches") for row in rows]
        values = {"most": max((c for c in counts if c is not None), default=None)}
        values["fewest"] = min((c for c in counts if c is not None), default=None)
        line = _line(f"1 launch a step, {backend}, {len(rows)} rows", values, partial(eq, 1), "")
        uncounted = sum(count is None for count in counts)
        lines.append(line + (f"; {uncounted} not counted" if uncounted else ""))
    return lines


def _host(found: Found) -> list[str]:
    """At most 20 µs with flatten, and 0.3 µs a tensor more without; the worst case of each backend decides."""
    lines = []
    for backend in BACKENDS:
        for flatten in (True, False):
            name = f"{backend}-flat" if flatten else backend
            values: dict[str, float | None] = {}
            within = True
            for case in found["cases"]:
                allowed = 20.0 + (0.0 if flatten else 0.3 * found["cases"][case]["tensors"])
                row = report.row_of(found, case, "fp32", name)
                values[case] = row["host_us"]["median"] if row else None
                within = within and (row is None or row["host_us"]["median"] <= allowed)
            text = f"host time {name} <= 20 µs" + ("" if flatten else " + 0.3 µs a tensor")
            lines.append(_line(text, values, (lambda _: True) if within else (lambda _: False), " µs"))
    return lines


def _bits(found: Found) -> list[str]:
    lines = []
    for backend in BACKENDS:
        rows = [row for row in found["rows"] if row["backend"] == backend]
        right = [row["check"]["right"] for row in rows]
        known = [one for one in right if one is not None]
        same: dict[str, float | None] = {"rows with reference's bits": float(sum(known)) if known else None}
        text = f"what was timed has reference's bits, {backend}, {len(rows)} rows"
        line = _line(text, same, partial(eq, len(known)), "")
        unknown = len(right) - len(known)
        lines.append(line.replace(PASS, UNMEASURED) + f"; {unknown} not compared" if unknown else line)
    return lines


def lines(found: Found) -> list[str]:
    """Every promise with its verdict."""
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
    for peer, label in (("apex", "apex FusedAdam"), ("deepspeed", "DeepSpeed FusedAdam")):
        if any(row["contestant"] == peer for row in found["rows"]):
            result += _against(found, peer, label, everywhere, 1.1)
        else:
            result.append(f"{UNMEASURED} >= 1.1 × {label}: it is not installed here")
    return [*result, *_launches(found), *_host(found), *_bits(found)]
