"""The text: the documentation of the language that every CPython carries, as bytes.

``pydoc_data.topics`` holds what ``help("if")``, ``help("LAMBDA")`` and the like print: a few
hundred kilobytes of English and code, the same for every user of the same Python. A byte is a
token, so there is no tokenizer, and 256 tokens are all there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


def load_text() -> bytes:
    """All topics, one after the other, in the order of their names."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics)).encode("utf-8")


@dataclass(frozen=True)
class Corpus:
    """Training and validation text: 1-d uint8 tensors on the device that trains."""

    train: Tensor
    valid: Tensor

    @classmethod
    def load(cls, device: torch.device | str = "cpu", block: int = 4096, every: int = 10) -> Corpus:
        """Cut the text into blocks and hold every tenth one back for validation.

        Blocks rather than one tail: the last topics in the alphabet are a few long tables of
        methods, which say little about the rest.
        """
        data = torch.frombuffer(bytearray(load_text()), dtype=torch.uint8)
        blocks = data.split(block)
        held = range(every - 1, len(blocks), every)
        valid = torch.cat([blocks[i] for i in held])
        train = torch.cat([part for i, part in enumerate(blocks) if i not in held])
        return cls(train.to(device), valid.to(device))

    def batches(self, batch: int, context: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Random windows of the training text for ever; a seed gives one sequence of batches.

        The generator is this iterator's own and lives on the CPU, so that neither the model, nor
        the optimizer, nor the device has a say in which windows come next.
        """
        generator = torch.Generator().manual_seed(seed)
        offsets = torch.arange(context + 1, device=self.train.device)
        while True:
            starts = torch.randint(len(self.train) - context, (batch, 1), generator=generator)
            yield _split(self.train, starts.to(self.train.device) + offsets)

    def validation(self, context: int, windows: int) -> tuple[Tensor, Tensor]:
        """The same evenly spaced windows of the validation text at every call."""
        starts = torch.linspace(0, len(self.valid) - context - 1, windows).long().unsqueeze(1)
        offsets = torch.arange(context + 1)
        return _split(self.valid, (starts + offsets).to(self.valid.device))

    def unigram_entropy(self) -> float:
        """Nats a byte that a model pays on the validation text if all it knows is how often each
        byte occurs in the training text: what a language model has to beat."""
        counts = torch.bincount(self.train.long(), minlength=256).double() + 1.0
        log_p = (counts / counts.sum()).log()
        return -log_p[self.valid.long()].mean().item()


def _split(text: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Windows of ``context + 1`` bytes, as inputs and as targets one byte further."""
    window = text[index].long()
    return window[:, :-1], window[:, 1:]
