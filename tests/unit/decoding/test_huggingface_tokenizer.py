"""Exported tokenizers give fairseq's numbers for sentences, and the same text for numbers."""

from __future__ import annotations

import gzip
import importlib
import io
import json
import os
import re
from collections import Counter
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sentencepiece
from fairseq.data import Dictionary
from huggingface_models import CODE, built, export_model, offline  # noqa: F401

from fairseq_sharing.decoding import huggingface_tokenizer
from fairseq_sharing.decoding.huggingface_export import usage
from fairseq_sharing.decoding.huggingface_library import quiet
from fairseq_sharing.decoding.huggingface_tokenizer import write_tokenizer
from fairseq_sharing.decoding.model_files import ModelFiles
from fairseq_sharing.errors import SharingError
from fairseq_sharing.preparation.text import Pipeline

pytestmark = pytest.mark.usefixtures("offline")

ROOT = Path(__file__).resolve().parents[3]
MIRROR = os.environ.get("FAIRSEQ_SHARING_MIRROR")
LANGUAGES = {"source": "en", "target": "de"}
DEFAULT = {"name": "moses", "aggressive_dashes": False, "escape": False}
FSMT = {"name": "moses", "aggressive_dashes": True, "escape": True}
ODD = [
    "",
    " \t ",
    "AT&T's well-known rock-'n'-roll [x] | &amp; <b>",
    "<unk> is no </s> and no <pad> <s>",
    "x@@ y@@ @@ @-@ a</w>b",
    "\U0001f600 na\u0308ive \u201cquoted\u201d \u2013 caf\xe9",
    "3.5% of $1,000.00 ... etc. e.g. Mr. X",
    "unheard-of \u4f60\u597d words",
]
REPLACED = [
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01 \u300a\uff11\uff12\u300b",
    "bell\x07 and escape\x1b characters",
    "soft\u00adhyphen \u200bzero",
]
LINE_BREAKS = ["one\u2028two\x85three\rfour\x1cfive"]
# Tokenizers of transformers treat some characters otherwise.
DIFFERENT = {"FSMTTokenizer": REPLACED + LINE_BREAKS, "MarianTokenizer": LINE_BREAKS}


def sentences() -> list[str]:
    """Return 200 sentences of the documentation."""
    text = "\n\n".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "docs").glob("*.md")))
    text = re.sub(r"^(```.*?^```|\|.*?)$", "", text, flags=re.MULTILINE | re.DOTALL)
    found = [" ".join(part.split()) for part in re.split(r"(?<=[.:])\s+|\n\n", text)]
    return [line for line in found if 30 < len(line) < 200][:200]


def prepared(folder: Path, tokenizer: dict[str, Any], subword: str, lines: list[str]) -> tuple[Pipeline, Any]:
    """Make a data directory with a subword model learned from lines; return its pipeline and a task."""
    folder.mkdir()
    model = {"bpe": "codes.bpe", "sentencepiece": "sentencepiece.model", "none": None}[subword]
    plain = Pipeline(LANGUAGES, tokenizer, {"name": "none"})
    tokenized = [plain.tokenize(line) for line in lines]
    if subword == "bpe":
        codes = io.StringIO()
        learner: Any = importlib.import_module("subword_nmt.learn_bpe")
        learner.learn_bpe(io.StringIO("\n".join(tokenized)), codes, 400)
        (folder / model).write_text(codes.getvalue(), encoding="utf-8")
    elif subword == "sentencepiece":
        written = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(tokenized), model_writer=written, vocab_size=300, minloglevel=2
        )
        (folder / model).write_bytes(written.getvalue())
    described = {"name": subword} if model is None else {"name": subword, "model": model}
    manifest = {"source_lang": "en", "target_lang": "de", "tokenizer": tokenizer, "subword": described}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    pipeline = Pipeline.from_manifest(folder)
    dictionary = Dictionary()
    for word, count in Counter(" ".join(map(pipeline.encode, lines)).split()).most_common():
        dictionary.add_symbol(word, n=count)
    dictionary.finalize()
    return pipeline, SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)


