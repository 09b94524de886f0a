"""Megatron-Core's optimizers around ours, over its DistributedDataParallel: what a rank does.

Megatron-Core takes a GPU for granted. On a machine without one, `OnCpu` has its calls that name the device use the CPU.
"""

from __future__ import annotations

from tests.tools import torchvision_operators  # noqa: F401  # isort: skip

import functools
import logging
import warnings
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

warnings.simplefilter("ignore")  # its own, about what is not installed

from megatron.core import parallel_state, tensor_parallel  # noqa: E402
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig  # noqa: E402
from megatron.core.optimizer import OptimizerConfig  # noqa: E402
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer  # noqa: E402
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params, FP32Optimizer  # noqa: E402
from megatron.core.transformer import TransformerConfig  # noqa: E402

from tests.tools.small import LIMIT, Run, batch, made, net, train_and_resume  # noqa: E402


class OnCpu(TorchFunctionMode):
    """Has ``device="cuda"`` mean the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1:
            return func(*args).replace("torch.", "torch.cuda.")
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


class Loop:
    """As Megatron-LM's training.py has it."""

    def __init__(self, kind: str, clip: bool, option: str, theirs: bool) -> None:
        logging.disable(logging.WARNING)
        if not parallel_state.is_initialized():
            parallel_state.initialize_model_parallel()
        bf16 = kind != "FP32Optimizer"
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        ours_clips = option == "max_grad_norm" and not theirs
        config = OptimizerConfig(
            bf16=bf16, params_dtype=self.dtype, clip_grad=LIMIT if clip and not ours_clips else 0.0
        )
        ddp = DistributedDataParallelConfig(use_distributed_optimizer=kind == "DistributedOptimizer")
        sizes: dict[str, Any] = {"num_layers": 1, "hidden_size": 64, "num_attention_heads": 1}
        model = net(self.dtype)
        for p in model.parameters():
            tensor_parallel.set_defaults_if_not_set_tensor_model_parallel_attributes(p)
        self.model: Any = DistributedDataParallel(TransformerConfig(**sizes), ddp, model)
        marks = {"wd_mult": 1.0, "lr_mult": 1.0, "is_expert_parallel": False, "is_decoupled_lr": False}
        optimizer = made([{"params": list(model.parameters()), **marks}], option, theirs)
        if kind == "DistributedOptimizer":
            self.optimizer: Any = DistributedOptimizer(
                optimizer,
                config,
                None,
                lambda *_: None,
                [self.model],
                {0: self.model.buffers},
                parallel_state.get_data_parallel_group(),
                None,
                0,
                0,
            )
        elif bf16:
            self.optimizer = Float16OptimizerWithFloat16Params(optimizer, config, None, lambda *_: None)
        else:
            self.optimizer = FP32Optimizer(optimizer, config, lambda *_: None)
        self.optimizer.grad_stats_parallel_group = parallel_state.get_model_parallel_group()
        self.optimizer.tp_group = parallel_state.get_tensor_model_parallel_group()

    def step(self, t: int) -> float:
        x = batch(t, dist.get_rank()).to(self.dtype)
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        loss = (self.model(x) - x).float().square().mean()
        loss.backward()
        self.model.finish_grad_sync()
        done, _, _ = self.optimizer.step()
        assert done
        return loss.item()

    def save(self, folder: str) -> None:
        saved = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(saved, f"{folder}/{dist.get_rank()}.pt")

    def load(self, folder: str) -> None:
        saved = torch.load(f"{folder}/{dist.get_rank()}.pt", weights_only=False)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])


def train(kind: str, clip: bool, option: str, theirs: bool) -> Run:
    """A run, on the CPU."""
    device = mock.patch("torch.cuda.current_device", return_value="cpu")
    with OnCpu(), device, mock.patch("torch.cuda.synchronize"):
        return train_and_resume(functools.partial(Loop, kind, clip, option, theirs))
