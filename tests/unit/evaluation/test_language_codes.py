"""Names of languages and rarely used codes get the right tokenizer, or a warning."""

from __future__ import annotations

import pytest

from fairseq_sharing.evaluation.bleu_tokenizer import check_tokenizer, choose_tokenizer


@pytest.mark.parametrize(
    ("codes", "name"),
    [
        ("nan cdo cjy cnp cpx csp czh czo mnp och ltc chinese Chinese mandarin Cantonese nan_Hant", "zh"),
        ("japanese", "ja-mecab"),
        ("korean", "ko-mecab"),
        ("nan_Latn cdo-Latn de deu", "13a"),
    ],
)
def test_every_chinese_language_has_its_tokenizer(codes, name):
    assert {code: choose_tokenizer(code) for code in codes.split()} == dict.fromkeys(codes.split(), name)


@pytest.mark.parametrize("code", ["german", "Deutsch", "x", "mychinese", "zh1x"])
def test_a_code_of_no_standard_is_warned_about(code, caplog):
    check_tokenizer(code)
    assert [record.getMessage() for record in caplog.records] == [
        f"target language {code}: not a language code of ISO 639, such as en or deu; BLEU uses tokenizer 13a; "
        "choose another one with evaluate --tokenize or evaluate.tokenize"
    ]
    caplog.clear()
    check_tokenizer(code, "char")
    for known in ("de", "deu", "pt_BR", "zh", "chinese", ""):
        check_tokenizer(known)
    assert not caplog.records


@pytest.mark.parametrize("code", ["thai", "Lao", "khmer", "burmese", "tibetan"])
def test_names_of_unspaced_languages_are_warned_about(code, caplog):
    check_tokenizer(code)
    assert caplog.records[0].getMessage().startswith(f"target language {code}: written without spaces")