def files_of(folder: Path) -> ModelFiles:
    return ModelFiles("tiny", checkpoints=(Path("tiny"),), manifest=folder, languages=LANGUAGES)


def numbers(pipeline: Pipeline, task: Any, line: str) -> list[int]:
    words = pipeline.encode(line)
    return task.source_dictionary.encode_line(words, line_tokenizer=str.split, add_if_not_exist=False).tolist()


def load(folder: Path, **options) -> Any:
    from transformers import AutoTokenizer

    with quiet():
        return AutoTokenizer.from_pretrained(folder, **options)


@pytest.mark.parametrize(
    ("tokenizer", "subword", "name"),
    [
        (DEFAULT, "bpe", "FairseqSharingTokenizer"),
        ({**DEFAULT, "lowercase": True, "aggressive_dashes": True}, "bpe", "FairseqSharingTokenizer"),
        ({**FSMT, "normalize": False}, "bpe", "FairseqSharingTokenizer"),
        ({"name": "none"}, "bpe", "FairseqSharingTokenizer"),
        (FSMT, "bpe", "FSMTTokenizer"),
        ({"name": "none"}, "sentencepiece", "MarianTokenizer"),
    ],
    ids=["default", "lowercase", "not normalized", "no tokenizer", "fsmt", "sentencepiece"],
)
def test_numbers_and_text_are_fairseqs(tokenizer, subword, name, tmp_path):
    lines = sentences()
    assert len(lines) == 200
    pipeline, task = prepared(tmp_path / "data", tokenizer, subword, lines)
    folder = tmp_path / "out"
    folder.mkdir()
    assert write_tokenizer(folder, files_of(tmp_path / "data"), task, 99, [["a"], ["b@@", "c"]]) == name
    options = CODE if name == "FairseqSharingTokenizer" else {}
    assert {file.suffix for file in folder.iterdir()} >= {".json", ".py" if options else ".json"}
    loaded = load(folder, **options)
    with quiet():
        loaded.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again", **options)
    compared = [line for line in lines + ODD + REPLACED + LINE_BREAKS if line not in DIFFERENT.get(name, ())]
    for found in (loaded, again):
        assert type(found).__name__ == name
        assert found.model_max_length == 99
        assert [found(line)["input_ids"] for line in compared] == [numbers(pipeline, task, line) for line in compared]
    too_long = numbers(pipeline, task, " ".join(lines[:20]))
    assert len(too_long) > 99
    assert loaded(" ".join(lines[:20]), truncation=True)["input_ids"] == [*too_long[:98], 2]
    known = [line for line in lines if 3 not in numbers(pipeline, task, line)]
    assert len(known) == 200
    texts = loaded.batch_decode([numbers(pipeline, task, line) for line in known], skip_special_tokens=True)
    assert texts == [pipeline.decode(pipeline.encode(line)) for line in known]


def test_fsmt_tokenizer_is_not_used_where_it_differs(tmp_path):
    """A test set has full-width punctuation, which FSMTTokenizer replaces."""
    lines = [*sentences(), *REPLACED]
    _, task = prepared(tmp_path / "data", FSMT, "bpe", lines)
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    test = {"name": "odd", "subset": "test", "segments": 2, "source": "odd.en", "reference": "odd.de"}
    (tmp_path / "data" / "manifest.json").write_text(json.dumps({**manifest, "tests": [test]}))
    (tmp_path / "data" / "odd.en").write_text("\n".join(REPLACED))
    (tmp_path / "out").mkdir()
    assert write_tokenizer(tmp_path / "out", files_of(tmp_path / "data"), task, 99, []) == "FairseqSharingTokenizer"
    assert "rules" in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())


