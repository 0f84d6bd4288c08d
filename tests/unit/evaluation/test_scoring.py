import gzip
import tomllib
from pathlib import Path

import numpy as np
import pytest
import sacrebleu

from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation import scoring
from fairseq_sharing.evaluation.bleu_tokenizer import check_tokenizer, choose_tokenizer
from fairseq_sharing.evaluation.scoring import score, score_files
from fairseq_sharing.evaluation.tokenized_bleu import tokenized_bleu
from fairseq_sharing.preparation.text import Pipeline

REFERENCES = [
    "Ein kleiner Hund läuft über die Wiese.",
    "Zwei Männer sitzen auf einer Bank im Park.",
    "Eine Frau in einem roten Kleid spielt Geige.",
    "Das Kind wirft den Ball zu seinem Vater.",
    "Drei Personen warten an der Bushaltestelle.",
    "Der Mann repariert sein altes Fahrrad.",
    "Ein Mädchen liest am Fenster ein Buch.",
    "Die Läufer überqueren gleich die Ziellinie.",
]
HYPOTHESES = [
    "Ein kleiner Hund läuft über eine Wiese.",
    "Zwei Männer sitzen auf einer Bank.",
    "Eine Frau in einem roten Kleid spielt die Geige.",
    "Das Kind wirft den Ball.",
    "Drei Personen warten an der Bushaltestelle.",
    "Ein Mann repariert sein Fahrrad.",
    "Ein Mädchen liest ein Buch am Fenster.",
    "Die Läufer überqueren die Ziellinie.",
]
BASELINE = [
    "Ein Hund läuft über eine Wiese.",
    "Zwei Männer sitzen auf der Bank im Park.",
    "Eine Frau spielt Geige.",
    "Das Kind wirft seinem Vater den Ball zu.",
    "Drei Personen warten auf den Bus.",
    "Der Mann repariert sein altes Fahrrad.",
    "Ein Mädchen liest am Fenster.",
    "Die Läufer überqueren die Linie.",
]


def _resampled(hypotheses, samples):
    """Return the BLEU of each resample, computed from the resampled sentences."""
    rng = np.random.default_rng(12345)
    indices = rng.choice(len(hypotheses), size=(samples, len(hypotheses)), replace=True)
    return np.array(
        [
            sacrebleu.corpus_bleu([hypotheses[i] for i in chosen], [[REFERENCES[i] for i in chosen]]).score
            for chosen in indices
        ]
    )


def test_scores_equal_sacrebleu():
    result = score(HYPOTHESES, REFERENCES)
    assert result.bleu == pytest.approx(sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score)
    assert result.chrf == pytest.approx(sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score)
    assert result.segments == len(REFERENCES)
    assert result.p_value is None
    version = sacrebleu.__version__
    assert result.signature == {
        "bleu": f"nrefs:1|bs:1000|seed:12345|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}",
        "chrf": f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version}",
    }


def test_interval_and_p_value_equal_a_bootstrap_over_sentences(monkeypatch):
    monkeypatch.setattr(scoring, "BOOTSTRAP_SAMPLES", 200)
    result = score(HYPOTHESES, REFERENCES, ("other", BASELINE))
    ours, theirs = _resampled(HYPOTHESES, 200), _resampled(BASELINE, 200)
    low, high = np.sort(ours)[[5, 194]]  # 2.5% cut off at either end
    center, half = ours.mean(), (high - low) / 2
    assert result.bleu_interval == pytest.approx((center - half, center + half), abs=1e-3)
    real = abs(
        sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score - sacrebleu.corpus_bleu(BASELINE, [REFERENCES]).score
    )
    differences = np.abs(ours - theirs)
    expected = (np.sum(differences - differences.mean() > real) + 1) / 201
    assert result.p_value == pytest.approx(expected)
    assert result.baseline == "other"


def test_equal_translations_do_not_differ_significantly():
    assert score(HYPOTHESES, REFERENCES, ("same", list(HYPOTHESES))).p_value == 1.0


def test_scoring_again_gives_the_same_interval_and_p_value():
    first = score(HYPOTHESES, REFERENCES, ("other", BASELINE))
    assert score(HYPOTHESES, REFERENCES, ("other", BASELINE)) == first


