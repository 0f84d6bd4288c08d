"""Compute tokenized BLEU, as papers report it on lower-cased datasets such as IWSLT 2014."""

from __future__ import annotations

from collections.abc import Sequence

from fairseq_sharing.preparation.text import Pipeline


def tokenized_bleu(generated: Sequence[str], references: Sequence[str], pipeline: Pipeline) -> float:
    """Score like fairseq-generate --remove-bpe or multi-bleu.perl, on the tokens of the data.

    The score is not comparable with sacreBLEU: it depends on the preparation of the reference.

    Args:
        generated: translations in subwords, as fairseq-generate writes them.
        references: raw references, in the same order.
        pipeline: the preparation of the data, which tokenizes the references.

    Returns:
        BLEU, 0 to 100.
    """
    from sacrebleu.metrics import BLEU

    # Like multi-bleu.perl: no smoothing. force: no warning about tokenized text, which is intended here.
    metric = BLEU(tokenize="none", smooth_method="none", force=True)
    tokens = [pipeline.join(line) for line in generated]
    return float(metric.corpus_score(tokens, [[pipeline.tokenize(line, "target") for line in references]]).score)
