"""Languages that are written without spaces between words, and what that means for tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from fairseq_sharing.options import flag_of

# ISO 15924: Chinese, Japanese, Thai, Lao, Khmer, Burmese and Shan, Tibetan and Dzongkha.
_SCRIPTS = (
    *("hans", "hant", "hani", "jpan", "hira", "kana", "hrkt"),
    *("thai", "laoo", "khmr", "mymr", "tibt"),
)
# ISO 639, the country codes "jp" and "cn", and English names.
_LANGUAGES = (
    *("zh", "zho", "chi", "cmn", "cn", "yue", "wuu", "hak", "gan", "hsn", "lzh", "ja", "jpn", "jp"),
    *("nan", "cdo", "cjy", "cnp", "cpx", "csp", "czh", "czo", "mnp", "och", "ltc"),
    *("chinese", "mandarin", "cantonese", "japanese"),
    *("thai", "lao", "khmer", "burmese", "shan", "tibetan", "dzongkha"),
    *("th", "tha", "lo", "lao", "km", "khm", "my", "mya", "bur", "shn", "bo", "bod", "tib", "dz", "dzo"),
)


def is_unspaced(code: str) -> bool:
    """Return whether a language is written without spaces.

    Args:
        code: language code such as ``zh``, ``zh_CN``, ``zho_Hans`` or ``zh-Hant-TW``, in any case.
    """
    language, script = language_and_script(code)
    return script in _SCRIPTS if script else language in _LANGUAGES


def language_and_script(code: str) -> tuple[str, str]:
    """Split a code into language and script, in lower case; the script is empty if the code has none."""
    language, *rest = re.split(r"[-_.@]", code.casefold())
    return language, next((part for part in rest if len(part) == 4 and part.isalpha()), "")


def subword_warning(languages: Iterable[str], subword: str) -> str | None:
    """Warn about subwords that are learned from words, for languages without spaces; None if there is no such case."""
    unspaced = [language for language in languages if is_unspaced(language)]
    if not unspaced or subword == "sentencepiece":
        return None
    learned = "BPE learns from" if subword == "bpe" else "the dictionary consists of"
    return (
        f"{' and '.join(unspaced)}: written without spaces between words, so {learned} whole clauses instead of words; "
        "use --subword sentencepiece, or split the text into words first"
    )


def removal_hint(removed: Mapping[str, int], pairs: int, languages: Iterable[str], limits: Mapping[str, Any]) -> str:
    """Explain by the flags of prepare why most pairs were removed; empty if at least half of them were kept.

    Args:
        removed: number of removed pairs by reason.
        pairs: number of pairs before cleaning.
        languages: language codes.
        limits: the limits of cleaning.
    """
    reason = max(removed, key=lambda name: removed[name])
    limit = {"length_ratio": "max_ratio", "too_long": "max_tokens", "long_word": "max_word_length"}.get(reason)
    if limit is None or sum(removed.values()) * 2 <= pairs:
        return ""
    excess = f"{removed[reason]:,} of {pairs:,} pairs exceed {flag_of(limit)} {limits[limit]}"
    hint = f"{excess}; raise it if the texts are parallel"
    if unspaced := [language for language in languages if is_unspaced(language)]:
        hint += f" ({' and '.join(unspaced)} has no spaces between words, so a clause counts as one token)"
    return hint
