"""Choose sacreBLEU's tokenizer for a target language and check that it is available."""

from __future__ import annotations

import logging
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.preparation.unspaced import is_unspaced, language_and_script

logger = logging.getLogger(__name__)

# By script (ISO 15924) if the code contains one, else by language (ISO 639). sacreBLEU itself recognizes only "zh",
# "ja" and "ko". "jp" and "cn" are country codes, not language codes, but are accepted.
_BY_SCRIPT = {
    **dict.fromkeys(("hans", "hant", "hani"), "zh"),
    **dict.fromkeys(("jpan", "hira", "kana", "hrkt"), "ja-mecab"),
    **dict.fromkeys(("kore", "hang"), "ko-mecab"),
}
_BY_LANGUAGE = {
    **dict.fromkeys(("zh", "zho", "chi", "cmn", "cn", "yue", "wuu", "hak", "gan", "hsn", "lzh"), "zh"),
    **dict.fromkeys(("nan", "cdo", "cjy", "cnp", "cpx", "csp", "czh", "czo", "mnp", "och", "ltc"), "zh"),
    **dict.fromkeys(("chinese", "mandarin", "cantonese"), "zh"),
    **dict.fromkeys(("ja", "jpn", "jp", "japanese"), "ja-mecab"),
    **dict.fromkeys(("ko", "kor", "korean"), "ko-mecab"),
}
# Extras that install a tokenizer's packages.
_EXTRAS = {"ja-mecab": "ja", "ko-mecab": "ko"}


def choose_tokenizer(target_lang: str, tokenize: str | None = None) -> str:
    """Choose the BLEU tokenizer for a language.

    Args:
        target_lang: language code such as ``zh``, ``zh_CN``, ``zho_Hans`` or ``zh-Hant-TW``, in any case.
        tokenize: one of sacreBLEU's tokenizers, which overrides the choice.

    Returns:
        sacreBLEU's name for the tokenizer; its default, 13a, for most languages.

    Raises:
        SharingError: sacreBLEU has no tokenizer with that name.
    """
    from sacrebleu.metrics import BLEU

    if tokenize is not None:
        if tokenize not in list(BLEU.TOKENIZERS):
            raise SharingError(f"tokenize: {tokenize!r}; allowed: {', '.join(sorted(BLEU.TOKENIZERS))}")
        return tokenize
    language, script = language_and_script(target_lang)
    by_language = _BY_LANGUAGE.get(language, BLEU.TOKENIZER_DEFAULT)
    return _BY_SCRIPT.get(script, BLEU.TOKENIZER_DEFAULT) if script else by_language


def check_tokenizer(target_lang: str, tokenize: str | None = None) -> None:
    """Check that a language can be scored; warn if BLEU would not be meaningful.

    Args:
        target_lang: see `choose_tokenizer`.
        tokenize: see `choose_tokenizer`.

    Raises:
        SharingError: no such tokenizer, or a package that it requires is missing.
    """
    make_bleu(target_lang, tokenize)
    language, _ = language_and_script(target_lang)
    has_tokenizer = choose_tokenizer(target_lang) != choose_tokenizer("")
    if is_unspaced(target_lang) and not has_tokenizer and tokenize is None:
        logger.warning(
            f"target language {target_lang}: written without spaces, and sacreBLEU has no tokenizer for it, so BLEU "
            "treats whole clauses as words; choose char, flores200 or spm with evaluate --tokenize or evaluate.tokenize"
        )
    elif tokenize is None and target_lang and language not in _BY_LANGUAGE and not 2 <= len(language) <= 3:
        logger.warning(
            f"target language {target_lang}: not a language code of ISO 639, such as en or deu; BLEU uses tokenizer "
            f"{choose_tokenizer(target_lang)}; choose another one with evaluate --tokenize or evaluate.tokenize"
        )


def make_bleu(
    target_lang: str, tokenize: str | None = None, lowercase: bool = False, effective_order: bool = False
) -> Any:
    """Create sacreBLEU's BLEU metric for a language.

    Args:
        target_lang: see `choose_tokenizer`.
        tokenize: see `choose_tokenizer`.
        lowercase: whether to ignore case.
        effective_order: for scores of single sentences: ignore n-grams that are longer than the sentence.

    Returns:
        A ``sacrebleu.metrics.BLEU``.

    Raises:
        SharingError: no such tokenizer, or a package or file that it requires is not available.
    """
    from sacrebleu.metrics import BLEU

    name = choose_tokenizer(target_lang, tokenize)
    try:
        return BLEU(tokenize=name, lowercase=lowercase, effective_order=effective_order)
    # A missing package (RuntimeError, ImportError), a failed model download, or an unexpected dictionary.
    except (RuntimeError, ImportError, OSError, AssertionError) as error:
        if name in _EXTRAS and not isinstance(error, AssertionError):
            reason = f"install it with: pip install 'fairseq-sharing[{_EXTRAS[name]}]'"
        else:
            reason = " ".join(str(error).split())
        of = f"target language {target_lang}: " if target_lang else ""
        raise SharingError(
            f"{of}BLEU's tokenizer {name} is not available: {reason}; or choose another one with evaluate "
            "--tokenize or evaluate.tokenize"
        ) from error
