"""A step with every state format, by its bytes: ``python -m bench.studies.state_formats``, half a minute.

The formats of docs/precision.md take turns over one tensor. The table has, for each, the bytes that a step moves per
element, its time, and that time divided by the float32 step's time scaled by the bytes. Runs on the CPU and on a GPU
(``--device cuda``).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench import keys
from bench.gpu.clock import Clock, HostClock, current, host
from bench.harness.machine import commit, machine, versions
from radam_fused import FusedRAdam, available_backends
from radam_fused.numerics.layout import ALIGNMENT

ROUNDS, FIRST = 30, 7
"""Timed steps, and untimed ones before them: RAdam is rectified from step 6 on."""
ELEMENTS = {"cpu": 2**24, "cuda": 2**26}
"""More than any cache holds; on a GPU all formats together take 12 GB."""


@dataclass(frozen=True)
class StateFormat:
    """The dtype of parameters and gradients, and the optimizer's options for its state."""

    name: str
    dtype: torch.dtype
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> float:
        """Per element: parameter, moments with their scales and master buffer read and written, the gradient read."""
        state = self.options.get("state_dtype", torch.float32)
        master = {"fp32": 4, "split": 2, "kahan": 2}.get(self.options.get("master_weights", ""), 0)
        scales = 2 * 4 / ALIGNMENT if state == torch.int8 else 0
        return 3 * self.dtype.itemsize + 2 * (2 * state.itemsize + master + scales)


HALF = torch.bfloat16
FORMATS = (
    StateFormat("fp32", torch.float32),
    StateFormat("fp32, bf16 moments", torch.float32, {"state_dtype": HALF}),
    StateFormat("fp32, int8 moments", torch.float32, {"state_dtype": torch.int8}),
    StateFormat("bf16", HALF),
    StateFormat("bf16, bf16 moments", HALF, {"state_dtype": HALF}),
    StateFormat("bf16, fp16 moments", HALF, {"state_dtype": torch.float16}),
    StateFormat("bf16, int8 moments", HALF, {"state_dtype": torch.int8}),
    StateFormat("bf16 stochastic", HALF, {"rounding": "stochastic"}),
    StateFormat("bf16 stochastic, int8 moments", HALF, {"rounding": "stochastic", "state_dtype": torch.int8}),
    StateFormat("bf16 kahan", HALF, {"master_weights": "kahan"}),
    StateFormat("bf16 split", HALF, {"master_weights": "split"}),
    StateFormat("bf16 split, int8 moments", HALF, {"master_weights": "split", "state_dtype": torch.int8}),
    StateFormat("bf16 fp32 master", HALF, {"master_weights": "fp32"}),
)


def optimizer(chosen: StateFormat, elements: int, device: str, backend: str) -> FusedRAdam:
    """An optimizer over one tensor that has taken its first steps."""
    generator = torch.Generator(device).manual_seed(0)
    p = torch.nn.Parameter(torch.randn(elements, generator=generator, device=device).to(chosen.dtype))
    p.grad = torch.randn(elements, generator=generator, device=device).to(chosen.dtype)
    opt = FusedRAdam([p], backend=backend, **chosen.options)
    for _ in range(FIRST):
        opt.step()
    return opt


def measure(on: Clock, backend: str, elements: int, rounds: int) -> list[dict[str, Any]]:
    """One row per format; they take turns, so that other load on the machine affects all alike."""
    optimizers = [optimizer(one, elements, on.device, backend) for one in FORMATS]
    host_takes = [statistics.median(host(on, opt.step, 5)) for opt in optimizers]
    times: list[list[float]] = [[] for _ in FORMATS]
    for _ in range(rounds):
        for opt, taken, first in zip(optimizers, times, host_takes, strict=True):
            taken += [1e3 * seconds for seconds in on.busy(opt.step, 1, first)]
    medians = [statistics.median(taken) for taken in times]
    return [
        {
            "form": one.name,
            "backend": backend,
            "bytes": one.bytes,
            "ms": ms,
            "quartiles": statistics.quantiles(taken, n=4)[::2],
            "against_bytes": ms / (medians[0] * one.bytes / FORMATS[0].bytes),
        }
        for one, taken, ms in zip(FORMATS, times, medians, strict=True)
    ]


def text(rows: Sequence[dict[str, Any]]) -> str:
    """One line per row."""
    heading = f"{'format':<32}{'backend':<9}{'bytes':>6}{'ms':>9}{'against its bytes':>19}"
    return "\n".join(
        [heading]
        + [
            f"{row['form']:<32}{row['backend']:<9}{row['bytes']:>6.2f}{row['ms']:>9.3f}{row['against_bytes']:>19.2f}"
            for row in rows
        ]
    )


def main(arguments: Sequence[str]) -> int:
    """Measures, prints a table and saves the rows; the status is 1 if a requested backend cannot run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=list(ELEMENTS), default="cpu")
    parser.add_argument("--backends", nargs="+", default=None)
    parser.add_argument("--elements", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--results", type=Path, default=Path("bench/results/cpu/forms.json"))
    options = parser.parse_args(arguments)
    try:
        on = HostClock() if options.device == "cpu" else current()
    except RuntimeError as error:
        print(f"nothing was measured: {error}")
        return 1
    elements = options.elements or ELEMENTS[options.device]
    rows: list[dict[str, Any]] = []
    skipped = {}
    about = {"machine": machine(), "versions": versions(), "commit": commit(), "elements": elements}
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for backend in options.backends or (["cpu"] if options.device == "cpu" else ["cuda", "triton"]):
        reason = available_backends()[backend]
        if reason is None:
            rows += measure(on, backend, elements, options.rounds)
        else:
            skipped[backend] = reason
            print(f"{backend} was not measured: {reason}")
        options.results.write_text(json.dumps({**about, keys.SKIPPED: skipped, "rows": rows}, indent=1) + "\n")
    print(text(rows))
    return int(bool(skipped))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
