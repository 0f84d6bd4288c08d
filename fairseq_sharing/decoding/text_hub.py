"""fairseq's hub interface for trained models, with the text preparation of their data."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq.hub_utils import GeneratorHubInterface

from fairseq_sharing.decoding.fairseq_engine import MAX_TOKENS, load_models
from fairseq_sharing.decoding.model_files import find_model
from fairseq_sharing.errors import SharingError
from fairseq_sharing.preparation.text import Pipeline
from fairseq_sharing.terminal import Console

logger = logging.getLogger(__name__)


def from_pretrained(
    run: str | os.PathLike[str], checkpoint: str | None = None, data: str | os.PathLike[str] | None = None
) -> TextHub:
    """Load the model of a run directory.

    Args:
        run: the run directory.
        checkpoint: a checkpoint in it; None for the average of the last epochs, as in ``translate``.
        data: prepared data directory; None for the model's training data.

    Raises:
        SharingError: the run has no checkpoints, or its data moved or has no text preparation.
    """
    path = os.path.join(run, checkpoint) if checkpoint else os.fspath(run)
    files = find_model(path, None if data is None else Path(data), Console(stderr=True))
    if files.manifest is None:
        raise SharingError(f"{path}: no manifest.json with its text preparation; give the prepared data directory")
    models, task, cfg = load_models(files)
    cfg.dataset.max_tokens = max(MAX_TOKENS, *(model.max_positions()[0] for model in models))
    cfg.dataset.batch_size = None
    return TextHub(cfg, task, models, Pipeline.from_manifest(files.manifest))


class TextHub(GeneratorHubInterface):
    """fairseq's hub interface with the tokenizer, subwords and limits of ``fairseq-sharing translate``.

    Args:
        cfg: the configuration of a checkpoint.
        task: fairseq's task.
        models: the models.
        pipeline: the text preparation.
    """

    def __init__(self, cfg: Any, task: Any, models: Sequence[Any], pipeline: Pipeline):
        super().__init__(cfg, task, models)
        self.pipeline = pipeline

    def tokenize(self, sentence: str) -> str:
        """Normalize and tokenize a sentence."""
        return self.pipeline.tokenize(sentence)

    def apply_bpe(self, sentence: str) -> str:
        """Split tokens into subwords."""
        return self.pipeline.segment(sentence)

    def remove_bpe(self, sentence: str) -> str:
        """Join subwords to tokens."""
        return self.pipeline.join(sentence)

    def detokenize(self, sentence: str) -> str:
        """Convert tokens to a sentence."""
        return self.pipeline.detokenize(sentence)

    def binarize(self, sentence: str) -> torch.Tensor:
        """Convert subwords to numbers; keep as many as the model reads."""
        words, limit = sentence.split(), self.max_positions[0] - 1
        if len(words) > limit:
            logger.warning(f"{len(words)} subwords; the model reads only the first {limit}")
        return super().binarize(" ".join(words[:limit]))

    def sample(self, sentences: Any, beam: int = 1, verbose: bool = False, **search: Any) -> Any:
        """Translate sentences; an empty one has an empty translation.

        Args:
            sentences: one sentence, or a list.
            beam: beam size.
            verbose: log the hypotheses.
            search: options of fairseq-generate, such as ``lenpen``.

        Returns:
            The best translation of each sentence.
        """
        if isinstance(sentences, str):
            return self.sample([sentences], beam, verbose, **search)[0]
        tokens = [self.encode(sentence) for sentence in sentences]
        asked = [number for number, ids in enumerate(tokens) if len(ids) > 1]  # more than the end of the sentence
        found = self.generate([tokens[number] for number in asked], beam, verbose, **search) if asked else []
        texts = [""] * len(tokens)
        for number, hypotheses in zip(asked, found, strict=True):
            texts[number] = self.decode(hypotheses[0]["tokens"])
        return texts
