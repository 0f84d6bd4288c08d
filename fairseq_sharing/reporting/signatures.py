"""Read sacreBLEU's signatures, which identify how a score was computed."""

from __future__ import annotations


def settings_of(signature: str) -> dict[str, str]:
    """Split a signature such as ``nrefs:1|case:mixed|tok:13a`` into names and values."""
    return dict(part.partition(":")[::2] for part in signature.split("|"))


def tokenizer_of(signature: str) -> str | None:
    """Return BLEU's tokenizer, which the signature may follow with a version (``ja-mecab-0.996-IPA``).

    Returns:
        sacreBLEU's name of the tokenizer; an unknown name as it is; None if the signature contains none.
    """
    from sacrebleu.metrics import BLEU

    found = settings_of(signature).get("tok")
    names = [name for name in BLEU.TOKENIZERS if f"{found}-".startswith(f"{name}-")]
    return max(names, key=len, default=found)


def ignores_case(signature: str) -> bool:
    """Return whether the score ignores case."""
    return settings_of(signature).get("case") == "lc"
