import gzip
import itertools
import tomllib
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation import scoring
from fairseq_sharing.evaluation.bleu_tokenizer import check_tokenizer, choose_tokenizer
from fairseq_sharing.evaluation.file_scores import TRIALS, score_files
from fairseq_sharing.evaluation.scoring import METRICS, Scorer, score
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


def test_scores_and_signatures_equal_sacrebleu_s():
    result = score(HYPOTHESES, REFERENCES)
    assert result["segments"] == len(REFERENCES)
    version = sacrebleu.__version__
    case = "nrefs:1|case:mixed|eff:yes|nc:6"
    assert result["signature"] == {
        "bleu": f"nrefs:1|bs:1000|seed:12345|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}",
        "chrf": f"{case}|nw:0|space:no|version:{version}",
        "chrf++": f"{case}|nw:2|space:no|version:{version}",
        "ter": f"nrefs:1|case:mixed|tok:tercom|norm:no|punct:yes|asian:no|version:{version}",
    }
    expected = {
        "bleu": sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]),
        "chrf": sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]),
        "chrf++": sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES], word_order=2),
        "ter": sacrebleu.corpus_ter(HYPOTHESES, [REFERENCES], case_sensitive=True),
    }
    assert list(expected) == list(METRICS)
    for name, theirs in expected.items():
        assert result[name] == pytest.approx(theirs.score, abs=1e-4), name
    assert result["length_ratio"] == pytest.approx(expected["bleu"].ratio, abs=1e-4)


def test_ter_is_case_sensitive():
    assert score([line.lower() for line in REFERENCES], REFERENCES)["ter"] > 20
    assert score(REFERENCES, REFERENCES)["ter"] == 0


def test_interval_equals_a_bootstrap_over_sentences(monkeypatch):
    monkeypatch.setattr(scoring, "BOOTSTRAP_SAMPLES", 200)
    ours = _resampled(HYPOTHESES, 200)
    low, high = np.sort(ours)[[5, 194]]  # 2.5% cut off at either end
    center, half = ours.mean(), (high - low) / 2
    assert score(HYPOTHESES, REFERENCES)["bleu_interval"] == pytest.approx([center - half, center + half], abs=1e-3)


def test_scoring_again_gives_the_same_scores():
    scorer = Scorer([REFERENCES])
    assert scorer.scores(HYPOTHESES) == scorer.scores(HYPOTHESES) == score(HYPOTHESES, REFERENCES)


def test_empty_and_over_long_hypotheses_are_counted():
    repeated = " ".join(["noch"] * 18)  # 18 tokens, and 8 in its reference
    hypotheses = ["", " ", f"{repeated} ein", f"{repeated} .", "Drei " * 17, *REFERENCES[5:]]
    found = score(hypotheses, REFERENCES)
    # References 3 to 5 have 9, 9 and 7 tokens: only the third hypothesis of 17 has 10 more and more than twice as many.
    assert [len(REFERENCES[i].replace(".", " .").split()) for i in (2, 3, 4)] == [9, 9, 7]
    assert (found["empty"], found["over_long"]) == (2, 3)
    assert score(["Drei " * 16, *REFERENCES[1:]], ["Drei " * 7, *REFERENCES[1:]])["over_long"] == 0


def _sentences(length, count):
    return [" ".join(f"w{(i * 7 + j * (i + 3)) % 50}" for j in range(length)) for i in range(count)]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({5: 60, 10: 10, 15: 50, 25: 49, 35: 51, 70: 50}, [(10, 70), (20, 50), (40, 100), (None, 50)]),
        ({5: 60, 61: 49}, [(None, 109)]),
        ({5: 49, 15: 50}, [(None, 99)]),
        ({30: 3}, [(None, 3)]),
    ],
)
def test_bleu_by_reference_length_merges_small_buckets(sizes, expected):
    references = [line for length, count in sizes.items() for line in _sentences(length, count)]
    hypotheses = [line.replace("w1", "v1") for line in references]
    buckets = score(hypotheses, references)["by_length"]
    assert [(bucket["up_to"], bucket["segments"]) for bucket in buckets] == expected
    start = 0
    for bucket in buckets:  # the sentences are sorted by length
        end = start + bucket["segments"]
        theirs = sacrebleu.corpus_bleu(hypotheses[start:end], [references[start:end]]).score
        assert bucket["bleu"] == pytest.approx(theirs, abs=1e-4)
        start = end
    assert start == len(references)


