"""Runs the extension's tests under sanitizers: ``python -m tests.sanitizers``, or ``make sanitize``.

AddressSanitizer with UndefinedBehaviorSanitizer, and ThreadSanitizer, each for the kernels of baseline, AVX2 and
AVX-512 (as far as this machine has them). ``--quick`` is a part of one build, for .ci/run; ``--missing`` says what is
not here.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence

from tests.sanitizers.build import CAPABILITIES, NAMES, SANITIZERS, Sanitizer, build, command, environment, missing
from tests.sanitizers.controls import CONTROLS, failed_controls

# What enters the extension. The bodies of the CUDA kernels on the host (tests/kernels/test_cuda*.py) are left out: the
# compiler takes many minutes for them under these flags.
TESTS = {
    "address": [
        "tests/kernels/test_avx512.py",
        "tests/kernels/test_bits.py",
        "tests/kernels/test_captured_tables.py",
        "tests/kernels/test_grad_norm.py",
        "tests/kernels/test_hostile_arguments.py",
        "tests/kernels/test_hostile_functions.py",
        "tests/kernels/test_hostile_scalars.py",
        "tests/kernels/test_low_precision_bits.py",
        "tests/kernels/test_offload.py",
        "tests/kernels/test_ops.py",
        "tests/kernels/test_scalars_operator.py",
        "tests/kernels/test_zero_grads.py",
        "tests/step/test_pointer_norm.py",
        "tests/step/test_pointer_path.py",
        "tests/step/test_pointer_path_errors.py",
        "tests/step/test_pointer_table_switch.py",
        "tests/step/test_device_scalars.py",
        "tests/state/test_flat.py",
        "tests/state/test_flat_gradients.py",
        "tests/state/test_flat_parameters.py",
        "tests/state/test_step_counts.py",
        "tests/state/test_precision.py",
        "tests/state/test_all_or_nothing.py",
        "tests/optimizer/test_bad_gradients.py",
        "tests/optimizer/test_bad_parameters.py",
        "tests/optimizer/test_freed_storage.py",
        "tests/optimizer/test_overlaps.py",
        "tests/numerics/test_golden.py",
    ],
    "thread": [
        "tests/kernels/test_bits.py",
        "tests/kernels/test_grad_norm.py",
        "tests/kernels/test_low_precision_bits.py",
        "tests/kernels/test_offload.py",
        "tests/kernels/test_zero_grads.py",
        "tests/step/test_pointer_norm.py",
        "tests/step/test_pointer_path.py",
        "tests/state/test_flat.py",
        "tests/state/test_flat_gradients.py",
        "tests/optimizer/test_backward.py",
        "tests/optimizer/test_overlaps.py",
    ],
}
QUICK = ["tests/kernels/test_hostile_arguments.py", "tests/step/test_pointer_path.py"]
SELECTION = ("-m", "not long", "-k", "not triton and not reference")
"""Triton's kernels and the reference do not enter the extension; long cases repeat what quick ones show."""


def run_tests(sanitizer: Sanitizer, capability: str, tests: Sequence[str]) -> dict[str, object]:
    """One run of pytest: its counts, and whether anything was reported."""
    started = time.monotonic()
    arguments = ["-m", "pytest", "-q", "--capture=sys", "-p", "no:cacheprovider", *SELECTION, *tests]
    done = subprocess.run(
        command(sanitizer, *arguments),
        cwd=sanitizer.folder,
        env=environment(sanitizer, capability),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    counts = {what: int(number) for number, what in re.findall(r"(\d+) (passed|failed|skipped|errors?)", done.stdout)}
    reports = sanitizer.reports
    result: dict[str, object] = {
        "sanitizer": sanitizer.name,
        "capability": capability,
        **counts,
        "exit": done.returncode,
        "reports": len(reports),
        "seconds": round(time.monotonic() - started),
        "ok": done.returncode == 0 and not reports and counts.get("passed", 0) > 0,
    }
    if not result["ok"]:
        print(done.stdout[-6000:], *(path.read_text()[:6000] for path in reports), sep="\n", file=sys.stderr)
    for path in reports:
        path.unlink()
    return result


def entered(sanitizer: Sanitizer, capability: str) -> str:
    """The instruction set that the extension of the sanitizer's folder takes; checks that it is that one."""
    code = "import torch, radam_fused._C as c; print(c.__file__, c.cpu_capability())"
    done = subprocess.run(
        command(sanitizer, "-c", code),
        cwd=sanitizer.folder,
        env=environment(sanitizer, capability),
        capture_output=True,
        text=True,
        check=True,
    )
    path, taken = done.stdout.split()
    assert path.startswith(str(sanitizer.folder)), path
    return taken


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sanitizers", description=__doc__.splitlines()[0])
    parser.add_argument("--sanitizers", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--capabilities", nargs="+", choices=CAPABILITIES, default=CAPABILITIES)
    parser.add_argument("--quick", action="store_true", help="AddressSanitizer's build and a handful of tests")
    parser.add_argument("--missing", action="store_true", help="print what is not here, and whether anything is")
    parser.add_argument("--results", help="a JSON file for the counts")
    parser.add_argument("tests", nargs="*", help="files of tests in place of the chosen ones")
    given = parser.parse_args(arguments)
    lacking = missing()
    if given.missing or lacking:
        print(*(f"make sanitize needs {name} of the compiler" for name in lacking), sep="\n")
        return int(bool(lacking))
    results = []
    for name in given.sanitizers[:1] if given.quick else given.sanitizers:
        sanitizer = SANITIZERS[name]
        build(sanitizer)
        for path in sanitizer.reports:
            path.unlink()
        wrong = failed_controls(sanitizer)
        print(f"{name}: {len(CONTROLS[name]) - len(wrong)} of {len(CONTROLS[name])} controls as expected", flush=True)
        if wrong:
            raise SystemExit("\n".join(wrong))
        for capability in given.capabilities[-1:] if given.quick else given.capabilities:
            if entered(sanitizer, capability) != capability:
                print(f"{name}, {capability}: left out, this machine does not have it")
                continue
            results.append(run_tests(sanitizer, capability, given.tests or (QUICK if given.quick else TESTS[name])))
            print(json.dumps(results[-1]), flush=True)
    if given.results:
        with open(given.results, "w") as file:
            json.dump(results, file, indent=1)
            file.write("\n")
    return int(not results or not all(result["ok"] for result in results))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
