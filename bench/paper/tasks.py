"""What is trained: the demo's GPT on its text, the same with post-norm, reversing sequences, and images.

A task has a model for a seed, batches for a seed, a loss and an evaluation. All randomness comes from generators of its
own on the CPU, so that optimizers differ in nothing else.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[2] / "examples"))  # they import each other as scripts do

from corpus import Corpus
from gpt import GPT, Block, GPTConfig

Batch = tuple[Tensor, Tensor]


class Task(Protocol):
    chance: float
    """The loss of a model that predicts uniformly: a run that diverged counts with it."""

    def model(self, seed: int) -> nn.Module: ...

    def batches(self, seed: int) -> Iterator[Batch]: ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor: ...

    def evaluate(self, model: nn.Module) -> dict[str, float]: ...


class PostNormBlock(Block):
    """As in the original Transformer: each sum is normalised, and there is no path around the norms."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.down(F.relu(self.up(x))))


class PostNormGPT(GPT):
    """The demo's GPT with post-norm blocks and Xavier's initialisation, as the paper's Transformers have them."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList(PostNormBlock(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=config.width**-0.5)


class _Sequences:
    """The common part of the two tasks of a Transformer."""

    vocabulary = 256

    def __init__(self, device: str, batch: int, post_norm: bool, **shape: int) -> None:
        self.device, self.batch = device, batch
        self.config = GPTConfig(vocabulary=self.vocabulary, **shape)
        self.kind = PostNormGPT if post_norm else GPT
        self.chance = float(torch.tensor(float(self.vocabulary)).log())

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return self.kind(self.config).to(self.device)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    @torch.no_grad()
    def measure(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, float]:
        logits = torch.cat([model(part) for part in inputs.split(32)])
        known = targets >= 0
        right = (logits.argmax(-1) == targets)[known].float().mean()
        return {"loss": F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item(), "accuracy": right.item()}


class Text(_Sequences):
    """The next byte of CPython's documentation."""

    def __init__(self, device: str, **settings: Any) -> None:
        super().__init__(device, **settings)
        self.corpus = Corpus.load(device)

    def batches(self, seed: int) -> Iterator[Batch]:
        return self.corpus.batches(self.batch, self.config.context, seed)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return self.measure(model, *self.corpus.validation(self.config.context, 256))


class Reverse(_Sequences):
    """Random words in half the context, then reversed in the other half, which alone counts: this needs attention."""

    vocabulary = 32

    def _draw(self, batch: int, generator: torch.Generator) -> Batch:
        half = self.config.context // 2
        word = torch.randint(1, self.vocabulary, (batch, half), generator=generator)
        both = torch.cat([word, torch.zeros(batch, 1, dtype=torch.long), word.flip(1)], dim=1).to(self.device)
        targets = both[:, 1:].clone()
        targets[:, :half] = -100  # cross entropy ignores these
        return both[:, :-1], targets

    def batches(self, seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield self._draw(self.batch, generator)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return self.measure(model, *self._draw(256, torch.Generator().manual_seed(10**6)))


class _Residual(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.stride, self.padding = stride, width - before

    def forward(self, x: Tensor) -> Tensor:
        around = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.padding))
        return F.relu(around + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


def resnet(channels: int, widths: tuple[int, ...], blocks: int) -> nn.Sequential:
    """He et al.'s for CIFAR: 6 blocks + 2 layers for three widths, with shortcuts that pad; blocks = 3 is ResNet-20."""
    before = widths[0]
    layers: list[nn.Module] = [nn.Conv2d(channels, before, 3, 1, 1, bias=False), nn.BatchNorm2d(before), nn.ReLU()]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            layers.append(_Residual(before, width, 2 if stage and not block else 1))
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


class Images:
    """Ten classes, a ResNet; epochs over a shuffled training set."""

    chance = 2.302585

    def __init__(self, device: str, data: tuple[Tensor, Tensor, Tensor, Tensor], **settings: Any) -> None:
        self.device = device
        self.x, self.y, self.test_x, self.test_y = (values.to(device) for values in data)
        self.batch, self.augment = settings["batch"], settings["augment"]
        self.widths, self.blocks = tuple(settings["widths"]), settings["blocks"]

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return resnet(self.x.shape[1], self.widths, self.blocks).to(self.device)

    def batches(self, seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            for index in torch.randperm(len(self.x), generator=generator).split(self.batch):
                x = self.x[index.to(self.device)]
                yield (self._augmented(x, generator) if self.augment else x), self.y[index.to(self.device)]

    @staticmethod
    def _augmented(x: Tensor, generator: torch.Generator) -> Tensor:
        """A random flip per image, and per batch a random crop with a margin of four pixels."""
        flip = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
        x = torch.where(flip[:, None, None, None], x.flip(3), x)
        down, right = torch.randint(0, 9, (2,), generator=generator).tolist()
        return F.pad(x, (4, 4, 4, 4))[:, :, down : down + x.shape[2], right : right + x.shape[3]]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        model.eval()
        logits = torch.cat([model(part) for part in self.test_x.split(500)])
        model.train()
        right = (logits.argmax(1) == self.test_y).float().mean()
        return {"loss": F.cross_entropy(logits, self.test_y).item(), "accuracy": right.item()}


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's 1,797 handwritten digits of 8 × 8 pixels, every fourth held back."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    y = torch.tensor(data.target, dtype=torch.long)
    held = torch.arange(len(x)) % 4 == 3
    return x[~held], y[~held], x[held], y[held]


def cifar10(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From the unpacked archive: `cifar-10-batches-bin`, or `cifar-10-batches-py` (pickles: only from the source)."""
    names = [f"data_batch_{k}" for k in range(1, 6)], ["test_batch"]
    parts = []
    for group in names:
        images, labels = zip(*(_cifar_file(folder, name) for name in group), strict=True)
        x = torch.cat(images).view(-1, 3, 32, 32).float() / 255
        middle, scale = (torch.tensor(v).view(3, 1, 1) for v in ([0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]))
        parts += [(x - middle) / scale, torch.cat(labels)]
    return tuple(parts)  # type: ignore[return-value]


def _cifar_file(folder: Path, name: str) -> Batch:
    binary = folder / f"{name}.bin"
    if binary.exists():
        rows = torch.frombuffer(bytearray(binary.read_bytes()), dtype=torch.uint8).view(-1, 3073)
        return rows[:, 1:].contiguous(), rows[:, 0].long()
    with open(folder / name, "rb") as file:
        found = pickle.load(file, encoding="bytes")
    return torch.tensor(found[b"data"]), torch.tensor(found[b"labels"])


@functools.lru_cache
def _images(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return digits() if name == "digits" else cifar10(Path(os.environ["CIFAR10"]))


def images() -> list[str]:
    """The image tasks whose data is available; the environment variable CIFAR10 names the folder of CIFAR10."""
    have = {"digits": importlib.util.find_spec("sklearn"), "cifar10": os.environ.get("CIFAR10")}
    return [name for name, found in have.items() if found]


def task(name: str, device: str, **model: Any) -> Task:
    if name in ("digits", "cifar10"):
        return Images(device, _images(name), **model)
    return {"text": Text, "deep": Text, "reverse": Reverse}[name](device, **model)
