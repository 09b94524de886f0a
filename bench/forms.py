"""A step in every stored form, by its bytes: ``python -m bench.forms``, half a minute.

The forms of docs/precision.md over one tensor, in turns, and for each the bytes that an element has to move, its time,
and that time against what the bytes say of the float32 step's. On the CPU and on a GPU (``--device cuda``).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.machine import commit, machine, versions
from radam_fused import FusedRAdam
from radam_fused.layout import ALIGNMENT

ROUNDS, FIRST = 30, 7
"""Steps that are timed, and those before: RAdam rectifies from the sixth on."""
ELEMENTS = {"cpu": 2**24, "cuda": 2**26}
"""More than any cache holds; on a GPU all forms together take 12 GB."""


@dataclass(frozen=True)
class Form:
    """Parameters and gradients of a dtype, and the options that store the rest."""

    name: str
    dtype: torch.dtype
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> float:
        """Of an element: parameter, moments and residue read and written, the gradient read; scales counted in."""
        state = self.options.get("state_dtype", torch.float32)
        residue = {"fp32": 4, "split": 2, "kahan": 2}.get(self.options.get("master_weights", ""), 0)
        scales = 2 * 4 / ALIGNMENT if state == torch.int8 else 0
        return 3 * self.dtype.itemsize + 2 * (2 * state.itemsize + residue + scales)


HALF = torch.bfloat16
FORMS = (
    Form("fp32", torch.float32),
    Form("fp32, bf16 moments", torch.float32, {"state_dtype": HALF}),
    Form("fp32, int8 moments", torch.float32, {"state_dtype": torch.int8}),
    Form("bf16", HALF),
    Form("bf16, bf16 moments", HALF, {"state_dtype": HALF}),
    Form("bf16, fp16 moments", HALF, {"state_dtype": torch.float16}),
    Form("bf16, int8 moments", HALF, {"state_dtype": torch.int8}),
    Form("bf16 stochastic", HALF, {"rounding": "stochastic"}),
    Form("bf16 stochastic, int8 moments", HALF, {"rounding": "stochastic", "state_dtype": torch.int8}),
    Form("bf16 kahan", HALF, {"master_weights": "kahan"}),
    Form("bf16 split", HALF, {"master_weights": "split"}),
    Form("bf16 split, int8 moments", HALF, {"master_weights": "split", "state_dtype": torch.int8}),
    Form("bf16 fp32 master", HALF, {"master_weights": "fp32"}),
)


def optimizer(form: Form, elements: int, device: str, backend: str) -> FusedRAdam:
    """One tensor of a form, which has taken its first steps."""
    generator = torch.Generator(device).manual_seed(0)
    p = torch.nn.Parameter(torch.randn(elements, generator=generator, device=device).to(form.dtype))
    p.grad = torch.randn(elements, generator=generator, device=device).to(form.dtype)
    opt = FusedRAdam([p], backend=backend, **form.options)
    for _ in range(FIRST):
        opt.step()
    return opt


def milliseconds(step: Callable[[], object], device: str) -> float:
    """Of one step: on a GPU what it keeps the device busy."""
    if device == "cpu":
        begin = time.perf_counter()
        step()
        return (time.perf_counter() - begin) * 1e3
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def measure(device: str, backend: str, elements: int, rounds: int) -> list[dict[str, Any]]:
    """A row a form, all measured in turns, so that what disturbs one disturbs its neighbours."""
    optimizers = [optimizer(form, elements, device, backend) for form in FORMS]
    times: list[list[float]] = [[] for _ in FORMS]
    for _ in track(range(rounds), f"stored forms on {device}, {backend}"):
        for opt, taken in zip(optimizers, times, strict=True):
            taken.append(milliseconds(opt.step, device))
    medians = [statistics.median(taken) for taken in times]
    return [
        {
            "form": form.name,
            "backend": backend,
            "bytes": form.bytes,
            "ms": ms,
            "quartiles": statistics.quantiles(taken, n=4)[::2],
            "against_bytes": ms / (medians[0] * form.bytes / FORMS[0].bytes),
        }
        for form, taken, ms in zip(FORMS, times, medians, strict=True)
    ]


def main() -> None:
    """Measures, prints a table and saves the rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=list(ELEMENTS), default="cpu")
    parser.add_argument("--backends", nargs="+", default=None)
    parser.add_argument("--elements", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--results", type=Path, default=Path("bench/results/cpu/forms.json"))
    arguments = parser.parse_args()
    device = arguments.device
    elements = arguments.elements or ELEMENTS[device]
    rows = []
    for backend in arguments.backends or (["cpu"] if device == "cpu" else ["cuda", "triton"]):
        rows += measure(device, backend, elements, arguments.rounds)
    record = {"machine": machine(), "versions": versions(), "commit": commit(), "elements": elements, "rows": rows}
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(record, indent=1) + "\n")
    table = Table("form", "backend", "bytes", "ms", "against its bytes")
    for row in rows:
        cells = f"{row['bytes']:.2f}", f"{row['ms']:.2f}", f"{row['against_bytes']:.2f}"
        table.add_row(row["form"], row["backend"], *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
