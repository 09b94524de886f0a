"""The bytes of `radam_fused.plan` are those of the tensors that an optimizer allocates."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

import radam_fused
from bench.studies.fsdp_scale import ENDS, LAYERS, layer_shapes
from radam_fused import FusedRAdam
from radam_fused.numerics.state_format import StateFormat
from radam_fused.planner import MemoryPlan
from radam_fused.planner.formats import allowed
from tests.support.parameter_sets import parameters, train
from tests.support.paths import ROOT

SHAPES = ((1000, 256), (300,), (64, 3, 7, 7), (64,), (4096,), (1, 5000), (257, 64))
"""Small and large ones, aligned and not: all that pads a flat buffer."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FORMATS = [(dtype, one) for dtype in DTYPES for one in allowed([dtype])]


def allocated(tensors: list[Tensor]) -> int:
    """The bytes of the storages behind these tensors, each counted once and whole."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def buffers_of(opt: FusedRAdam) -> list[Tensor]:
    """The flat buffers of the state, which the entries of ``optimizer.state`` are views of."""
    found = [(b.exp_avg, b.exp_avg_sq, b.scales, b.master) for b in opt._bucket_manager.buckets]
    return [buffer for bucket in found for buffer in bucket if buffer is not None]


def chosen(plan: MemoryPlan, options: dict) -> radam_fused.planner.Choice:
    (choice,) = (choice for choice in plan if choice.options == options)
    return choice


@pytest.mark.parametrize(("dtype", "format"), FORMATS, ids=lambda x: str(getattr(x, "options", x)).replace(" ", ""))
def test_state_is_what_the_optimizer_allocates(dtype: torch.dtype, format) -> None:
    params = parameters(*SHAPES, dtype=dtype)
    choice = chosen(radam_fused.plan(params), format.options)
    opt = FusedRAdam(params, **format.options)
    train(opt, range(1))
    assert choice.state + choice.host_state == allocated(buffers_of(opt))
    assert (choice.host_state > 0) == format.offload
    assert choice.weights == allocated(params)
    assert choice.gradients == allocated([p.grad for p in params])
    everything = allocated([*params, *(p.grad for p in params), *(v for e in opt.state.values() for v in e.values())])
    assert choice.total + choice.host_state == pytest.approx(everything, rel=0.01)


def test_every_format_is_there() -> None:
    """The negative control: a list that lacks formats would pass the tests above."""
    assert len(FORMATS) == 7 + 35 + 28 + 2
    assert len({repr((dtype, one)) for dtype, one in FORMATS}) == len(FORMATS)


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_flat_buffers(dtype: torch.dtype) -> None:
    params = parameters(*SHAPES, dtype=dtype)
    plan = radam_fused.plan(params)
    apart = allocated(params)
    opt = FusedRAdam(params, flatten=True)
    flat = [buffer for one in opt._bucket_manager.flat_buffers.values() for buffer in (one.param, one.grad)]
    assert allocated(flat) - 2 * apart == plan.flatten_padding
    assert plan.flatten_padding > 0


def test_sharded_parameters() -> None:
    """FSDP2 on 512 ranks: the state that `bench.studies.fsdp_scale` has found on the first one."""
    found = json.loads((ROOT / "bench/results/scale/llama-3-70b.json").read_text())["simulated"][0]
    shapes = [*layer_shapes() * LAYERS, *ENDS]
    params = [nn.Parameter(torch.empty(shape, dtype=torch.float32, device="meta")) for shape in shapes]
    plan = radam_fused.plan(params, gpus=found["world"])
    assert plan.parameters == found["parameters"]
    assert chosen(plan, {}).weights == 4 * found["elements"]
    assert chosen(plan, {}).state + 12 * len(shapes) == found["state bytes"]  # 12 bytes count a parameter's steps


def test_a_number_of_parameters_is_near_a_model_of_as_many() -> None:
    params = parameters(*((1024, 1024),) * 2, dtype=torch.bfloat16)
    for one, other in zip(radam_fused.plan(params), radam_fused.plan(2**21), strict=True):
        assert one == other


def test_frozen_parameters_have_weights_alone() -> None:
    net = nn.Sequential(nn.Linear(512, 512, bias=False), nn.Linear(512, 512, bias=False))
    net[0].requires_grad_(False)
    choice = radam_fused.plan(net)[0]
    assert (choice.weights, choice.gradients, choice.state) == (2 * 2**20, 2**20, 2 * 2**20)


def test_tied_and_complex_parameters() -> None:
    p, q = nn.Parameter(torch.zeros(64, 64)), nn.Parameter(torch.zeros(64, 32, dtype=torch.complex64))
    plan = radam_fused.plan([p, p, q])
    assert plan.parameters == 2 * 4096
    assert chosen(plan, {}).state == 2 * 8 * 4096


def test_mixed_dtypes_have_the_options_that_all_allow() -> None:
    params = [*parameters((64, 64)), *parameters((256, 64), dtype=torch.float16)]
    plan = radam_fused.plan(params)
    assert plan.dtypes == (torch.float16, torch.float32)
    assert all(choice.options.get("master_weights") != "split" for choice in plan)
    opt = FusedRAdam(params, master_weights="kahan", state_dtype=torch.int8)
    train(opt, range(1))
    choice = chosen(plan, {"master_weights": "kahan", "state_dtype": torch.int8})
    assert choice.state == allocated(buffers_of(opt))


def test_bytes_and_bound_of_a_step() -> None:
    plan = radam_fused.plan(2**20, dtype="fp32", bandwidth=1e12, bus_bandwidth=1e10)
    assert chosen(plan, {}).step_bytes == 28 * 2**20
    assert chosen(plan, {}).milliseconds == pytest.approx(28 * 2**20 / 1e9)
    offloaded = chosen(plan, {"offload": True})
    assert offloaded.step_bytes == 12 * 2**20
    assert offloaded.milliseconds == pytest.approx(8 * 2**20 / 1e7)  # both directions at once


MEMORY: list[tuple[str, float | None, dict | None]] = [
    ("bf16", None, {"master_weights": "split"}),
    ("bf16", 14e9, {"master_weights": "split"}),
    ("bf16", 10e9, {"master_weights": "split", "state_dtype": torch.bfloat16}),
    ("bf16", 8.1e9, {"master_weights": "split", "state_dtype": torch.int8}),
    ("bf16", 6.1e9, {"rounding": "stochastic", "state_dtype": torch.int8}),
    ("bf16", 4e9, {"master_weights": "split", "offload": True}),
    ("bf16", 3.9e9, None),
    ("fp16", None, {"master_weights": "kahan"}),
    ("fp32", None, {}),
    ("fp32", 12e9, {"state_dtype": torch.bfloat16}),
    ("fp32", 11e9, {"state_dtype": torch.int8}),
    ("fp32", 8e9, {"offload": True}),
    ("fp64", None, {}),
]


@pytest.mark.parametrize(("dtype", "memory", "options"), MEMORY)
def test_the_recommended_one_is_the_most_precise_that_fits(
    dtype: str, memory: float | None, options: dict | None
) -> None:
    plan = radam_fused.plan(1e9, dtype=dtype, memory=memory)
    best = plan.recommended
    assert sum(bool(choice.why) for choice in plan) == (options is not None)
    if options is None:
        assert best is None
        assert "Nothing fits" in str(plan)
    else:
        assert best is not None
        assert best.options.items() == options.items()
        assert best.why in str(plan)


def test_what_is_recommended_can_be_made() -> None:
    """Its options are `FusedRAdam`'s arguments, and so are those of all others."""
    for dtype in DTYPES:
        for choice in radam_fused.plan(5000, dtype=dtype):
            FusedRAdam(parameters((5000,), dtype=dtype), **choice.options)


