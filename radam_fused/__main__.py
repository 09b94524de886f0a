"""``python -m radam_fused``: what this installation can run. ``python -m radam_fused plan``: what a model takes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .installation import report
from .planner import plan
from .planner.choices import BANDWIDTH, BUS_BANDWIDTH, DTYPES

_READER_IS_GONE = 128 + 13
"""The status that a shell reports of a program which SIGPIPE (13) has ended, as it ends most that are written in C."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m radam_fused",
        description="Without a command: what this installation can run, and why it cannot run the rest.",
    )
    commands = parser.add_subparsers(dest="command", title="commands")
    planner = commands.add_parser(
        "plan", help="what weights, gradients and state take in memory, and a lower bound of a step, for all options"
    )
    add = planner.add_argument
    add("--params", type=float, required=True, help="how many parameters the model has: 7e9, say")
    add(
        "--dtype",
        default="bfloat16",
        choices=sorted(DTYPES),
        metavar="DTYPE",
        help="theirs: bf16 (default), fp32, fp16",
    )
    add("--gpus", type=int, default=1, help="over how many GPUs FSDP2 shards the model (default: 1)")
    add("--memory", type=float, help="bytes of a GPU that weights, gradients and state may take: 80e9, say")
    add(
        "--bandwidth",
        type=float,
        default=BANDWIDTH,
        help="bytes a second of a GPU's memory (default: %(default)g, H200)",
    )
    add(
        "--bus-bandwidth", type=float, default=BUS_BANDWIDTH, help="to the host, one way (default: %(default)g, PCIe 5)"
    )
    return parser


def _run(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    if given.pop("command") is None:
        print(report())
        return 0
    try:
        print(plan(given.pop("params"), **given))
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status.

    In ``python -m radam_fused plan ... | head`` the reader of the pipe may close it before everything is written. Then
    the command ends without a traceback.
    """
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()  # a closed pipe is noticed here, and not when Python exits
    except BrokenPipeError:
        # Python writes what is left in the buffer when it exits: to nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _READER_IS_GONE


if __name__ == "__main__":
    sys.exit(main())
