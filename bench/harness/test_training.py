"""The pytest-benchmark suite of whole training steps: one row a model and optimizer, as `bench.harness.test_step`."""

from __future__ import annotations

from typing import Any

import pytest

from bench.harness.replay_timer import TAPE, play
from bench.harness.session import Run
from bench.harness.training_steps import MODELS, OURS, PEERS_TRAINED, Trained, train


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    run = Run.of(metafunc.config)
    if "model" in metafunc.fixturenames:
        metafunc.parametrize("model", run.models, scope="module")
    if "optimizer" in metafunc.fixturenames:
        metafunc.parametrize("optimizer", [*OURS, *(name for name in run.peers if name in PEERS_TRAINED)])


@pytest.fixture(scope="module")
def trained(model: str, pytestconfig: pytest.Config) -> Trained:
    run = Run.of(pytestconfig)
    with run.progress(MODELS[model].title) as progress:
        result = train(MODELS[model], run.peers, run.plan, progress)
    run.trained.append(result)
    return result


@pytest.mark.benchmark(timer=TAPE)
def test_training_step(benchmark: Any, trained: Trained, model: str, optimizer: str) -> None:
    if optimizer in trained.absent:
        pytest.skip(trained.absent[optimizer])
    benchmark.group = trained.model.title
    play(benchmark, trained.trainings[optimizer].whole)


def test_losses_are_those_of_torch(trained: Trained, model: str) -> None:
    if trained.right is None:
        pytest.skip("torch.optim.RAdam(foreach) did not take part")
    assert trained.right, (trained.differences(), {name: t.losses for name, t in trained.trainings.items()})
