"""Parameter shapes of whole models, in the order of ``model.parameters()``, in which an optimizer gets them."""

from __future__ import annotations

Shape = tuple[int, ...]


def gpt2(layers: int = 12, width: int = 768, vocabulary: int = 50257, context: int = 1024) -> list[Shape]:
    """GPT-2's shapes in the order of its checkpoint. The head is tied to ``wte``; q, k and v are one matrix."""
    norm = [(width,), (width,)]
    block = [
        *norm,  # ln_1
        (width, 3 * width),  # attn.c_attn
        (3 * width,),
        (width, width),  # attn.c_proj
        (width,),
        *norm,  # ln_2
        (width, 4 * width),  # mlp.c_fc
        (4 * width,),
        (4 * width, width),  # mlp.c_proj
        (width,),
    ]
    return [(vocabulary, width), (context, width), *(block * layers), *norm]


def llama(
    layers: int = 16,
    width: int = 2048,
    inner: int = 8192,
    key_value: int = 512,
    vocabulary: int = 128_256,
    tied: bool = True,
) -> list[Shape]:
    """Llama-3.2-1B's shapes in the order of its checkpoint; with ``tied`` the head shares the embedding's matrix."""
    block: list[Shape] = [
        (width, width),  # q_proj
        (key_value, width),  # k_proj
        (key_value, width),  # v_proj
        (width, width),  # o_proj
        (inner, width),  # gate_proj
        (inner, width),  # up_proj
        (width, inner),  # down_proj
        (width,),  # input_layernorm
        (width,),  # post_attention_layernorm
    ]
    head = [] if tied else [(vocabulary, width)]
    return [(vocabulary, width), *(block * layers), (width,), *head]


def llama_8b() -> list[Shape]:
    """Llama-3-8B's shapes; its head is not tied to the embedding."""
    return llama(layers=32, width=4096, inner=14_336, key_value=1024, tied=False)


def resnet50() -> list[Shape]:
    """The shapes of torchvision's ResNet-50."""

    def convolution(outputs: int, inputs: int, size: int) -> list[Shape]:
        return [(outputs, inputs, size, size), (outputs,), (outputs,)]  # and its batch norm

    shapes = convolution(64, 3, 7)
    inputs = 64
    for layer, blocks in enumerate((3, 4, 6, 3)):
        width = 64 << layer
        for block in range(blocks):
            shapes += convolution(width, inputs, 1) + convolution(width, width, 3) + convolution(4 * width, width, 1)
            if block == 0:
                shapes += convolution(4 * width, inputs, 1)  # downsample
            inputs = 4 * width
    return [*shapes, (1000, inputs), (1000,)]


def vit_b(layers: int = 12, width: int = 768, patch: int = 16, image: int = 224) -> list[Shape]:
    """The shapes of torchvision's ViT-B/16."""
    norm = [(width,), (width,)]
    block = [
        *norm,  # ln_1
        (3 * width, width),  # self_attention.in_proj
        (3 * width,),
        (width, width),  # self_attention.out_proj
        (width,),
        *norm,  # ln_2
        (4 * width, width),  # mlp.0
        (4 * width,),
        (width, 4 * width),  # mlp.3
        (width,),
    ]
    tokens = (image // patch) ** 2 + 1
    ends = [(1, 1, width), (width, 3, patch, patch), (width,), (1, tokens, width)]
    return [*ends, *(block * layers), *norm, (1000, width), (1000,)]


def mixture_of_experts(layers: int = 8, experts: int = 156, width: int = 64, inner: int = 128) -> list[Shape]:
    """A transformer whose feed-forward layers are many small experts, each matrix and bias a parameter of its own.

    8 layers of 156 experts are 4,992 of its 5,034 tensors.
    """
    expert: list[Shape] = [(inner, width), (inner,), (width, inner), (width,)]
    block: list[Shape] = [
        (width,),  # norm of the attention
        (3 * width, width),
        (width, width),
        (width,),  # norm of the experts
        (experts, width),  # router
        *(expert * experts),
    ]
    return [(32_000, width), *(block * layers), (width,)]
