"""State of sharded parameters as a checkpoint holds it, and back, on one process that plays each rank."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from radam_fused.dtensor import wrapped
from radam_fused.state.codec import CODES, local_entry, of_elements, portable
from tests.support.fake_ranks import as_each_rank
from tests.support.helpers import same_bits

SHAPE = (8, 300)
OVER_ROWS = ((4,), (Shard(0),))


def codes(param: DTensor) -> dict[str, Tensor]:
    """An entry of this rank: its codes, and a scale for each of its blocks."""
    part = param.to_local()
    blocks = -(-part.numel() // 256)
    values = torch.arange(part.numel()).view(part.shape)
    code, sq_code = (values % 100).to(torch.int8), (values % 200).to(torch.uint8)
    scales = torch.arange(1.0, blocks + 1)
    own = (wrapped(param, code), wrapped(param, sq_code), scales, 10 * scales)
    return {"step": torch.tensor(3.0), **dict(zip(CODES, own, strict=True))}


def test_codes_get_the_scale_of_their_block_and_keep_this_ranks_blocks_when_they_return() -> None:
    for param in as_each_rank(*OVER_ROWS, torch.zeros(SHAPE)):
        entry = codes(param)
        made = portable(entry, param)
        assert list(made) == list(entry)
        assert made["step"] is entry["step"]
        for code, scale in zip(CODES[:2], CODES[2:], strict=True):
            assert same_bits(made[code].to_local(), entry[code].to_local())
            assert made[code].to_local().data_ptr() != entry[code].to_local().data_ptr()
            assert same_bits(made[scale].to_local(), of_elements(entry[scale], entry[code].to_local()))
            assert made[scale].placements == param.placements
        back = local_entry(made, param)
        assert all(same_bits(back[name], made[name].to_local()) for name in CODES)
        assert back["step"] is entry["step"]
        own = local_entry(entry, param)
        assert all(own[name] is entry[name] for name in CODES[2:])
        assert same_bits(own[CODES[0]], entry[CODES[0]].to_local())


def test_what_is_portable_already_stays() -> None:
    for param in as_each_rank(*OVER_ROWS, torch.zeros(SHAPE)):
        made = portable(codes(param), param)
        again = portable(made, param)
        assert all(again[name] is made[name] for name in CODES)


def test_codes_of_a_whole_parameter_are_cut_with_their_scales() -> None:
    whole = {
        "step": torch.tensor(3.0),
        CODES[0]: torch.arange(2400).view(SHAPE).to(torch.int8),
        CODES[1]: torch.arange(2400).view(SHAPE).to(torch.uint8),
        CODES[2]: torch.arange(10.0),
        CODES[3]: torch.arange(10.0) + 0.5,
        "note": "a user's",
    }
    scales = torch.arange(10.0).repeat_interleave(256)[:2400].view(SHAPE)
    for rank, param in enumerate(as_each_rank(*OVER_ROWS, torch.zeros(SHAPE))):
        part = local_entry(whole, param)
        rows = slice(2 * rank, 2 * rank + 2)
        assert same_bits(part[CODES[0]], whole[CODES[0]][rows])
        assert same_bits(part[CODES[2]], scales[rows])
        assert same_bits(part[CODES[3]], scales[rows] + 0.5)
        assert (part["step"], part["note"]) == (whole["step"], "a user's")


def test_low_bits_are_gathered_as_int32() -> None:
    for param in as_each_rank(*OVER_ROWS, torch.zeros(SHAPE, dtype=torch.bfloat16)):
        low = torch.arange(600, dtype=torch.int16).view(2, 300) - 300
        made = portable({"master_low": wrapped(param, low)}, param)
        assert made["master_low"].to_local().dtype == torch.int32
        assert torch.equal(made["master_low"].to_local(), low.int())


@pytest.mark.parametrize("sharded", [False, True])
def test_a_plain_parameter_keeps_its_entry(sharded: bool) -> None:
    param, entry = torch.zeros(4), {"exp_avg": torch.ones(4)}
    param._fsdp_flattened = sharded
    assert portable(entry, param) is entry  # FSDP1 too: all of it has one dtype


def test_fsdp1_gathers_one_dtype() -> None:
    param = torch.zeros(600)
    param._fsdp_flattened = True
    code = torch.arange(600).to(torch.int8)
    entry = {
        "step": torch.tensor(3, dtype=torch.int64),
        CODES[0]: code,
        CODES[1]: code.to(torch.uint8),
        CODES[2]: torch.tensor([1.0, 2.0, 3.0]),
        CODES[3]: torch.tensor([4.0, 5.0, 6.0]),
        "note": [1],
    }
    made = portable(entry, param)
    assert {name: value.dtype for name, value in made.items() if name in CODES} == dict.fromkeys(CODES, torch.float32)
    assert torch.equal(made[CODES[0]], code.float())
    assert torch.equal(made[CODES[2]], of_elements(entry[CODES[2]], code))
    assert torch.equal(made[CODES[3]], of_elements(entry[CODES[3]], code))
    assert (made["step"], made["note"]) == (entry["step"], entry["note"])
    mixed = portable({"exp_avg": torch.ones(3, dtype=torch.bfloat16), "master": torch.ones(3)}, param)
    assert {value.dtype for value in mixed.values()} == {torch.float32}
