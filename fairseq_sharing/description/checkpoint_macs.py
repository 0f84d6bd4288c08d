"""MACs of the model in a checkpoint."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from fairseq.data import Dictionary
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.models.transformer import TransformerModelBase
from fairseq.models.transformer_lm import TransformerLanguageModel

from fairseq_sharing.checkpoints.arguments import model_arguments
from fairseq_sharing.checkpoints.files import load_checkpoint
from fairseq_sharing.description.counts import build_without_storage, count_macs

LENGTH = 25
"""Source and target tokens of the sentence pair."""


def macs_of_checkpoint(checkpoint: Path, dictionary: Path) -> int | None:
    """Count the MACs of one forward pass of the model in a checkpoint; None for models that are no Transformers.

    Args:
        checkpoint: the checkpoint.
        dictionary: fairseq's dictionary file of the target language.

    Returns:
        The MACs for a sentence pair of ``LENGTH`` source and target tokens; of a language model, for a block of text
        as long as in training. See ``count_macs``.
    """
    # The values of pretrained embeddings are in the checkpoint.
    embeddings = {"encoder_embed_path": None, "decoder_embed_path": None}
    args = Namespace(**{**model_arguments(load_checkpoint(checkpoint)), **embeddings})
    kind = ARCH_MODEL_REGISTRY.get(args.arch, object)
    if not (issubclass(kind, TransformerModelBase | TransformerLanguageModel) or hasattr(kind, "count_macs")):
        return None
    length = args.tokens_per_sample if issubclass(kind, TransformerLanguageModel) else LENGTH
    return count_macs(build_without_storage(args, len(Dictionary.load(str(dictionary)))), length)
