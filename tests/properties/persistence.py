"""What should change no bit: saving and loading in every way, copies, other places, moved and shared memory."""

from __future__ import annotations

import copy
import io
import pickle
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from torch import Tensor

from radam_fused import step_in_backward
from tests.properties.mirror import Mirror, done, group_of, params_of, picks
from tests.properties.models import LAYOUTS, flags, gradient, hyperparameters, seeds, specs

StateDict = dict[str, Any]


def by_torch_save(state: StateDict) -> StateDict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def by_pickle(state: StateDict) -> StateDict:
    return pickle.loads(pickle.dumps(state))


def by_safetensors(state: StateDict) -> StateDict:
    """Tensors by safetensors, the rest as it is."""
    rest = copy.copy(state)
    tensors, others = {}, {}
    for index, entry in state["state"].items():
        others[index] = {name: value for name, value in entry.items() if not isinstance(value, Tensor)}
        tensors.update({f"{index}.{k}": v.contiguous() for k, v in entry.items() if isinstance(v, Tensor)})
    loaded = safetensors.torch.load(safetensors.torch.save(tensors))
    rest["state"] = {
        index: {name: others[index].get(name, loaded.get(f"{index}.{name}")) for name in entry}
        for index, entry in state["state"].items()
    }
    return rest


def by_dcp(state: StateDict) -> StateDict:
    template = copy.deepcopy(state)
    for entry in template["state"].values():
        for value in entry.values():
            if isinstance(value, Tensor):
                value.zero_()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"optimizer": state}, checkpoint_id=folder)
        dcp.load({"optimizer": template}, checkpoint_id=folder)
    return template


FILES: dict[str, Callable[[StateDict], StateDict]] = {
    "torch.save": by_torch_save,
    "pickle": by_pickle,
    "safetensors": by_safetensors,
    "copy": copy.deepcopy,
    "dcp": by_dcp,
}
ways = st.sampled_from(["torch.save", "torch.save", "pickle", "safetensors", "copy", "copy", "dcp"])


