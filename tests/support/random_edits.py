"""What users do to groups, state and parameters, on both optimizers of a pair: rules for random sequences."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from torch import Tensor, nn

from tests.support.random_pairs import NAMES, SHAPES, betas, decays, flags, noise, picks, rates, seeds
from tests.support.random_steps import Steps


class Training(Steps):
    """Both optimizers under everything that users do."""

    # Hyperparameters and groups.

    @rule(index=picks, requires_grad=flags)
    def freeze_or_thaw(self, index: int, requires_grad: bool) -> None:
        for p in self.pick(index):
            p.requires_grad_(requires_grad)

    @rule(index=picks, lr=rates, betas=betas, decay=decays, maximize=flags, as_tensor=flags)
    def change_group(
        self, index: int, lr: float, betas: tuple[float, float], decay: float, maximize: bool, as_tensor: bool
    ) -> None:
        for group in self.group(index):
            group.update(betas=betas, weight_decay=decay, maximize=maximize, lr=torch.tensor(lr) if as_tensor else lr)

    @rule(index=picks, lr=rates)
    def change_lr_in_place(self, index: int, lr: float) -> None:
        for group in self.group(index):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    @precondition(lambda self: not self.offload)
    @rule(index=picks, capturable=flags)
    def change_capturable(self, index: int, capturable: bool) -> None:
        self.group(index)[0]["capturable"] = capturable

    @precondition(lambda self: len(self.pairs) < len(SHAPES))
    @rule(lr=rates, decoupled=flags, requires_grad=flags)
    def add_group(self, lr: float, decoupled: bool, requires_grad: bool) -> None:
        count = len(self.pairs)
        for opt in (self.ours, self.theirs):
            p = nn.Parameter(noise(SHAPES[count], count), requires_grad)
            params: Any = [(f"p{count}", p)] if self.named else [p]
            opt.add_param_group({"params": params, "lr": lr, "weight_decay": 0.1, "decoupled_weight_decay": decoupled})
        self.saved = None
        if self.flatten:  # its parameters, and those thawed since, get buffers and gradients of zero
            for p, q in self.pairs:
                q.grad = None if p.grad is None else p.grad.detach().clone()

    # State.

    def both_have_state(self, index: int) -> bool:
        p, q = self.pick(index)
        return bool(self.ours.state.get(p)) and bool(self.theirs.state.get(q))

    @rule(index=picks, name=st.sampled_from(NAMES), assign=flags, steps=st.integers(0, 1000))
    def write_state(self, index: int, name: str, assign: bool, steps: int) -> None:
        if not self.both_have_state(index):
            return
        for opt, p in zip((self.ours, self.theirs), self.pick(index), strict=True):
            entry = opt.state[p]
            value = torch.full_like(entry[name], steps) if name == "step" else entry[name] * 0.5
            if assign:
                entry[name] = value
            else:
                entry[name].copy_(value)

    @rule(index=picks)
    def drop_state(self, index: int) -> None:
        for opt, p in zip((self.ours, self.theirs), self.pick(index), strict=True):
            opt.state.pop(p, None)

    @rule(index=picks)
    def look_at_state(self, index: int) -> None:
        for opt, p in zip((self.ours, self.theirs), self.pick(index), strict=True):
            assert isinstance(opt.state[p], dict)

    @rule()
    def save(self) -> None:
        self.saved = copy.deepcopy((self.ours.state_dict(), self.theirs.state_dict()))

    @precondition(lambda self: self.saved is not None)
    @rule()
    def restore(self) -> None:
        assert self.saved is not None
        for opt, state_dict in zip((self.ours, self.theirs), copy.deepcopy(self.saved), strict=True):
            opt.load_state_dict(state_dict)  # torch's goes on to write into what it has loaded

    @rule(by_torch=flags, capturable=st.sampled_from([None, False, True]))
    def resume(self, by_torch: bool, capturable: bool | None) -> None:
        """From a file, with fresh optimizers over the same parameters; ours through torch's at times."""
        groups = [[{"params": group["params"]} for group in opt.param_groups] for opt in (self.ours, self.theirs)]
        loaded = []
        for opt in (self.ours, self.theirs):
            file = io.BytesIO()
            torch.save(opt.state_dict(), file)
            file.seek(0)
            loaded.append(torch.load(file))
        if by_torch:
            between = torch.optim.RAdam([{"params": group["params"]} for group in self.ours.param_groups])
            between.load_state_dict(loaded[0])
            loaded[0] = between.state_dict()
        if capturable is not None and not self.offload:
            for group in loaded[0]["param_groups"]:
                group["capturable"] = capturable
        names = [group.get("param_names") for group in self.ours.param_groups]
        self.ours, self.theirs = self.kind(groups[0], **self.options), torch.optim.RAdam(groups[1])
        for opt, state_dict in zip((self.ours, self.theirs), loaded, strict=True):
            opt.load_state_dict(state_dict)
        assert [group.get("param_names") for group in self.ours.param_groups] == names
        self.attach()

    @precondition(lambda self: self.copies < 2)
    @rule(by_pickle=flags)
    def duplicate(self, by_pickle: bool) -> None:
        """Copies go on, and what was copied stays as it is; gradients are not copied, as torch has it."""
        self.copies += 1
        both = (self.ours, self.theirs)
        self.ours, self.theirs = pickle.loads(pickle.dumps(both)) if by_pickle else copy.deepcopy(both)

    # Parameters.

    @rule(index=picks, seed=seeds)
    def overwrite_parameter(self, index: int, seed: int) -> None:
        with torch.no_grad():
            for p in self.pick(index):
                p.copy_(noise(p.shape, seed))

    @precondition(lambda self: not self.flatten)
    @rule(index=picks)
    def replace_storage(self, index: int) -> None:
        p, _ = self.pick(index)
        p.data = p.data.clone()

    @precondition(lambda self: not self.flatten)
    @rule(seed=seeds)
    def transpose_in_memory(self, seed: int) -> None:
        """As a model that goes channels_last; with its next step, whose launch finds it."""
        for p, _ in self.pairs:
            if p.dim() == 2:
                p.data = p.data.t().contiguous().t() if p.is_contiguous() else p.data.contiguous()
        self.train(seed, set(), 1)
