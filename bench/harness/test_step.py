"""The pytest-benchmark suite of one optimizer step: one row per case and candidate.

pytest-benchmark runs one candidate after another; `bench.harness.interleave` measures in rounds in which they take
turns. So a fixture measures a whole case, and each test replays its candidate's times to pytest-benchmark
(`bench.harness.replay_timer`). Statistics, groups and files (``--benchmark-json``, ``--benchmark-compare``) are then
pytest-benchmark's, as in any other suite.

``python -m bench`` runs this file with the options of its command line; ``python -m pytest bench`` uses the defaults.
"""

from __future__ import annotations

from typing import Any

import pytest

from bench.harness.interleave import Measurement, measure
from bench.harness.memory_groups import NotEnoughMemory
from bench.harness.replay_timer import REPLAY_TIMER, replay
from bench.harness.session import Run
from bench.optimizers.candidates import ALWAYS, with_baselines
from bench.workloads.cases import CASES


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    run = Run.of(metafunc.config)
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", run.cases, scope="module")
    if "candidate" in metafunc.fixturenames:
        metafunc.parametrize("candidate", [*ALWAYS, *run.baselines])


@pytest.fixture(scope="module")
def measured(case: str, pytestconfig: pytest.Config) -> Measurement:
    run = Run.of(pytestconfig)
    try:
        with run.progress(CASES[case].title) as progress:
            result = measure(CASES[case], with_baselines(run.baselines), run.plan, progress)
    except NotEnoughMemory as reason:
        run.skipped[case] = str(reason)
        pytest.skip(str(reason))
    run.measurements.append(result)
    return result


@pytest.mark.benchmark(timer=REPLAY_TIMER)
def test_step(benchmark: Any, measured: Measurement, case: str, candidate: str) -> None:
    if candidate in measured.skipped:
        pytest.skip(measured.skipped[candidate])
    benchmark.group = measured.case.title
    replay(benchmark, measured.seconds(candidate))


def test_parameters_are_right(measured: Measurement, case: str) -> None:
    assert measured.correctness.agrees, measured.correctness
