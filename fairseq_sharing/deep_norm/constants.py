"""The constants of DeepNorm, from the depths of the stacks."""

from __future__ import annotations

from typing import NamedTuple


class Constants(NamedTuple):
    """The constants of one stack.

    Args:
        alpha: the weight of every residual connection.
        beta: the gain of the initial values.
    """

    alpha: float
    beta: float


def encoder_constants(encoder_layers: int, decoder_layers: int) -> Constants:
    """Return the constants of the encoder of an encoder-decoder model with N and M layers.

    Source: Wang et al. 2022, "DeepNet: Scaling Transformers to 1,000 Layers": alpha = 0.81 (N^4 M)^(1/16) and
    beta = 0.87 (N^4 M)^(-1/16).
    """
    depth = (encoder_layers**4 * decoder_layers) ** (1 / 16)
    return Constants(0.81 * depth, 0.87 / depth)


def decoder_constants(decoder_layers: int) -> Constants:
    """Return the constants of the decoder of an encoder-decoder model with M layers.

    Source: Wang et al. 2022: alpha = (3M)^(1/4) and beta = (12M)^(-1/4).
    """
    return Constants((3 * decoder_layers) ** 0.25, (12 * decoder_layers) ** -0.25)


def single_stack_constants(layers: int) -> Constants:
    """Return the constants of a model with one stack of N layers, such as a language model.

    Source: Wang et al. 2022: alpha = (2N)^(1/4) and beta = (8N)^(-1/4).
    """
    return Constants((2 * layers) ** 0.25, (8 * layers) ** -0.25)


def constants_of(cfg: object, stack: str, no_encoder_attn: bool = False) -> Constants:
    """Return the constants of a stack.

    The depths are numbers of layers, which shared layers do not reduce: a shared matrix acts at every depth.

    Args:
        cfg: fairseq's TransformerConfig.
        stack: ``encoder`` or ``decoder``.
        no_encoder_attn: whether the layers are those of a language model.
    """
    encoder_layers, decoder_layers = (int(getattr(cfg, f"{side}_layers")) for side in ("encoder", "decoder"))
    if stack == "encoder":
        return encoder_constants(encoder_layers, decoder_layers)
    return single_stack_constants(decoder_layers) if no_encoder_attn else decoder_constants(decoder_layers)