def test_empty_and_tabbed_hypotheses_are_scored():
    hypotheses = ["", "Zwei\tMänner sitzen auf einer Bank im Park.", *HYPOTHESES[2:]]
    result = score(hypotheses, REFERENCES)
    assert result["bleu"] == pytest.approx(sacrebleu.corpus_bleu(hypotheses, [REFERENCES]).score, abs=1e-4)
    empty = score([""] * 8, REFERENCES)
    assert (empty["bleu"], empty["ter"], empty["length_ratio"], empty["empty"]) == (0.0, 100.0, 0.0, 8)


def test_chinese_is_scored_by_its_own_tokenizer():
    assert "tok:zh" in score(["一只小狗在跑"], ["一只狗在跑"], target_lang="zh")["signature"]["bleu"]
    assert "tok:13a" in score(HYPOTHESES, REFERENCES, target_lang="de")["signature"]["bleu"]


@pytest.mark.parametrize("code", ["zh", "zh_CN", "ZH-hant", "zho_Hans", "zho", "cmn", "chi", "yue_Hant", "zh-Hant-TW"])
def test_chinese_is_scored_equally_for_every_code(code):
    hypotheses, references = ["一只小狗在跑步", "两个人"], ["一只狗在跑步", "两个男人"]
    assert score(hypotheses, references, target_lang=code) == score(hypotheses, references, target_lang="zh")
    assert score(hypotheses, references, target_lang=code)["bleu"] == pytest.approx(
        sacrebleu.corpus_bleu(hypotheses, [references], tokenize="zh").score, abs=1e-4
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
    assert score(hypotheses, references, "th")["bleu"] == 0.0
    found = score(hypotheses, references, "th", "char")
    theirs = sacrebleu.corpus_bleu(hypotheses, [references], tokenize="char").score
    assert found["bleu"] == pytest.approx(theirs, abs=1e-4)
    assert found["bleu"] > 30
    assert "tok:char" in found["signature"]["bleu"]


def test_ter_of_chinese_edits_characters():
    found = score(["一只小狗在跑步"], ["一只狗在跑步"], "zh")
    assert found["ter"] == pytest.approx(100 / 6, abs=1e-4)
    assert "norm:yes|punct:yes|asian:yes" in found["signature"]["ter"]


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
    with pytest.raises(SharingError, match="references of 8 and 6 segments cannot be combined"):
        Scorer([REFERENCES, BASELINE[:6]])
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
    (result,) = score_files([hypothesis], [reference])
    assert result == {"hypothesis": str(hypothesis), **score([*inside, *HYPOTHESES[3:]], REFERENCES)}


def test_file_without_final_line_end_keeps_its_last_line(tmp_path):
    (tmp_path / "h").write_text("\n".join(HYPOTHESES), encoding="utf-8")
    (result,) = score_files([tmp_path / "h"], [_file(tmp_path / "r", REFERENCES)])
    assert result["segments"] == 8


def test_unequal_files_are_refused_with_both_numbers(tmp_path):
    hypothesis, reference = _file(tmp_path / "h", HYPOTHESES[:5]), _file(tmp_path / "r", REFERENCES)
    with pytest.raises(SharingError) as caught:
        score_files([reference, hypothesis], [reference])
    assert str(caught.value) == f"{hypothesis} has 5 lines, its reference {reference} has 8"
    with pytest.raises(SharingError, match=r"h has 5 lines, the reference .*r has 8"):
        score_files([reference], [reference, hypothesis])


def test_missing_and_undecodable_files_are_named(tmp_path):
    reference = _file(tmp_path / "r", REFERENCES)
    with pytest.raises(SharingError, match="absent: no such file"):
        score_files([tmp_path / "absent"], [reference])
    (tmp_path / "latin").write_bytes(b"eins\nf\xfcnf\n")
    with pytest.raises(SharingError, match="latin, line 2: not UTF-8"):
        score_files([tmp_path / "latin"], [reference])


def _systems(tmp_path, *systems):
    files = [_file(tmp_path / f"{number}.txt", lines) for number, lines in enumerate(systems)]
    return score_files(files, [_file(tmp_path / "r", REFERENCES)])


def test_several_systems_are_compared_with_the_first_like_sacrebleu_does(tmp_path):
    first, second = _systems(tmp_path, HYPOTHESES, BASELINE)
    assert first == {"hypothesis": str(tmp_path / "0.txt"), **score(HYPOTHESES, REFERENCES), "p_value": None}
    assert {**second, "p_value": None} == {
        **{"hypothesis": str(tmp_path / "1.txt"), "p_value": None},
        **score(BASELINE, REFERENCES),
    }
    metrics = {"bleu": BLEU(), "chrf": CHRF(), "chrf++": CHRF(word_order=2)}
    _, theirs = PairedTest([("0", HYPOTHESES), ("1", BASELINE)], metrics, [REFERENCES], test_type="ar")()
    for name, their_name in (("bleu", "BLEU"), ("chrf", "chrF2"), ("chrf++", "chrF2++")):
        # With 8 segments, one trial in 128 swaps all or none of them; sacreBLEU's test does not count it.
        assert 1 / 256 < second["p_value"][name] - theirs[their_name][1].p_value < 1 / 64, name


def test_p_value_is_the_share_of_all_exchanges_that_differ_as_much(tmp_path):
    _, second = _systems(tmp_path, HYPOTHESES, BASELINE)
    differences = {"bleu": [], "ter": []}
    for swaps in itertools.product((False, True), repeat=8):
        pairs = [(b, a) if swap else (a, b) for a, b, swap in zip(HYPOTHESES, BASELINE, swaps, strict=True)]
        one, other = (list(lines) for lines in zip(*pairs, strict=True))
        bleu = [sacrebleu.corpus_bleu(lines, [REFERENCES]).score for lines in (one, other)]
        ter = [sacrebleu.corpus_ter(lines, [REFERENCES], case_sensitive=True).score for lines in (one, other)]
        for name, (mine, theirs) in (("bleu", bleu), ("ter", ter)):
            differences[name].append(abs(mine - theirs))
    for name, values in differences.items():
        exact = np.mean(np.array(values) >= values[0] - 1e-9)
        assert second["p_value"][name] == pytest.approx(exact, abs=0.02), name


def test_equal_translations_have_p_1_and_so_have_those_that_differ_in_one_segment(tmp_path):
    _, same, nearly = _systems(tmp_path, HYPOTHESES, HYPOTHESES, [*HYPOTHESES[:7], REFERENCES[7]])
    assert same["p_value"] == dict.fromkeys(METRICS, 1.0)
    assert nearly["bleu"] > same["bleu"]
    assert nearly["p_value"] == dict.fromkeys(METRICS, 1.0), "either system is equally likely to have this segment"
    assert TRIALS == 10_000


def test_several_references_raise_the_scores_like_sacrebleu_s(tmp_path):
    files = [_file(tmp_path / name, lines) for name, lines in (("r1", REFERENCES), ("r2", BASELINE))]
    (found,) = score_files([_file(tmp_path / "h", HYPOTHESES)], files)
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES, BASELINE]).score, abs=1e-4)
    assert found["ter"] == pytest.approx(
        sacrebleu.corpus_ter(HYPOTHESES, [REFERENCES, BASELINE], case_sensitive=True).score, abs=1e-4
    )
    assert found["signature"]["bleu"].startswith("nrefs:2|")


def test_case_is_ignored_for_models_of_lower_cased_data():
    lower = [line.lower() for line in HYPOTHESES]
    ignoring = score(lower, REFERENCES, lowercase=True)
    assert ignoring["bleu"] == pytest.approx(sacrebleu.corpus_bleu(lower, [REFERENCES], lowercase=True).score, abs=1e-4)
    exact = score(lower, REFERENCES)
    assert ignoring["bleu"] > exact["bleu"] + 1
    assert ignoring["chrf"] > exact["chrf"] + 1
    assert ignoring["ter"] < exact["ter"] - 1
    assert all("case:lc" in signature for signature in ignoring["signature"].values())


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
