"""Compares 8-bit codes for the moments: ``python -m bench.studies.quantization_codes``, a few minutes.

The demo's GPT is trained with float32 moments, which are encoded and decoded after every step. The loss of a code is
measured by the cosine between the weights' total change with it and without any code. The table goes into
docs/precision.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from radam_fused import FusedRAdam
from radam_fused.numerics.quantization import CODE_UNIT, ROOT_TOP, blocks, double_exponent, half_exponent

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from corpus import Corpus  # noqa: E402  (examples/ is no package)
from training import Settings, Training  # noqa: E402

REPORT = ROOT / "docs" / "precision.md"
STEPS = 100
SMALL = 4096
"""Smaller parameters keep float32 moments, as in the optimizer."""

Companding = Callable[[Tensor], Tensor]


def _to_octaves(a: Tensor) -> Tensor:
    return half_exponent((a * ROOT_TOP).float()) / CODE_UNIT / 255


def _from_octaves(c: Tensor) -> Tensor:
    return double_exponent((c * 255).float() * CODE_UNIT) / ROOT_TOP


CODES: dict[str, tuple[Companding, Companding]] = {
    "linear": (lambda a: a, lambda c: c),
    "square root": (torch.sqrt, lambda c: c * c),
    "softsign": (lambda a: 2 * a / (1 + a), lambda c: c / (2 - c)),
    "octaves": (_to_octaves, _from_octaves),
}
"""Functions from a magnitude in 0 to 1 to a code in 0 to 1, and back."""

CANDIDATES: dict[str, tuple[tuple[str, str, bool] | None, tuple[str, bool] | None]] = {
    "m linear": (("m", "linear", False), None),
    "m square root": (("m", "square root", False), None),
    "m softsign": (("m", "softsign", False), None),
    "m / sqrt(v) linear": (("ratio", "linear", False), None),
    "m / sqrt(v) linear, stochastic": (("ratio", "linear", True), None),
    "m / sqrt(v) square root, stochastic": (("ratio", "square root", True), None),
    "sqrt(v) linear": (None, ("linear", False)),
    "sqrt(v) square root": (None, ("square root", False)),
    "sqrt(v) linear, stochastic": (None, ("linear", True)),
    "sqrt(v) softsign, stochastic": (None, ("softsign", True)),
    "sqrt(v) square root, stochastic": (None, ("square root", True)),
    "sqrt(v) octaves, stochastic": (None, ("octaves", True)),
    "both, of earlier versions": (("ratio", "linear", True), ("square root", True)),
    "both as chosen": (("power", "linear", True), ("octaves", True)),
}
"""For each moment: what is encoded, with which code, and whether rounding is stochastic. None is float32.

``power`` is m over the power of two below the root that has been decoded, in units of its block's largest.
"""


def coded(x: Tensor, code: str, limit: int, generator: torch.Generator | None) -> Tensor:
    """Encodes and decodes blocks of magnitudes, each with a scale; with a generator, rounding is stochastic."""
    to, back = CODES[code]
    scale = x.amax(1, keepdim=True)
    c = to(torch.where(scale > 0, x / scale, 0.0)) * limit
    offset = 0.5 if generator is None else torch.rand(c.shape, generator=generator)
    whole = (c + offset).floor().clamp(max=limit)
    return back(torch.where((x > 0) & (whole < 1) & (limit == 255), 1.0, whole) / limit) * scale


def put_through(m: Tensor, v: Tensor, candidate: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Both moments after encoding and decoding by a candidate."""
    first, second = CANDIDATES[candidate]
    root = blocks(v.reshape(-1).sqrt())
    if second is not None:
        root = coded(root, second[0], 255, generator if second[1] else None)
        v = (root * root).reshape(-1)[: v.numel()].view_as(v)
    if first is not None:
        kind, code, stochastic = first
        x = blocks(m.reshape(-1))
        if kind == "power":
            scale = root.amax(1, keepdim=True)
            root = torch.where(root > 0, torch.exp2(torch.floor(torch.log2(root / scale * ROOT_TOP))), 0.0)
        if kind != "m":
            x = torch.where(root > 0, x / root, 0.0)
        x = coded(x.abs(), code, 127, generator if stochastic else None) * x.sign()
        m = (x if kind == "m" else x * root).reshape(-1)[: m.numel()].view_as(m)
    return m, v


def large(training: Training) -> list[dict[str, Tensor]]:
    return [training.optimizer.state[p] for p in training.model.parameters() if p.numel() >= SMALL]


def change(candidate: str | None, steps: int) -> Tensor:
    """The total change of the weights."""
    torch.set_num_threads(1)
    corpus, settings = Corpus.load("cpu"), Settings(steps=400, lr=1e-3)
    training = Training("codes", lambda groups, **given: FusedRAdam(groups, **given), settings, corpus)
    first = [p.detach().clone() for p in training.model.parameters()]
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        training.step()
        for entry in large(training) if candidate else ():
            stored = put_through(entry["exp_avg"], entry["exp_avg_sq"], candidate or "", generator)
            entry["exp_avg"].copy_(stored[0])
            entry["exp_avg_sq"].copy_(stored[1])
    moved = [(p.detach() - f).reshape(-1) for p, f in zip(training.model.parameters(), first, strict=True)]
    return torch.cat(moved)


def main() -> None:
    """Measures every candidate, prints the table and writes it into the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--report", type=Path, default=REPORT)
    arguments = parser.parse_args()
    with ProcessPoolExecutor(2) as pool:
        waiting = [pool.submit(change, name, arguments.steps) for name in (None, *CANDIDATES)]
        results = [done.result() for done in track(waiting, "codes")]
    exact = results[0].double()
    lines = [f"| code | cosine after {arguments.steps} steps |", "| --- | ---: |"]
    for name, moved in zip(CANDIDATES, results[1:], strict=True):
        cosine = torch.cosine_similarity(moved.double(), exact, 0).item()
        lines.append(f"| {name} | {cosine:.5f} |")
    text = arguments.report.read_text()
    begin, end = "<!-- codes -->\n", "<!-- /codes -->"
    head, _, rest = text.partition(begin)
    arguments.report.write_text(head + begin + "\n".join(lines) + "\n" + end + rest.partition(end)[2])
    print("\n".join(lines))


if __name__ == "__main__":
    main()