WRONG = [
    ({"gpus": 0}, "gpus = 0: must be a whole number, at least 1"),
    ({"gpus": 2.0}, "gpus = 2.0: must be"),
    ({"bandwidth": 0.0}, "bandwidth = 0.0: must be finite and above 0"),
    ({"bus_bandwidth": math.inf}, "bus_bandwidth = inf: must be finite"),
    ({"memory": "80 GB"}, "memory = '80 GB': must be a number"),
    ({"dtype": "fp8"}, "dtype = 'fp8': must be one of"),
    ({"model_or_params": -1}, "model_or_params = -1: must be finite and above 0"),
    ({"model_or_params": "7B"}, "model_or_params: holds a str: must hold tensors alone"),
    ({"model_or_params": None}, "model_or_params = None: must be a model"),
    ({"model_or_params": nn.Linear(2, 2), "dtype": "bf16"}, "must be None for a model"),
    ({"model_or_params": nn.Linear(2, 2).requires_grad_(False)}, "no parameter requires a gradient"),
    ({"model_or_params": [torch.zeros(2, 2, requires_grad=True).to_sparse()]}, "layout"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[message[:24] for _, message in WRONG])
def test_what_is_not_allowed(arguments: dict, message: str) -> None:
    arguments = {"model_or_params": 1e9, **arguments}
    with pytest.raises((TypeError, ValueError)) as error:
        radam_fused.plan(arguments.pop("model_or_params"), **arguments)
    assert message in str(error.value)


def test_buffers_are_those_of_a_bucket() -> None:
    """What `plan` counts is what `Bucket` allocates: one list for both."""
    specs = StateFormat(torch.int8, "kahan").buffers(torch.bfloat16, 2**20, 512)
    assert {name: spec.nbytes for name, spec in specs.items()} == {
        "exp_avg": 512,
        "exp_avg_sq": 512,
        "scales": 16,
        "master": 1024,
    }