def test_empty_and_tabbed_hypotheses_are_scored():
    hypotheses = ["", "Zwei\tMänner sitzen auf einer Bank im Park.", *HYPOTHESES[2:]]
    result = score(hypotheses, REFERENCES)
    assert result.bleu == pytest.approx(sacrebleu.corpus_bleu(hypotheses, [REFERENCES]).score)
    assert score([""] * 8, REFERENCES).bleu == 0.0


def test_chinese_is_scored_by_its_own_tokenizer():
    assert "tok:zh" in score(["一只小狗在跑"], ["一只狗在跑"], target_lang="zh").signature["bleu"]
    assert "tok:13a" in score(HYPOTHESES, REFERENCES, target_lang="de").signature["bleu"]


@pytest.mark.parametrize("code", ["zh", "zh_CN", "ZH-hant", "zho_Hans", "zho", "cmn", "chi", "yue_Hant", "zh-Hant-TW"])
def test_chinese_is_scored_equally_for_every_code(code):
    hypotheses, references = ["一只小狗在跑步", "两个人"], ["一只狗在跑步", "两个男人"]
    assert score(hypotheses, references, target_lang=code) == score(hypotheses, references, target_lang="zh")
    assert score(hypotheses, references, target_lang=code).bleu == pytest.approx(
        sacrebleu.corpus_bleu(hypotheses, [references], tokenize="zh").score
    )


@pytest.mark.parametrize(
    ("codes", "name"),
    [
        ("zh zho cmn chi zh_CN zh-Hant zho_Hans yue zh_CN.UTF-8", "zh"),
        ("ja jpn ja_JP JPN_Jpan ja-Jpan-JP", "ja-mecab"),
        ("ko kor ko_KR kor_Hang ko-Kore", "ko-mecab"),
        ("de en_US deu_Latn sr_Cyrl ja_Latn th km_KH tha_Thai", "13a"),
    ],
)
def test_codes_and_scripts_choose_the_tokenizer(codes, name):
    assert {code: choose_tokenizer(code) for code in codes.split()} == dict.fromkeys(codes.split(), name)
    assert {choose_tokenizer(code, "char") for code in codes.split()} == {"char"}


def test_the_user_s_tokenizer_overrides_that_of_the_language():
    hypotheses, references = ["หมาวิ่งเร็ว"], ["หมาวิ่งช้า"]
    assert score(hypotheses, references, target_lang="th").bleu == 0.0
    by_characters = score(hypotheses, references, ("other", references), "th", "char")
    assert by_characters.bleu == pytest.approx(sacrebleu.corpus_bleu(hypotheses, [references], tokenize="char").score)
    assert by_characters.bleu > 30
    assert "tok:char" in by_characters.signature["bleu"]


@pytest.mark.parametrize("name", ["foo", "ZH", ""])
def test_an_unknown_tokenizer_is_refused_with_the_allowed_ones(name):
    with pytest.raises(SharingError) as caught:
        score(HYPOTHESES, REFERENCES, tokenize=name)
    assert str(caught.value) == f"tokenize: {name!r}; allowed: {', '.join(sorted(sacrebleu.metrics.BLEU.TOKENIZERS))}"


@pytest.mark.parametrize("code", ["th", "tha_Thai", "lo", "lao", "km_KH", "my", "mya_Mymr", "bo", "bod_Tibt", "dz"])
def test_an_unspaced_language_without_a_tokenizer_is_warned_about(code, caplog):
    check_tokenizer(code)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"target language {code}: written without spaces, and sacreBLEU has no")
    assert "choose char, flores200 or spm with evaluate --tokenize" in record.getMessage()
    caplog.clear()
    check_tokenizer(code, "char")
    for spaced in ("de", "zh", "th_Latn", "ko_Latn"):
        check_tokenizer(spaced)
    assert not caplog.records


@pytest.mark.parametrize(("code", "extra", "module"), [("jpn_Jpan", "ja", "ja_mecab"), ("ko_KR", "ko", "ko_mecab")])
def test_a_missing_package_is_named_with_its_extra(code, extra, module, monkeypatch):
    tokenizer = pytest.importorskip(f"sacrebleu.tokenizers.tokenizer_{module}")
    monkeypatch.setattr(tokenizer, "MeCab", None)  # as if its package were not installed
    with pytest.raises(SharingError) as caught:
        check_tokenizer(code)
    name = module.replace("_", "-")
    assert str(caught.value) == (
        f"target language {code}: BLEU's tokenizer {name} is not available: install it with: pip install "
        f"'fairseq-sharing[{extra}]'; or choose another one with evaluate --tokenize or evaluate.tokenize"
    )
    extras = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert extras["optional-dependencies"][extra][0].startswith(f"sacrebleu[{extra}]")