class Persistence(Mirror):
    """Hyperparameters, groups, state, checkpoints, copies, memory."""

    # Both sides.

    @rule(index=picks, values=hyperparameters, as_tensor=flags)
    def change_group(self, index: int, values: dict[str, Any], as_tensor: bool) -> None:
        for opt in (self.ours, self.mirror):
            lr = torch.tensor(values["lr"]) if as_tensor else values["lr"]
            group_of(opt, index).update(values, lr=lr)

    @precondition(lambda self: len(self.ours.param_groups) < 5)
    @rule(data=st.data(), values=hyperparameters)
    def add_group(self, data: Any, values: dict[str, Any]) -> None:
        added = data.draw(st.lists(specs(self.dtypes), min_size=1, max_size=2))
        for opt in (self.ours, self.mirror):
            opt.add_param_group({"params": [spec.make() for spec in added], **values})
        self.attach()
        done["groups added"] += 1

    @rule(index=picks, requires_grad=flags)
    def freeze_or_thaw(self, index: int, requires_grad: bool) -> None:
        for p in self.pick(index):
            p.requires_grad_(requires_grad)
            p.grad = None

    @rule(index=picks, seed=seeds)
    def overwrite_parameter(self, index: int, seed: int) -> None:
        with torch.no_grad():
            for p in self.pick(index):
                p.copy_(gradient(p, seed, "normal"))

    @rule(index=picks, steps=st.integers(0, 1000))
    def write_state(self, index: int, steps: int) -> None:
        entries = [opt.state.get(p) for opt, p in zip((self.ours, self.mirror), self.pick(index), strict=True)]
        if not all(entries):
            return
        for entry in entries:
            entry["step"].fill_(steps)
            if "exp_avg" in entry:
                entry["exp_avg"].mul_(0.5)

    @rule(index=picks)
    def drop_state(self, index: int) -> None:
        for opt, p in zip((self.ours, self.mirror), self.pick(index), strict=True):
            opt.state.pop(p, None)

    # Ours alone: state.

    @rule(index=picks, share=flags)
    def assign_state(self, index: int, share: bool) -> None:
        """The same values in memory of the user's, shared among processes at times."""
        entry = self.ours.state.get(self.pick(index)[0])
        for name, value in list((entry or {}).items()):
            if isinstance(value, Tensor):
                entry[name] = value.clone().share_memory_() if share else value.clone()
        done["states assigned"] += 1

    @rule()
    def replace_entries(self) -> None:
        for p in list(self.ours.state):
            self.ours.state[p] = dict(self.ours.state[p])

    @rule()
    def move_state(self) -> None:
        """As code that offloads by itself does: away and back."""
        for entry in self.ours.state.values():
            for name, value in list(entry.items()):
                if isinstance(value, Tensor):
                    entry[name] = value.to("cpu", copy=True)

    # Ours alone: checkpoints and copies.

    @rule(way=ways)
    def reload(self, way: str) -> None:
        self.ours.load_state_dict(FILES[way](self.ours.state_dict()))
        done[f"loads, {way}"] += 1

    @rule(way=ways, data=st.data())
    def resume(self, way: str, data: Any) -> None:
        """A fresh optimizer, of another backend and another layout, over the same parameters."""
        state, params = FILES[way](self.ours.state_dict()), params_of(self.ours)
        before = [p.grad is not None for p in params]
        groups = [{"params": list(group["params"])} for group in self.ours.param_groups]
        place = self.draw_place(data)
        if place["flatten"] and any(p.is_shared() for p in params):
            place["flatten"] = False  # it refuses parameters in shared memory
        if place.get("offload"):
            for group in state["param_groups"]:
                group["capturable"] = False
        self.ours = self.optimizer(groups, place)
        self.ours.load_state_dict(state)
        done["backends swapped"] += 1
        assert place["flatten"] or [p.grad is not None for p in params] == before
        self.attach()

    @rule(pickled=flags)
    def duplicate(self, pickled: bool) -> None:
        original = self.ours
        values = [p.detach().clone() for p in params_of(original)]
        self.ours = pickle.loads(pickle.dumps(original)) if pickled else copy.deepcopy(original)
        self.attach()
        self.step_again()
        assert all(
            torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(params_of(original), values, strict=True)
        )
        done["copies"] += 1

    # Ours alone: memory.

    @precondition(lambda self: not self.flatten)
    @rule(index=picks, layout=st.sampled_from(sorted(LAYOUTS)))
    def move_parameter(self, index: int, layout: str) -> None:
        """As `.to`, another memory format or a tool that shards do."""
        p, _ = self.pick(index)
        stochastic = "state_dtype" in self.stored or "rounding" in self.stored
        p.data = p.data.clone() if stochastic else LAYOUTS[layout](p.data)  # random bits follow the order in memory
        done["parameters moved"] += 1

    @precondition(lambda self: not self.flatten)
    @rule(index=picks)
    def share_parameter(self, index: int) -> None:
        self.pick(index)[0].data.share_memory_()

    @precondition(lambda self: not (self.flatten or self.place.get("offload") or "max_grad_norm" in self.stored))
    @rule(seed=seeds, missing=st.sets(picks, max_size=2))
    def step_in_backward(self, seed: int, missing: set[int]) -> None:
        """Turned on for one iteration; autograd makes the gradients."""
        self.give(seed, "normal", missing)
        wanted = [None if p.grad is None else p.grad for p, _ in self.pairs]
        for p, q in self.pairs:
            p.grad = q.grad = None
        self.mirror.zero_grad()
        for opt in (self.ours, self.mirror):
            loss = torch.zeros((), requires_grad=True)
            for p, grad in zip(params_of(opt), wanted, strict=True):
                if grad is not None:
                    loss = loss + (p * grad).double().sum()
            if opt is self.ours:
                with step_in_backward(opt):
                    loss.backward()
                    opt.step()
            else:
                loss.backward()
                opt.step()
        self.mirror.zero_grad()
        self.attach()
        done["steps in backward"] += 1

    def compilable(self) -> bool:
        """Compilation takes a second, so one example in thirty may compile its steps."""
        groups = self.ours.param_groups
        return self.compiles and all(group["capturable"] for group in groups) and not self.place.get("offload")

    @precondition(compilable)
    @rule(seed=seeds)
    def step_compiled(self, seed: int) -> None:
        torch._dynamo.reset()
        step = torch.compile(self.ours.step, backend="eager")
        for t in range(2):
            self.give(seed + 100 * t, "normal", set())
            step()
            self.mirror.step()
            done["steps compiled"] += 1
        torch._dynamo.reset()
