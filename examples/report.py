"""What the terminal shows: progress bars, the table, and a piece of generated text."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from comparison import EARLY_STEPS, FINAL_TOLERANCE, WHY_THEY_PART, Comparison
from gpt import GPT
from training import OnStep, Run


@contextlib.contextmanager
def bars(console: Console, names: list[str], steps: int, hidden: bool) -> Iterator[OnStep]:
    """A progress bar for each run: the function to call after every step."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, disable=hidden, refresh_per_second=4, expand=True) as progress:
        tasks = {name: progress.add_task(name, total=steps, numbers="") for name in names}

        def report(run: Run) -> None:
            numbers = f"loss {run.losses[-1]:.3f}, optimizer {run.optimizer_ms[-1]:.2f} ms"
            progress.update(tasks[run.name], completed=len(run.losses), numbers=numbers)

        yield report


def table(comparison: Comparison) -> Table:
    """The comparison as a table for the terminal."""
    a, b = comparison.fused, comparison.torch
    steps = comparison.settings.steps
    table = Table(
        title=f"GPT of {a.parameters:,} parameters in {a.tensors} tensors, {steps:,} steps, {comparison.where}",
        caption=f"Losses in nats a byte; {comparison.unigram:.3f} for the frequencies of bytes alone. "
        f"Allowed differences: {comparison.early_tolerance:g} in the first {EARLY_STEPS} steps, {FINAL_TOLERANCE:g} "
        f"at the end. {WHY_THEY_PART} Time of optimizer.step(): the median of all steps.",
    )
    table.add_column("")
    for name in (a.name, b.name):
        table.add_column(name.replace(" ", "\n"), justify="right")
    table.add_column("difference", justify="right")

    def differing(x: float, y: float) -> tuple[str, str, str]:
        return f"{x:.4f}", f"{y:.4f}", f"{abs(x - y):.2g}"

    last = min(50, steps)
    table.add_row(f"training loss (last {last})", *differing(a.final_loss, b.final_loss))
    table.add_row("validation loss", *differing(a.final_validation, b.final_validation))
    for label, span in (("curves apart by at most", None), (f"  in the first {EARLY_STEPS} steps", EARLY_STEPS)):
        worst, step = comparison.largest_difference(span)
        table.add_row(label, "", "", f"{worst:.2g} at step {step:,}")
    table.add_section()
    table.add_row(
        "[bold]optimizer, ms a step",
        f"[bold]{a.median_optimizer_ms:.3f}",
        f"[bold]{b.median_optimizer_ms:.3f}",
        f"[bold]speed-up {comparison.speedup:.2g}x",
    )
    table.add_row("  share of a step", f"{a.optimizer_share:.1%}", f"{b.optimizer_share:.1%}")
    table.add_row("whole run, s", f"{a.seconds:.1f}", f"{b.seconds:.1f}")
    return table


def print_sample(console: Console, model: GPT, seed: int, prompt: str = "The ") -> None:
    """What the model makes of a prompt."""
    text = model.generate(prompt.encode(), length=300, seed=seed).decode(errors="replace")
    console.rule("what the model trained with FusedRAdam writes", style="dim")
    console.print(text, style="italic", markup=False, highlight=False)
    console.rule(style="dim")
