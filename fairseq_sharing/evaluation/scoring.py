"""Score translations against raw references with sacreBLEU: BLEU, chrF, confidence intervals and paired tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.bleu_tokenizer import check_tokenizer, make_bleu
from fairseq_sharing.files import read_lines

BOOTSTRAP_SAMPLES = 1000  # sacreBLEU's default


@dataclass(frozen=True)
class Score:
    """The scores of one test set.

    Attributes:
        bleu: corpus BLEU (0-100).
        bleu_interval: lower and upper bound of its 95% bootstrap interval.
        chrf: corpus chrF2 (0-100).
        signature: sacreBLEU's signature per metric ("bleu", "chrf").
        segments: number of segments scored.
        p_value: p-value of the BLEU difference from the baseline (paired bootstrap); None without a baseline.
        baseline: name of the baseline.
    """

    bleu: float
    bleu_interval: tuple[float, float]
    chrf: float
    signature: dict[str, str]
    segments: int
    p_value: float | None = None
    baseline: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, scores rounded to 4 decimals."""
        fields = asdict(self)
        fields["bleu"], fields["chrf"] = round(self.bleu, 4), round(self.chrf, 4)
        fields["bleu_interval"] = [round(end, 4) for end in self.bleu_interval]
        fields["p_value"] = None if self.p_value is None else round(self.p_value, 6)
        return fields


def score(
    hypotheses: Sequence[str],
    references: Sequence[str],
    baseline: tuple[str, Sequence[str]] | None = None,
    target_lang: str = "",
    tokenize: str | None = None,
    lowercase: bool = False,
) -> Score:
    """Score detokenized translations against raw references.

    Args:
        hypotheses: one translation per segment.
        references: one reference per segment, in the same order.
        baseline: name and translations of the system to compare with by paired bootstrap.
        target_lang: language code that determines BLEU's tokenizer: 13a except for Chinese, Japanese and Korean.
        tokenize: one of sacreBLEU's tokenizers, which overrides the choice.
        lowercase: whether to ignore case, for models of lower-cased data.

    Returns:
        The scores. The interval and the p-value are deterministic (fixed seed).

    Raises:
        SharingError: there is nothing to score, the numbers of segments differ, or the tokenizer is not available.

    Source:
        Post 2018, "A Call for Clarity in Reporting BLEU Scores"; paired bootstrap: Koehn 2004.
    """
    from sacrebleu.metrics import CHRF

    _check_segments("hypotheses", hypotheses, references)
    bleu = make_bleu(target_lang, tokenize, lowercase)
    chrf = CHRF(lowercase=lowercase)
    bleu_score = bleu.corpus_score(hypotheses, [references], n_bootstrap=BOOTSTRAP_SAMPLES)
    chrf_score = chrf.corpus_score(hypotheses, [references])
    p_value = None
    if baseline is not None:
        _check_segments(f"hypotheses of the baseline {baseline[0]}", baseline[1], references)
        p_value = _paired_bootstrap(hypotheses, baseline[1], references, make_bleu(target_lang, tokenize, lowercase))
    return Score(
        bleu=float(bleu_score.score),
        bleu_interval=(max(0.0, bleu_score._mean - bleu_score._ci), bleu_score._mean + bleu_score._ci),
        chrf=float(chrf_score.score),
        signature={"bleu": str(bleu.get_signature()), "chrf": str(chrf.get_signature())},
        segments=len(references),
        p_value=p_value,
        baseline=baseline[0] if baseline else None,
    )


def _paired_bootstrap(
    hypotheses: Sequence[str], baseline: Sequence[str], references: Sequence[str], metric: Any
) -> float:
    from sacrebleu.significance import PairedTest, Result

    if list(hypotheses) == list(baseline):
        # sacreBLEU counts resamples that differ more than the systems. Equal systems would get no count and p = 0.001.
        return 1.0
    systems = [("baseline", baseline), ("system", hypotheses)]
    test = PairedTest(systems, {"BLEU": metric}, [references], test_type="bs", n_samples=BOOTSTRAP_SAMPLES)
    result = test()[1]["BLEU"][1]
    assert isinstance(result, Result)
    assert result.p_value is not None
    return float(result.p_value)


def score_files(
    hypothesis: Path,
    reference: Path,
    baseline: Path | None = None,
    target_lang: str = "",
    tokenize: str | None = None,
) -> Score:
    """Score a plain or gzipped text file against a reference file, one segment per line.

    Args:
        hypothesis: the translations.
        reference: the raw reference.
        baseline: another system's translations of the same text, for the paired test.
        target_lang: see `score`.
        tokenize: see `score`.

    Returns:
        The scores.

    Raises:
        SharingError: a file is missing, is not UTF-8 or has a different number of lines than the reference, or the
            tokenizer is not available.
    """
    check_tokenizer(target_lang, tokenize)
    references = list(read_lines(reference))
    other = f"its reference {reference} has"
    hypotheses = read_parallel(hypothesis, len(references), other)
    compared = None
    if baseline is not None:
        compared = (baseline.name, read_parallel(baseline, len(references), other))
    return score(hypotheses, references, compared, target_lang, tokenize)


def read_parallel(path: Path, expected: int, other: str) -> list[str]:
    """Read a file that must have a given number of lines.

    Args:
        path: the file; decompressed if its name ends in .gz.
        expected: number of lines.
        other: subject and verb for the error message, such as "its reference r.txt has".

    Raises:
        SharingError: the number of lines differs; the message contains both numbers.
    """
    segments = list(read_lines(path))
    if len(segments) != expected:
        raise SharingError(f"{path} has {len(segments)} lines, {other} {expected}")
    return segments


def _check_segments(what: str, segments: Sequence[str], references: Sequence[str]) -> None:
    if not references:
        raise SharingError("nothing to score: the reference is empty")
    if len(segments) != len(references):
        raise SharingError(f"{len(segments)} {what} cannot be scored against {len(references)} references")
