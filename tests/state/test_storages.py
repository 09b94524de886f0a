"""Tensors with storages of their own under ``flatten``: what serialisers and Inductor make of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam
from radam_fused.state import views
from tests.support.helpers import same_bits


def model(layers: int = 3, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers)))


def trained(flatten: bool = True, **options: Any) -> tuple[nn.Sequential, FusedRAdam]:
    net = model()
    opt = FusedRAdam(net.parameters(), lr=0.01, flatten=flatten, **options)
    step(net, opt)
    return net, opt


def step(net: nn.Module, opt: torch.optim.Optimizer) -> None:
    for k, p in enumerate(net.parameters()):
        p.grad = torch.full_like(p, 0.1 * (k + 1))
    opt.step()


def test_safetensors_keeps_every_tensor(tmp_path: Path) -> None:
    net, _ = trained()
    safetensors.torch.save_model(net, str(tmp_path / "model"))
    assert safetensors.torch.load_file(tmp_path / "model").keys() == net.state_dict().keys()
    other = model(seed=1)
    safetensors.torch.load_model(other, str(tmp_path / "model"))
    assert all(same_bits(p, q) for p, q in zip(net.parameters(), other.parameters(), strict=True))
    safetensors.torch.save_file(net.state_dict(), tmp_path / "file")


def test_safetensors_refuses_views_of_one_storage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The negative control: plain views of the flat buffer look like one another."""
    monkeypatch.setattr(views, "has_memory", lambda tensor: False)
    net, _ = trained()
    with pytest.raises(RuntimeError, match="found no suitable name to keep for saving"):
        safetensors.torch.save_model(net, str(tmp_path / "model"))


def test_accelerate_saves_and_loads(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate", reason="requirements/trainers.txt has it")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True)
    net = model()
    prepared, opt = accelerator.prepare(net, FusedRAdam(net.parameters(), lr=0.01, flatten=True))
    step(prepared, opt)
    accelerator.save_state(str(tmp_path / "state"))
    kept = [t.detach().clone() for t in prepared.parameters()]
    assert len(safetensors.torch.load_file(tmp_path / "state" / "model.safetensors")) == len(kept)
    step(prepared, opt)
    once = [t.detach().clone() for t in prepared.parameters()]
    accelerator.load_state(str(tmp_path / "state"))
    assert all(same_bits(p, q) for p, q in zip(prepared.parameters(), kept, strict=True))
    step(prepared, opt)
    assert all(same_bits(p, q) for p, q in zip(prepared.parameters(), once, strict=True))
    accelerator.save_model(prepared, str(tmp_path / "model"))
    assert len(safetensors.torch.load_file(tmp_path / "model" / "model.safetensors")) == len(kept)


@pytest.mark.parametrize("which", ["parameter", "gradient"])
def test_one_tensor_is_saved_with_its_own_bytes(which: str) -> None:
    net, _ = trained()
    tensor = net[1].weight if which == "parameter" else net[1].weight.grad
    file = io.BytesIO()
    torch.save(tensor.detach(), file)
    assert len(file.getvalue()) < tensor.nbytes + 2000


@pytest.mark.parametrize("what", ["parameter", "gradient", "gradient_later"])
def test_shared_memory_is_refused_by_name(what: str) -> None:
    net = model()
    shared = net[1].weight if what == "parameter" else torch.zeros(8, 8).share_memory_()
    if what == "parameter":
        shared.data.share_memory_()
    elif what == "gradient":
        net[1].weight.grad = shared
    before = [p.data_ptr() for p in net.parameters()]

    def make() -> None:
        opt = FusedRAdam(net.named_parameters(), flatten=True)
        net[1].weight.grad = shared
        opt.step()

    with pytest.raises(ValueError, match=r"flatten=True: (gradient of )?parameter '1\.weight' is in shared memory"):
        make()
    if what != "gradient_later":
        assert [p.data_ptr() for p in net.parameters()] == before


@pytest.mark.long
@pytest.mark.parametrize(
    ("layers", "groups", "options"),
    [(1, 1, {}), (2, 2, {}), (2, 1, {"max_grad_norm": 1.0}), (2, 1, {"state_dtype": torch.bfloat16})],
    ids=["2_parameters", "two_groups", "clipped", "bf16_moments"],
)
def test_inductor_compiles_a_step(layers: int, groups: int, options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    results: list[list[Tensor]] = []
    for compiled in (True, False):
        net = model(layers)
        params = list(net.parameters())
        opt = FusedRAdam([{"params": params[k::groups]} for k in range(groups)], lr=0.01, flatten=True, **options)
        take = torch.compile(lambda opt=opt: opt.step()) if compiled else opt.step
        for t in range(3):
            for k, p in enumerate(params):
                p.grad.copy_(torch.full_like(p, 0.1 * (k + 1) * (t + 1)))
            take()
        results.append(params)
    assert all(same_bits(p, q) for p, q in zip(*results, strict=True))
