"""Select the translations that become training pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from fairseq_sharing.distillation.settings import DistillationSettings
from fairseq_sharing.distillation.translate import UNFINISHED, UNTRANSLATED, References
from fairseq_sharing.preparation.binarize import SPECIAL, read_dictionary
from fairseq_sharing.preparation.stream import Chunk
from fairseq_sharing.preparation.transform import Transformed

MOST_REPEATS = 3  # of a sequence of up to LONGEST_REPEAT subwords in a row
LONGEST_REPEAT = 4


def reasons(settings: DistillationSettings) -> list[str]:
    """Return the reasons for which pairs are removed, in the order in which they are checked."""
    return ["untranslated", "unknown", *settings.selection()["filters"], *(["bleu"] if settings.min_bleu else [])]


def select_chunk(
    settings: DistillationSettings, references: References, dictionary: Path, key: str, chunk: Chunk
) -> Transformed:
    """Turn translated sentences into training pairs.

    Args:
        settings: the filters, and how often original pairs are added.
        references: computes sentence BLEU.
        dictionary: the target dictionary.
        key: changes whenever the dictionary changes.
        chunk: sources and references in subwords, and the lines of ``translate_chunk``.

    Returns:
        The kept pairs, followed by the original ones; counts by reason of removal, "distilled" and "original".
    """
    sources, targets, translations = (text.decode().split("\n")[:-1] for text in chunk)
    counts: Counter[str] = Counter()
    pairs: list[tuple[str, str]] = []
    for source, reference, line in zip(sources, targets, translations, strict=True):
        state, _, translation = line.split("\t", 2)
        reason = reason_to_remove(settings, state, source, translation, _symbols(dictionary, key))
        if reason is None and settings.min_bleu and references.bleu(translation, reference) < settings.min_bleu:
            reason = "bleu"
        counts[reason or "distilled"] += 1
        if reason is None:
            pairs.append((source, translation))
    pairs += list(zip(sources, targets, strict=True)) * settings.originals
    counts["original"] = len(sources) * settings.originals
    return tuple("".join([f"{pair[side]}\n" for pair in pairs]).encode() for side in (0, 1)), counts


def reason_to_remove(
    settings: DistillationSettings, state: str, source: str, translation: str, symbols: frozenset[str]
) -> str | None:
    """Return why a translation is removed, except for its BLEU; None for one to keep.

    Args:
        settings: the filters.
        state: see ``translate.FINISHED``.
        source: the source in subwords.
        translation: the translation in subwords.
        symbols: the symbols of the target dictionary, without special ones.
    """
    words = translation.split()
    shorter, longer = sorted((len(words), len(source.split())))
    checks: dict[str, Callable[[], bool]] = {
        "untranslated": lambda: state == UNTRANSLATED,
        "unknown": lambda: not symbols.issuperset(words),
        "empty": lambda: not words,
        "unfinished": lambda: state == UNFINISHED,
        "ratio": lambda: longer > settings.max_ratio * shorter,
        "copied": lambda: translation == source,
        "repeated": lambda: repeats(words),
    }
    return next((reason for reason in reasons(settings) if reason in checks and checks[reason]()), None)


def repeats(words: Sequence[str]) -> bool:
    """Return whether a sequence of up to LONGEST_REPEAT words occurs more than MOST_REPEATS times in a row."""
    for size in range(1, LONGEST_REPEAT + 1):
        equal = 0  # words in a row that equal the one a sequence earlier
        for word, earlier in zip(words[size:], words, strict=False):
            equal = equal + 1 if word == earlier else 0
            if equal >= size * MOST_REPEATS:
                return True
    return False


@lru_cache(maxsize=1)
def _symbols(dictionary: Path, key: str) -> frozenset[str]:
    return frozenset(read_dictionary(dictionary)).difference(SPECIAL)
