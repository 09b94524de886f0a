"""The pytest-benchmark suite of one optimizer step: one row a case and contestant.

pytest-benchmark would run one contestant after another, and what is wanted are rounds in which they take turns
(`bench.harness.interleave`). So a fixture measures a case whole, and each test plays its contestant's times back to
pytest-benchmark through a clock (`bench.harness.replay_timer`): statistics, groups and files (``--benchmark-json``,
``--benchmark-compare``) are pytest-benchmark's, as of any other suite.

``python -m bench`` runs this file with the options of its command line; ``python -m pytest bench`` with the defaults.
"""

from __future__ import annotations

from typing import Any

import pytest

from bench.harness.interleave import Measurement, measure
from bench.harness.memory_groups import NotEnoughMemory
from bench.harness.replay_timer import TAPE, play
from bench.harness.session import Run
from bench.optimizers.candidates import ALWAYS, with_peers
from bench.workloads.cases import CASES


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    run = Run.of(metafunc.config)
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", run.cases, scope="module")
    if "contestant" in metafunc.fixturenames:
        metafunc.parametrize("contestant", [*ALWAYS, *run.peers])


@pytest.fixture(scope="module")
def measured(case: str, pytestconfig: pytest.Config) -> Measurement:
    run = Run.of(pytestconfig)
    try:
        with run.progress(CASES[case].title) as progress:
            result = measure(CASES[case], with_peers(run.peers), run.plan, progress)
    except NotEnoughMemory as reason:
        run.skipped[case] = str(reason)
        pytest.skip(str(reason))
    run.measurements.append(result)
    return result


@pytest.mark.benchmark(timer=TAPE)
def test_step(benchmark: Any, measured: Measurement, case: str, contestant: str) -> None:
    if contestant in measured.absent:
        pytest.skip(measured.absent[contestant])
    benchmark.group = measured.case.title
    play(benchmark, measured.seconds(contestant))


def test_parameters_are_right(measured: Measurement, case: str) -> None:
    assert measured.agreement.agrees, measured.agreement
