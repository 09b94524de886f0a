"""The demo, with a tiny model and a dozen steps: what it writes, and that it notices a wrong optimizer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytest.importorskip("rich", reason="requirements/dev.txt has it")
pytest.importorskip("matplotlib", reason="requirements/dev.txt has it")

import torch

from radam_fused import FusedRAdam

EXAMPLES = ROOT / "examples"
STEPS = 12
TINY = ["--layers=2", "--width=32", "--heads=2", "--context=32", "--batch=4", "--device=cpu", "--quiet"]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules of the examples import each other as scripts do, from their own folder."""
    monkeypatch.syspath_prepend(EXAMPLES)


def run(png: Path, *options: str, make_fused=None) -> tuple[int, dict]:
    """The exit status, and the numbers in the JSON file where one was written."""
    import train_gpt

    status = train_gpt.main([*TINY, f"--steps={STEPS}", f"--out={png}", *options], make_fused)
    numbers = png.with_suffix(".json")
    return status, json.loads(numbers.read_text()) if numbers.exists() else {}


@pytest.mark.parametrize("options", [["cpu"], ["cpu", "--flatten"], ["reference"], ["triton"]], ids=" ".join)
def test_reports_two_runs_that_agree(options, tmp_path, capsys):
    png = tmp_path / "new" / "demo.png"
    status, numbers = run(png, "--backend", *options)
    shown = capsys.readouterr().out

    assert status == 0
    assert all(part in shown for part in ("FusedRAdam", options[0], "torch.optim.RAdam", "speed-up", "OK: "))
    assert "FAILED" not in shown
    assert png.read_bytes().startswith(b"\x89PNG\r\n")
    fused, torchs = numbers["runs"]
    assert len(fused["losses"]) == len(torchs["losses"]) == len(fused["optimizer_ms"]) == STEPS
    assert fused["losses"] == pytest.approx(torchs["losses"], abs=1e-5)
    assert fused["losses"][-1] < fused["losses"][0] - 0.1
    assert fused["validation"][str(STEPS)] == pytest.approx(torchs["validation"][str(STEPS)], abs=1e-5)
    assert numbers["summary"]["largest_difference"] < 1e-5
    assert numbers["problems"] == []


def without_decay(groups, **options):
    return FusedRAdam([group | {"weight_decay": 0.0} for group in groups], **options)


WRONG = {
    "no rectification": lambda groups, **options: FusedRAdam(groups, **options, rectification="none"),
    "no weight decay": without_decay,
    "coupled decay": lambda groups, **options: FusedRAdam(groups, **options | {"decoupled_weight_decay": False}),
    "lr of 1.01": lambda groups, **options: FusedRAdam(groups, **options | {"lr": options["lr"] * 1.01}),
    "beta2 of 0.991": lambda groups, **options: FusedRAdam(groups, **options | {"betas": (0.9, 0.991)}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_optimizer_fails(wrong, tmp_path, capsys):
    status, numbers = run(tmp_path / "demo.png", make_fused=WRONG[wrong])
    assert status == 1
    assert "FAILED: the training losses at step" in capsys.readouterr().out
    assert numbers["summary"]["largest_difference"] > 1e-4
    assert numbers["problems"]


def test_a_loss_that_is_no_number_fails_at_once(tmp_path, capsys):
    class Nan(torch.optim.SGD):
        def step(self):
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.fill_(float("nan"))

    status, numbers = run(tmp_path / "demo.png", make_fused=lambda groups, **_: Nan(groups, lr=1.0))
    assert status == 1
    assert "is nan at step 2" in capsys.readouterr().out
    assert not numbers


def test_the_same_final_loss_is_asked_for():
    from comparison import EARLY_STEPS, Comparison
    from training import Run, Settings

    def made(offset):
        losses = [2.0] * EARLY_STEPS + [1.0 + offset] * 50
        return Run("one", losses=losses, validation={100: 1.5 + offset})

    assert Comparison(made(0.04), made(0.0), Settings(), unigram=3.0).problems() == []
    training, validation = Comparison(made(0.06), made(0.0), Settings(), unigram=3.0).problems()
    assert "final training losses" in training
    assert "final validation losses" in validation


def test_a_seed_gives_one_run(tmp_path):
    def losses(*options):
        return run(tmp_path / "demo.png", *options)[1]["runs"][0]["losses"]

    first = losses("--seed=3")
    assert losses("--seed=3") == first
    assert losses("--seed=4")[0] != first[0]


def test_the_text_is_cut_in_two_without_loss():
    from corpus import Corpus, load_text

    text, corpus = load_text(), Corpus.load()
    assert len(text) > 300_000
    assert len(corpus.train) + len(corpus.valid) == len(text)
    assert 0.08 < len(corpus.valid) / len(text) < 0.12
    inputs, targets = next(corpus.batches(batch=5, context=16, seed=0))
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert bytes(inputs[0].tolist()) in bytes(corpus.train.tolist())
    assert 2.5 < corpus.unigram_entropy() < 4.0


def test_the_model_sees_no_future():
    from gpt import GPT, GPTConfig

    model = GPT(GPTConfig(layers=2, width=32, heads=2, context=16))
    tokens = torch.arange(16).unsqueeze(0)
    changed = tokens.clone()
    changed[0, 10] = 99
    before, after = model(tokens)[0], model(changed)[0]
    torch.testing.assert_close(before[:10], after[:10])
    assert not torch.allclose(before[10], after[10])


@pytest.mark.long
def test_as_a_script(tmp_path):
    script = [sys.executable, str(EXAMPLES / "train_gpt.py"), *TINY[:-1]]
    made = subprocess.run([*script, "--steps=2", f"--out={tmp_path / 'demo.png'}"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert "2/2" in made.stdout  # the progress bar
    assert (tmp_path / "demo.png").exists()


def test_a_backend_that_does_not_fit_is_named(tmp_path):
    with pytest.raises(SystemExit, match="'cpu' does not serve parameters on cuda"):
        run(tmp_path / "demo.png", "--backend=cpu", "--device=cuda")
