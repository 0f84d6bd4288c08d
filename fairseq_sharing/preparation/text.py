"""Convert sentences to the tokens of a model, and tokens to sentences.

Encoding normalizes punctuation and tokenizes like Moses (sacremoses), then splits words into subwords. Decoding joins
subwords and detokenizes. Training data, evaluation and translation all use ``Pipeline``, so that a model always reads
text that was prepared like its training data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import sha256

TOKENIZERS = ("moses", "none")
SUBWORDS = ("bpe", "sentencepiece", "none")

# Characters that other programs treat as the end of a line: str.splitlines, editors, universal newlines.
LINE_BREAKS = re.compile("[\r\v\f\x1c\x1d\x1e\x85\u2028\u2029]")


class Pipeline:
    """Convert sentences to the tokens of a model and back.

    Args:
        languages: language code of each side, ``{"source": "en", "target": "de"}``.
        tokenizer: ``{"name": "moses" or "none", "normalize": bool, "aggressive_dashes": bool, "escape": bool,
            "lowercase": bool}``; all are optional except for the name, and false except for ``normalize``.
        subword: ``{"name": "bpe", "sentencepiece" or "none"}``.
        model: file of BPE codes or sentencepiece model; not required for tokenization.
    """

    def __init__(
        self,
        languages: Mapping[str, str],
        tokenizer: Mapping[str, Any],
        subword: Mapping[str, Any],
        model: Path | None = None,
    ):
        self.languages = dict(languages)
        self.tokenizer = dict(tokenizer)
        self.subword = dict(subword)
        self.model = model

    @classmethod
    def from_manifest(cls, data_dir: Path | str) -> Pipeline:
        """Build the pipeline of a data directory.

        Args:
            data_dir: directory made by ``fairseq-sharing prepare``.

        Returns:
            The pipeline with the settings and the subword model of that directory.

        Raises:
            SharingError: the directory has no manifest, its preparation has not finished, or its subword model has
                changed since.
        """
        from fairseq_sharing.preparation.manifest import MANIFEST, read_manifest

        manifest = read_manifest(Path(data_dir), ("source_lang", "target_lang", "tokenizer", "subword"))
        if not manifest:
            raise SharingError(
                f"{Path(data_dir) / MANIFEST}: no such file; prepare the data with: "
                f"fairseq-sharing prepare DATASET --out {data_dir}"
            )
        model = manifest["subword"].get("model")
        expected = manifest.get("files", {}).get(model)
        if expected is not None and (file := Path(data_dir) / model).is_file() and sha256(file) != expected:
            raise SharingError(f"{file}: changed since its preparation; re-run fairseq-sharing prepare")
        languages = {"source": manifest["source_lang"], "target": manifest["target_lang"]}
        return cls(
            {side: lang for side, lang in languages.items() if lang},
            manifest["tokenizer"],
            manifest["subword"],
            Path(data_dir) / model if model else None,
        )

    def encode(self, line: str, side: str = "source") -> str:
        """Convert a raw sentence to subwords.

        Args:
            line: one sentence.
            side: "source" or "target".

        Returns:
            The subwords, separated by single spaces; empty for an empty sentence.
        """
        return self.segment(self.tokenize(line, side))

    def decode(self, line: str, side: str = "target") -> str:
        """Convert a model's subwords to a plain sentence.

        Args:
            line: subwords separated by spaces.
            side: "source" or "target".

        Returns:
            The detokenized sentence.
        """
        return self.detokenize(self.join(line), side)

    def detokenize(self, text: str, side: str = "target") -> str:
        """Convert tokens to a plain sentence.

        Args:
            text: tokens separated by spaces.
            side: "source" or "target".
        """
        if self.tokenizer["name"] == "none":
            return text
        return self._detokenizers[side].detokenize(text.split(), unescape=self.tokenizer.get("escape", False))

    def tokenize(self, line: str, side: str = "source") -> str:
        """Normalize and tokenize a raw sentence, without splitting it into subwords.

        Args:
            line: one sentence.
            side: "source" or "target".

        Returns:
            Tokens separated by single spaces; no token contains white space of any kind.
        """
        line = LINE_BREAKS.sub(" ", line)
        if self.tokenizer["name"] == "moses":
            normalizer, tokenizer = self._tokenizers[side]
            line = tokenizer.tokenize(
                normalizer.normalize(line) if self.tokenizer.get("normalize", True) else line,
                aggressive_dash_splits=self.tokenizer.get("aggressive_dashes", False),
                escape=self.tokenizer.get("escape", False),
                return_str=True,
            )
        if self.tokenizer.get("lowercase", False):
            line = line.lower()
        return " ".join(line.split())

    def segment(self, line: str) -> str:
        """Split tokens into subwords.

        Args:
            line: tokens separated by single spaces; may be several lines.

        Returns:
            Subwords separated by single spaces, in the same lines.
        """
        if self.subword["name"] == "bpe":
            return self._bpe.segment(line)
        if self.subword["name"] == "sentencepiece":
            # A piece can be a single control character, which fairseq would treat as a separator.
            pieces = (self._sentencepiece.encode(part, out_type=str) for part in line.split("\n"))
            return "\n".join(" ".join(" ".join(words).split()) for words in pieces)
        return line

    def join(self, line: str) -> str:
        """Join subwords to tokens.

        Args:
            line: subwords separated by spaces.

        Returns:
            Tokens separated by spaces.
        """
        if self.subword["name"] == "bpe":
            return (line + " ").replace("@@ ", "").strip()
        if self.subword["name"] == "sentencepiece":
            return line.replace(" ", "").replace("\u2581", " ").strip()
        return line.strip()

    @cached_property
    def _tokenizers(self) -> dict[str, tuple[Any, Any]]:
        from fairseq_sharing.preparation.moses import Normalizer, Tokenizer

        return {side: (Normalizer(lang), Tokenizer(lang)) for side, lang in self.languages.items()}

    @cached_property
    def _detokenizers(self) -> dict[str, Any]:
        from sacremoses import MosesDetokenizer

        return {side: MosesDetokenizer(lang) for side, lang in self.languages.items()}

    @cached_property
    def _bpe(self) -> Any:
        from fairseq_sharing.preparation.bpe import BytePairEncoding

        return BytePairEncoding(self._model_file())

    @cached_property
    def _sentencepiece(self) -> Any:
        from sentencepiece import SentencePieceProcessor

        try:
            return SentencePieceProcessor(model_file=str(self._model_file()))
        except (OSError, RuntimeError) as error:
            raise SharingError(f"{self.model}: not a model of sentencepiece; re-run fairseq-sharing prepare") from error

    def _model_file(self) -> Path:
        if self.model is None or not self.model.is_file():
            raise SharingError(
                f"{self.model}: the {self.subword['name']} model is missing; re-run fairseq-sharing prepare"
            )
        return self.model
