"""Compares the two runs: the numbers, and the verdict."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from training import Run, Settings

EARLY_STEPS = 50
EARLY_TOLERANCE = {"cpu": 1e-4, "cuda": 1e-3}
"""Nats by which the curves may differ in the first steps. Rounding makes 1e-6 on a CPU, and more on a GPU, where
backward passes are not deterministic. A learning rate wrong by a thousandth makes 2e-3, a missing weight decay 1e-2."""

FINAL_TOLERANCE = 0.05
"""Nats by which the final losses may differ. By then the runs are two samples of one chaotic process."""

WHY_THEY_PART = (
    "The curves part because the two optimizers round in another order, and training magnifies that: torch's own loop "
    "and foreach, on two CPU threads, are 5e-7 apart in the first 50 steps and 0.011 at the end."
)


@dataclass
class Comparison:
    """FusedRAdam's run against torch's."""

    fused: Run
    torch: Run
    settings: Settings
    unigram: float

    @property
    def differences(self) -> list[float]:
        """Of the two training losses, step by step."""
        pairs = zip(self.fused.losses, self.torch.losses, strict=True)
        return [abs(a - b) for a, b in pairs]

    def largest_difference(self, steps: int | None = None) -> tuple[float, int]:
        """The largest difference in the first ``steps`` steps, or in all; and its step."""
        differences = self.differences[:steps]
        worst = max(differences)
        return worst, differences.index(worst) + 1

    @property
    def early_tolerance(self) -> float:
        """How far apart the curves may be in the first steps."""
        return EARLY_TOLERANCE[torch.device(self.settings.device).type]

    @property
    def speedup(self) -> float:
        """How many times less a step takes in FusedRAdam."""
        return self.torch.median_optimizer_ms / self.fused.median_optimizer_ms

    def problems(self) -> list[str]:
        """What is wrong, in words; nothing if the two optimizers agree."""
        early, step = self.largest_difference(EARLY_STEPS)
        final = abs(self.fused.final_loss - self.torch.final_loss)
        validation = abs(self.fused.final_validation - self.torch.final_validation)
        checks = [
            (f"training losses at step {step}", early, self.early_tolerance),
            ("final training losses", final, FINAL_TOLERANCE),
            ("final validation losses", validation, FINAL_TOLERANCE),
        ]
        return [
            f"the {what} of {self.fused.name} and {self.torch.name} differ by {found:.2g}, more than {allowed:g}"
            for what, found, allowed in checks
            if not found <= allowed
        ]

    def summary(self) -> dict[str, float | int]:
        """The numbers of the table, under names for programs."""
        worst, worst_step = self.largest_difference()
        early, early_step = self.largest_difference(EARLY_STEPS)
        summary: dict[str, float | int] = {}
        for key, run in (("fused", self.fused), ("torch", self.torch)):
            summary[f"{key}_final_loss"] = run.final_loss
            summary[f"{key}_final_validation"] = run.final_validation
            summary[f"{key}_optimizer_ms"] = run.median_optimizer_ms
            summary[f"{key}_optimizer_share"] = run.optimizer_share
            summary[f"{key}_seconds"] = run.seconds
        return summary | {
            "unigram_entropy": self.unigram,
            "largest_difference": worst,
            "largest_difference_step": worst_step,
            f"largest_difference_first_{EARLY_STEPS}": early,
            f"largest_difference_first_{EARLY_STEPS}_step": early_step,
            "speedup": self.speedup,
        }

    @property
    def where(self) -> str:
        """The device that trained."""
        if self.settings.device == "cpu":
            return f"{torch.get_num_threads()} CPU threads"
        return torch.cuda.get_device_name(self.settings.device)

    def write_json(self, path: Path) -> None:
        """Every number, for programs."""
        numbers = {
            "settings": asdict(self.settings),
            "environment": {
                "where": self.where,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "summary": self.summary(),
            "problems": self.problems(),
            "runs": [asdict(self.fused), asdict(self.torch)],
        }
        path.write_text(json.dumps(numbers, indent=1) + "\n")
