"""Compute tokenized BLEU with compounds split at hyphens, as early papers on WMT En-De report it."""

from __future__ import annotations

import re
from collections.abc import Sequence

_HYPHEN = re.compile(r"(\S)-(\S)")


def compound_split_bleu(hypotheses: Sequence[str], references: Sequence[str], language: str) -> float:
    """Score like tensor2tensor's get_ende_bleu.sh: Moses tokens, with ``a-b`` as ``a ##AT##-##AT## b``.

    The score is not comparable with sacreBLEU: it changes the reference, and split compounds add easy matches.

    Args:
        hypotheses: detokenized translations.
        references: raw references, in the same order.
        language: language code of both, for the tokenizer.

    Returns:
        BLEU, 0 to 100.

    Source:
        Released evaluation script of Vaswani et al. 2017, "Attention Is All You Need".
    """
    from sacrebleu.metrics import BLEU
    from sacremoses import MosesTokenizer

    tokenizer = MosesTokenizer(lang=language)

    def split(line: str) -> str:
        return split_compounds(tokenizer.tokenize(line, return_str=True, escape=False))

    # Like multi-bleu.perl: no smoothing. force: no warning about tokenized text, which is intended here.
    metric = BLEU(tokenize="none", smooth_method="none", force=True)
    return float(metric.corpus_score([*map(split, hypotheses)], [[*map(split, references)]]).score)


def split_compounds(tokens: str) -> str:
    """Split tokenized text at hyphens within words, from left to right without overlaps, like Perl's s///g."""
    return _HYPHEN.sub(r"\1 ##AT##-##AT## \2", tokens)
