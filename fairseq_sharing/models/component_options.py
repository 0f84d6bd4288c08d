"""Checks of sets that span both stacks: the layers of both must have the same shapes."""

from __future__ import annotations

from argparse import Namespace

from fairseq_sharing.errors import SharingError
from fairseq_sharing.options import flag_of

# Options of a stack that must agree if its sets contain a component, or if both stacks have it.
_ALIKE = {
    "self_attn": ("embed_dim", "attention_heads"),
    "attention": ("embed_dim", "attention_heads"),
    "ffn": ("embed_dim", "ffn_embed_dim"),
    "layer_norm": ("embed_dim",),
}
# Switches that remove components from the layers of one stack.
_WITHOUT = {
    "encoder_no_ffn": ("ffn", "layer_norm"),
    "decoder_no_ffn": ("ffn", "layer_norm"),
    "no_cross_attention": ("attention", "layer_norm"),
}


def refuse_unlike_stacks(args: Namespace, stacks: tuple[str, ...]) -> None:
    """Reject ``--cross-stack-sharing`` for stacks whose layers differ.

    Args:
        args: fairseq's arguments after the architecture was applied.
        stacks: the stacks that the model has.

    Raises:
        SharingError: only one stack, or stacks that differ in width, heads or components.
    """
    flag = f"--cross-stack-sharing {args.cross_stack_sharing}"
    if len(stacks) < 2:
        raise SharingError(f"{flag}: the model has only one stack, the {stacks[0]}; allowed: leave it out")
    components = [pair.partition("=")[0].strip() for pair in args.cross_stack_sharing.split(";")]
    for component in components:
        for option in _ALIKE.get(component, ()):
            encoder, decoder = (getattr(args, f"{stack}_{option}") for stack in stacks)
            if encoder != decoder:
                raise SharingError(
                    f"{flag}: {flag_of(f'encoder_{option}')} {encoder} and {flag_of(f'decoder_{option}')} {decoder}; "
                    f"allowed: equal values, as both stacks share {component}"
                )
    for option, missing in _WITHOUT.items():
        if getattr(args, option, False) and (lacks := [c for c in components if c in missing]):
            raise SharingError(
                f"{flag} cannot be combined with {flag_of(option)}: the layers of one stack lack a part of {lacks[0]}; "
                f"allowed: components other than {', '.join(missing)}"
            )
