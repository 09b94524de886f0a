"""The negative controls: planted errors on torch's memory, each in its own process, that a sanitizer must report."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from tests.sanitizers.build import Sanitizer, command, environment

START = """
import ctypes, torch
planted = ctypes.CDLL("./planted.so")
values = torch.zeros(1 << 16)
address, count = ctypes.c_void_p(values.data_ptr()), ctypes.c_int64(values.numel())
"""


@dataclass(frozen=True)
class Control:
    """Lines of Python, and what the report says; "" where there must be none."""

    code: str
    report: str


CONTROLS: dict[str, dict[str, Control]] = {
    "address": {
        "a write past the end": Control("planted.write_past_the_end(address, count)", "heap-buffer-overflow"),
        "a read of freed memory": Control("del values\nplanted.read(address)", "heap-use-after-free"),
        "a sum that overflows": Control(
            "planted.add(ctypes.c_int64(2**63 - 1), ctypes.c_int64(1))", "signed integer overflow"
        ),
        "no error": Control("planted.write_past_the_end(address, ctypes.c_int64(values.numel() - 1))", ""),
    },
    "thread": {
        "a race of threads": Control("planted.write_in_threads(address, count, True)", "data race"),
        "a race of OpenMP's threads": Control("planted.write_in_openmp(address, count, True)", "data race"),
        "threads, each in its part": Control("planted.write_in_threads(address, count, False)", ""),
        "OpenMP's regions in order": Control(
            "planted.write_in_openmp(address, count, False)\nplanted.write_in_openmp(address, count, False)", ""
        ),
    },
}


def failed_controls(sanitizer: Sanitizer) -> list[str]:
    """Runs the controls; those that did not report what they should."""
    wrong = []
    for name, control in CONTROLS[sanitizer.name].items():
        done = subprocess.run(
            command(sanitizer, "-c", START + control.code),
            cwd=sanitizer.folder,
            env=environment(sanitizer, "baseline"),
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stdout + done.stderr + "".join(path.read_text() for path in sanitizer.reports)
        as_expected = control.report in said and done.returncode != 0 if control.report else done.returncode == 0
        if not as_expected or (not control.report and sanitizer.reports):
            wrong.append(f"{name}: expected {control.report or 'no report'!r}, got {said[-2000:] or 'nothing'!r}")
        for path in sanitizer.reports:
            path.unlink()
    return wrong