def test_a_tokenizer_that_differs_is_refused(tmp_path, monkeypatch):
    _, task = prepared(tmp_path / "data", DEFAULT, "bpe", sentences())
    pipeline = Pipeline.from_manifest(tmp_path / "data")
    pipeline.tokenizer = {"name": "none"}  # what the tokenizer is written for, not what encodes the sentences
    monkeypatch.setattr(huggingface_tokenizer, "_candidates", lambda *_: [(huggingface_tokenizer.CUSTOM, write_wrong)])

    def write_wrong(folder, _, task, limit):
        return huggingface_tokenizer._write_bpe_with_rules(folder, pipeline, task, limit)

    (tmp_path / "out").mkdir()
    with pytest.raises(
        SharingError, match=r"tokenizer's subwords differ from fairseq's in 1 of 1 sentences, such as 'a,"
    ):
        write_tokenizer(tmp_path / "out", files_of(tmp_path / "data"), task, 99, [["a,", "b."]])


@pytest.mark.parametrize(("tokenizer", "subword"), [(DEFAULT, "none"), (DEFAULT, "sentencepiece")])
def test_other_pipelines_have_no_tokenizer(tokenizer, subword, tmp_path):
    _, task = prepared(tmp_path / "data", tokenizer, subword, sentences())
    (tmp_path / "out").mkdir()
    assert write_tokenizer(tmp_path / "out", files_of(tmp_path / "data"), task, 99, []) == ""
    assert not list((tmp_path / "out").iterdir())


def test_two_dictionaries_have_two_vocabularies(tmp_path):
    pipeline, task = prepared(tmp_path / "data", DEFAULT, "bpe", sentences())
    target = Dictionary()
    for word in ("Hund", "d@@", "er"):
        target.add_symbol(word)
    (tmp_path / "out").mkdir()
    task.target_dictionary = target
    write_tokenizer(tmp_path / "out", files_of(tmp_path / "data"), task, 99, [])
    loaded = load(tmp_path / "out", **CODE)
    assert loaded("the layer")["input_ids"] == numbers(pipeline, task, "the layer")
    assert loaded.decode([5, 6, 4, 2], skip_special_tokens=True) == "der Hund"


def test_dictionaries_that_do_not_fit_are_refused(tmp_path):
    _, task = prepared(tmp_path / "data", DEFAULT, "bpe", sentences())
    for word in ("ab</w>@@", "ab"):
        task.source_dictionary.add_symbol(word)
    (tmp_path / "out").mkdir()
    with pytest.raises(SharingError, match="'ab' and 'ab</w>@@' would be one subword of FSMTTokenizer; allowed: "):
        write_tokenizer(tmp_path / "out", files_of(tmp_path / "data"), task, 99, [])


def test_printed_code_names_what_requires_trust():
    code = usage("out", "MarianTokenizer", keep_sharing=True)
    assert "tokenizer = AutoTokenizer.from_pretrained('out')" in code
    assert "model = AutoModelForSeq2SeqLM.from_pretrained('out', trust_remote_code=True)" in code
    for line in code:
        compile(line, "printed", "exec")


@pytest.mark.skipif(not MIRROR, reason="FAIRSEQ_SHARING_MIRROR names no folder of real texts")
@pytest.mark.parametrize("corpus", ["multi30k/train.en.gz", "news-commentary-v12/news-commentary-v12.de-en.en.gz"])
@pytest.mark.parametrize("tokenizer", [DEFAULT, FSMT], ids=["default", "fsmt"])
def test_real_sentences_have_fairseqs_numbers(corpus, tokenizer, tmp_path):
    with gzip.open(Path(MIRROR or "") / corpus, "rt", encoding="utf-8", newline="\n") as file:
        lines = [line.rstrip("\n") for line in islice(file, 200)]
    pipeline, task = prepared(tmp_path / "data", tokenizer, "bpe", lines)
    (tmp_path / "out").mkdir()
    name = write_tokenizer(tmp_path / "out", files_of(tmp_path / "data"), task, 999, [])
    assert name == ("FSMTTokenizer" if tokenizer == FSMT else "FairseqSharingTokenizer")
    loaded = load(tmp_path / "out", **CODE)
    assert [loaded(line)["input_ids"] for line in lines] == [numbers(pipeline, task, line) for line in lines]
