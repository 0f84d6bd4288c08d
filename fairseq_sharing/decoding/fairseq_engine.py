"""Translate with fairseq's models and beam search, in batches of sentences of similar length."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from fairseq_sharing.checkpoints.finite_weights import refuse_nonfinite_weights
from fairseq_sharing.decoding.forked import inherited
from fairseq_sharing.decoding.model_files import ModelFiles
from fairseq_sharing.decoding.search import Hypothesis, Search
from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.command_line import refuse_separator
from fairseq_sharing.models.loading import load_ensemble
from fairseq_sharing.sentence_depth.states import in_batches

logger = logging.getLogger(__name__)

MAX_TOKENS = 8000  # per batch, as in the evaluations of the configurations


def load_models(files: ModelFiles) -> tuple[list[Any], Any, Any]:
    """Load the models of checkpoints and the task with their dictionaries.

    Returns:
        The models, in evaluation mode on the CPU, fairseq's task, and the configuration of the last checkpoint.

    Raises:
        SharingError: a dictionary or option is missing, or the weights do not fit the model or are NaN or infinite.
    """
    _compute_alone_if_forked()
    assert files.dictionaries is not None
    refuse_separator(files.dictionaries, "data directory")
    for lang in files.languages.values():
        dictionary = files.dictionaries / f"dict.{lang}.txt"
        if not dictionary.is_file():
            raise SharingError(f"{dictionary}: no such file; give the prepared data directory with --data")
    models, cfg, task = load_ensemble(files.checkpoints, files.dictionaries, files.languages, files.name)
    for path, model in zip(files.checkpoints, models, strict=True):
        refuse_nonfinite_weights(model.state_dict(), path)
        model.eval()
    return models, task, cfg


def _compute_alone_if_forked() -> None:
    """Use one thread in a forked process, which does not have the threads of torch's pool."""
    if inherited() and torch.get_num_threads() > 1:
        logger.warning("process was forked after a model had been loaded; torch uses one thread in it")
        torch.set_num_threads(1)


class FairseqEngine:
    """Translates subwords with one model or an ensemble.

    Args:
        files: the checkpoints.
        threads: number of threads.
        device: ``cpu`` or ``cuda``.

    Attributes:
        models: the models.
        task: fairseq's task.
    """

    def __init__(self, files: ModelFiles, threads: int, device: str):
        if device == "cuda" and not torch.cuda.is_available():
            raise SharingError("--device cuda: torch finds no GPU; allowed: cpu")
        self.models, self.task, _ = load_models(files)
        self._device = device
        if not inherited():
            torch.set_num_threads(threads)
        for model in self.models:
            model.make_generation_fast_(need_attn=False)
            if device == "cuda":
                model.cuda()

    @property
    def max_source(self) -> int:
        """Maximum number of subwords of a source, without the end of the sentence."""
        # A task for several directions may add the language as a word.
        marked = bool(getattr(getattr(self.task, "args", None), "encoder_langtok", None))
        return min(model.max_positions()[0] for model in self.models) - 1 - marked

    @property
    def max_target(self) -> int:
        """Maximum number of subwords of a translation, without the end of the sentence."""
        return min(model.max_decoder_positions() for model in self.models) - 1

    def translate(self, sentences: Sequence[Sequence[str]], search: Search) -> Iterator[tuple[int, list[Hypothesis]]]:
        """Translate sentences.

        Args:
            sentences: the subwords of each sentence, at least one and at most ``max_source``.
            search: settings.

        Yields:
            The index of a sentence and its hypotheses, batch by batch.

        Raises:
            SharingError: the search found no hypothesis, because the models' log-probabilities are not finite.
        """
        from argparse import Namespace

        _compute_alone_if_forked()
        settings = Namespace(beam=search.beam, lenpen=search.lenpen, max_len_b=search.max_len_b)
        if search.temperature is not None:
            settings = Namespace(**vars(settings), sampling=True, temperature=search.temperature)
        generator = self.task.build_generator(self.models, settings)
        dictionary = self.task.target_dictionary
        ignored = getattr(generator, "symbols_to_strip_from_output", None)  # the word for the target language
        for batch in self.batches(sentences, search):
            try:
                found = self.task.inference_step(generator, self.models, batch)
            except AssertionError as error:  # raised by the search if no hypothesis has a finite score
                raise SharingError(
                    "the model's log-probabilities are NaN or infinite, so the search found no translation; "
                    "allowed: a model whose log-probabilities are finite"
                ) from error
            except RuntimeError as error:
                if search.temperature is None or "multinomial" not in str(error):
                    raise
                # The end of the sentence, which is not allowed as the first word, has the whole probability.
                raise SharingError(
                    f"--temperature {search.temperature}: all words of a sentence have the probability 0; "
                    "allowed: a higher temperature"
                ) from error
            for sentence, hypotheses in zip(batch["id"].tolist(), found, strict=True):
                yield sentence, [_hypothesis(one, dictionary, ignored) for one in hypotheses[: search.nbest]]

    def batches(self, sentences: Sequence[Sequence[str]], search: Search) -> Iterator[dict[str, Any]]:
        """Yield the batches of sentences, numbered by ``id``. The arguments are those of ``translate``."""
        source = self.task.source_dictionary
        tokens = [
            source.encode_line(" ".join(words), line_tokenizer=str.split, add_if_not_exist=False).long()
            for words in sentences
        ]
        dataset = self.task.build_dataset_for_inference(tokens, torch.tensor([len(words) for words in tokens]))
        yield from in_batches(dataset, search.max_tokens or MAX_TOKENS, self._device)


def _hypothesis(found: dict[str, Any], dictionary: Any, ignored: set[int] | None) -> Hypothesis:
    tokens = found["tokens"].int().cpu()
    text = dictionary.string(tokens, extra_symbols_to_ignore=ignored)
    return Hypothesis(text, float(found["score"]), len(tokens) - 1)