def test_numbers_of_segments_must_agree():
    with pytest.raises(SharingError, match="7 hypotheses cannot be scored against 8 references"):
        score(HYPOTHESES[:7], REFERENCES)
    with pytest.raises(SharingError, match=r"6 hypotheses of the baseline old .* 8 references"):
        score(HYPOTHESES, REFERENCES, ("old", BASELINE[:6]))
    with pytest.raises(SharingError, match="reference is empty"):
        score([], [])


def _file(path: Path, lines: list[str]) -> Path:
    data = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_line_separators_inside_a_line_do_not_misalign(tmp_path):
    inside = ["Ein\u2028kleiner Hund läuft.", "Zwei\x85Männer\x0bsitzen.", "Eine Frau\rspielt Geige."]
    hypothesis = _file(tmp_path / "h.txt", [*inside, *HYPOTHESES[3:]])
    reference = _file(tmp_path / "r.txt.gz", REFERENCES)
    result = score_files(hypothesis, reference)
    assert result.segments == 8
    assert result.bleu == pytest.approx(score([*inside, *HYPOTHESES[3:]], REFERENCES).bleu)


def test_file_without_final_line_end_keeps_its_last_line(tmp_path):
    (tmp_path / "h").write_text("\n".join(HYPOTHESES), encoding="utf-8")
    assert score_files(tmp_path / "h", _file(tmp_path / "r", REFERENCES)).segments == 8


def test_unequal_files_are_refused_with_both_numbers(tmp_path):
    hypothesis, reference = _file(tmp_path / "h", HYPOTHESES[:5]), _file(tmp_path / "r", REFERENCES)
    with pytest.raises(SharingError) as caught:
        score_files(hypothesis, reference)
    assert str(caught.value) == f"{hypothesis} has 5 lines, its reference {reference} has 8"
    with pytest.raises(SharingError, match=r"h has 5 lines, its reference .* has 8"):
        score_files(reference, reference, hypothesis)


def test_missing_and_undecodable_files_are_named(tmp_path):
    reference = _file(tmp_path / "r", REFERENCES)
    with pytest.raises(SharingError, match="absent: no such file"):
        score_files(tmp_path / "absent", reference)
    (tmp_path / "latin").write_bytes(b"eins\nf\xfcnf\n")
    with pytest.raises(SharingError, match="latin, line 2: not UTF-8"):
        score_files(tmp_path / "latin", reference)


def test_case_is_ignored_for_models_of_lower_cased_data():
    lower = [line.lower() for line in HYPOTHESES]
    ignoring = score(lower, REFERENCES, ("other", lower), lowercase=True)
    assert ignoring.bleu == pytest.approx(sacrebleu.corpus_bleu(lower, [REFERENCES], lowercase=True).score)
    assert ignoring.bleu > score(lower, REFERENCES).bleu + 1
    assert ignoring.chrf > score(lower, REFERENCES).chrf + 1
    assert all("case:lc" in signature for signature in ignoring.signature.values())
    assert ignoring.p_value == 1.0


def test_tokenized_bleu_compares_the_tokens_of_the_data():
    tokenizer = {"name": "moses", "normalize": False, "lowercase": True}
    pipeline = Pipeline({"source": "en", "target": "de"}, tokenizer, {"name": "bpe"})
    generated = ["ein kle@@ iner hund läuft über eine wiese .", "zwei männer sitzen auf einer bank ."]
    tokens = ["ein kleiner hund läuft über die wiese .", "zwei männer sitzen auf einer bank im park ."]
    expected = sacrebleu.corpus_bleu(
        [line.replace("@@ ", "") for line in generated], [tokens], tokenize="none", smooth_method="none", force=True
    )
    assert tokenized_bleu(generated, REFERENCES[:2], pipeline) == pytest.approx(expected.score)
    assert 50 < expected.score < 90
