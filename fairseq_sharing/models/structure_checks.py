"""Check the options of structures: layers without FFN, factorized embeddings, DeepNorm and B2T."""

from argparse import Namespace

from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import STACKS
from fairseq_sharing.options import flag_of, refuse

# Structures that change the residual connections of post-norm layers.
RESIDUAL_RULES = ("deepnorm", "b2t")
STRUCTURES = ("encoder_no_ffn", "decoder_no_ffn", "embedding_factor_dim", *RESIDUAL_RULES)


def check_structures(args: Namespace, stacks: tuple[str, ...]) -> None:
    """Check the options of structures against each other and against the other arguments of a model.

    Args:
        args: fairseq's arguments after the architecture was applied.
        stacks: the stacks that the model has.

    Raises:
        SharingError: with the flag, its value and the allowed values.
    """
    for stack in STACKS:
        if not getattr(args, f"{stack}_no_ffn", False):
            continue
        if stack not in stacks:
            raise SharingError(f"--{stack}-no-ffn: this model has no {stack}; allowed: --{stacks[0]}-no-ffn")
        for option in ("scale_fc", "scale_resids") if stack == "decoder" else ():
            refuse(args, option, "it is a part of the feed-forward network, which --decoder-no-ffn removes", False)
    for rule in RESIDUAL_RULES:
        if getattr(args, rule, False):
            _check_residual_rule(args, rule, stacks)
    if getattr(args, "embedding_factor_dim", None) is not None:
        _check_factor(args, stacks)


def _check_residual_rule(args: Namespace, rule: str, stacks: tuple[str, ...]) -> None:
    for stack in stacks:
        refuse(args, f"{stack}_normalize_before", f"{flag_of(rule)} requires post-norm layers", False)
    refuse(args, "admin", f"{flag_of(rule)} replaces its residual connections", "off")
    if rule == "deepnorm":
        for stack in stacks:
            refuse(args, f"{stack}_layers_to_keep", "the weights of --deepnorm depend on the number of layers", None)
    if rule == "b2t":
        refuse(args, "deepnorm", "--b2t replaces its residual connections", False)
        for stack in stacks:
            refuse(args, f"{stack}_no_ffn", "--b2t ends at the feed-forward network", False)


def _check_factor(args: Namespace, stacks: tuple[str, ...]) -> None:
    factor = args.embedding_factor_dim
    if factor < 1:
        raise SharingError(f"--embedding-factor-dim must be at least 1, got {factor}")
    for option in ("adaptive_input", "adaptive_softmax_cutoff", "character_embeddings"):
        refuse(args, option, "--embedding-factor-dim replaces the embeddings", None)
    for stack in stacks:
        refuse(args, f"{stack}_embed_path", "its embeddings have the width of the model", None)
    for option in ("decoder_input_dim", "decoder_output_dim"):
        reason = "--embedding-factor-dim projects to the width of the model"
        refuse(args, option, reason, getattr(args, "decoder_embed_dim", None))
