"""Train a small GPT twice, with FusedRAdam and with torch.optim.RAdam, and compare the two.

    python examples/train_gpt.py
    python examples/train_gpt.py --backend triton

Both runs start from the same weights and see the same batches, so their loss curves have to agree: to the last digits
for the first steps, then less and less, since training amplifies every rounding. The comparison goes to the terminal as
a table, to a PNG as a plot and to a JSON file with all the numbers. The exit status is 0 only if the losses are finite
and agree within the tolerances that the table states, so this is a check as well as a demonstration.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from training import MakeOptimizer, Settings

STEPS = 1200
INTERPRETED_STEPS = 80
DEFAULT_OUT = Path(__file__).resolve().parent / "out" / "train_gpt.png"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    fused = p.add_argument_group("FusedRAdam")
    backends = ("auto", "cpu", "cuda", "triton", "reference")
    fused.add_argument("--backend", choices=backends, default="auto", help="what runs the step (%(default)s)")
    fused.add_argument("--flatten", action="store_true", help="parameters and gradients as views of flat buffers")
    where = p.add_argument_group("where")
    where.add_argument("--device", default="auto", help="cpu, cuda, or auto: a GPU if there is one (%(default)s)")
    where.add_argument("--threads", type=_positive, help="of torch on the CPU (torch's choice)")
    what = p.add_argument_group("what")
    what.add_argument("--steps", type=_positive, help=f"({STEPS}; {INTERPRETED_STEPS} in Triton's interpreter)")
    what.add_argument("--seed", type=int, default=0, help="of the weights and of the batches (%(default)s)")
    what.add_argument("--layers", type=_positive, default=4, help="blocks of the model (%(default)s)")
    what.add_argument("--width", type=_positive, default=128, help="of the model (%(default)s)")
    what.add_argument("--heads", type=_positive, default=4, help="of each attention (%(default)s)")
    what.add_argument("--context", type=_positive, default=64, help="bytes that the model sees (%(default)s)")
    what.add_argument("--batch", type=_positive, default=8, help="windows of the text in a step (%(default)s)")
    what.add_argument("--lr", type=float, default=4e-3, help="at the start; it falls to zero (%(default)s)")
    output = p.add_argument_group("output")
    output.add_argument("--out", type=Path, default=DEFAULT_OUT, help="the plot (examples/out/train_gpt.png)")
    output.add_argument("--quiet", action="store_true", help="no progress bars, no generated text")
    return p


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def choose_device(args: argparse.Namespace, console: Console) -> str:
    """The device to train on; switches Triton to its interpreter where there is no GPU.

    Triton reads its environment variable when it is first imported, so this has to run before anything imports Triton
    (torch alone does not).
    """
    import torch

    device = args.device
    if device == "auto":
        gpu = torch.cuda.is_available() and args.backend != "cpu"
        device = "cuda" if gpu else "cpu"
    interpreted = args.backend == "triton" and device == "cpu"
    if interpreted:
        os.environ["TRITON_INTERPRET"] = "1"
        console.print(
            "No GPU: the Triton kernel runs in Triton's interpreter, which shows that it is right and says "
            "nothing about its speed.",
            style="yellow",
        )
    if args.steps is None:
        args.steps = INTERPRETED_STEPS if interpreted else STEPS
        if interpreted:
            console.print(f"The interpreter is slow: {args.steps} steps, not {STEPS}.", style="yellow")
    return device


def settings_from(args: argparse.Namespace, device: str) -> Settings:
    """The settings that both runs share."""
    from gpt import GPTConfig
    from training import Settings

    return Settings(
        model=GPTConfig(args.layers, args.width, args.heads, args.context),
        steps=args.steps,
        batch=args.batch,
        lr=args.lr,
        seed=args.seed,
        device=device,
    )


def optimizers(args: argparse.Namespace, device: str) -> dict[str, MakeOptimizer]:
    """The two to compare, by the names that the report shows.

    ``foreach=True`` is torch's default on a GPU; on a CPU its default is a loop over the parameters, which is slower:
    the comparison is with the faster of the two.
    """
    import torch

    from radam_fused import FusedRAdam
    from radam_fused.backends import backend_for, check_name

    try:
        backend = backend_for(torch.device(device).type, check_name(args.backend))
    except (RuntimeError, ValueError) as error:
        raise SystemExit(str(error)) from None

    def fused(groups, **options):
        return FusedRAdam(groups, backend=backend, flatten=args.flatten, **options)

    def foreach(groups, **options):
        return torch.optim.RAdam(groups, foreach=True, **options)

    flatten = ", flatten" if args.flatten else ""
    return {f"FusedRAdam ({backend}{flatten})": fused, "torch.optim.RAdam": foreach}


def main(argv: Sequence[str] | None = None, make_fused: MakeOptimizer | None = None) -> int:
    """Run the comparison; the exit status. Tests pass an optimizer of their own as make_fused."""
    args = parser().parse_args(argv)
    console = Console()
    device = choose_device(args, console)

    import torch

    from comparison import Comparison
    from corpus import Corpus
    from plot import draw
    from report import bars, print_sample, table
    from training import Diverged, Training, train_together

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    settings = settings_from(args, device)
    pair = optimizers(args, device)
    corpus = Corpus.load(device)
    if make_fused is not None:
        pair[next(iter(pair))] = make_fused

    trainings = [Training(name, make, settings, corpus) for name, make in pair.items()]
    try:
        with bars(console, list(pair), settings.steps, hidden=args.quiet) as on_step:
            train_together(trainings, settings.steps, on_step)
    except Diverged as error:
        console.print(f"FAILED: {error}", style="bold red")
        return 1

    comparison = Comparison(*(t.run for t in trainings), settings=settings, unigram=corpus.unigram_entropy())
    if not args.quiet:
        print_sample(console, trainings[0].model, args.seed)
    console.print(table(comparison))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw(comparison, args.out)
    comparison.write_json(args.out.with_suffix(".json"))
    console.print(f"Plot and numbers: {_shown(args.out)}, {_shown(args.out.with_suffix('.json'))}")
    problems = comparison.problems()
    for problem in problems:
        console.print(f"FAILED: {problem}", style="bold red")
    if not problems:
        console.print("OK: the two optimizers train the same model.", style="bold green")
    return 1 if problems else 0


def _shown(path: Path) -> Path:
    """The path as seen from here, where it is below."""
    path = path.resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    # GNU OpenMP's threads wait for each other in a loop, for milliseconds if need be. Where other programs want the
    # same cores that makes a training step ten times slower; a shorter wait costs an idle machine nothing. It is read
    # when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    sys.exit(main())
