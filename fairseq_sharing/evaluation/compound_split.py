"""Tokenized BLEU with compounds split at hyphens: what early papers on WMT En-De report, an extra beside sacreBLEU."""

from __future__ import annotations

import re
from collections.abc import Sequence

_HYPHEN = re.compile(r"(\S)-(\S)")


def compound_split_bleu(hypotheses: Sequence[str], references: Sequence[str], language: str) -> float:
    """Score as the script get_ende_bleu.sh of tensor2tensor does: Moses tokens, ``a-b`` as ``a ##AT##-##AT## b``.

    Not comparable with sacreBLEU: the reference is changed, and splitting compounds adds easy matches.

    Args:
        hypotheses: detokenized translations.
        references: raw references, as many.
        language: language code of both, for the tokenizer.

    Returns:
        BLEU, 0 to 100.

    Source:
        Vaswani et al. 2017, "Attention Is All You Need", by their released evaluation script.
    """
    from sacrebleu.metrics import BLEU
    from sacremoses import MosesTokenizer

    tokenizer = MosesTokenizer(lang=language)

    def split(line: str) -> str:
        return split_compounds(tokenizer.tokenize(line, return_str=True, escape=False))

    # Without smoothing or warning, as multi-bleu.perl: the text is tokenized on purpose.
    metric = BLEU(tokenize="none", smooth_method="none", force=True)
    return float(metric.corpus_score([*map(split, hypotheses)], [[*map(split, references)]]).score)


def split_compounds(tokens: str) -> str:
    """Split tokenized text at hyphens within words, from left to right without overlaps, as perl's s///g does."""
    return _HYPHEN.sub(r"\1 ##AT##-##AT## \2", tokens)
