"""The tokenizer of an exported model: the recipe's text preparation as a tokenizer of transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from fairseq_sharing.decoding.huggingface_library import TOKENIZATION, copy_code, find_class, quiet
from fairseq_sharing.decoding.model_files import ModelFiles
from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import read_lines, write_text
from fairseq_sharing.preparation.bpe import read_codes
from fairseq_sharing.preparation.manifest import read_manifest
from fairseq_sharing.preparation.text import Pipeline

_CHECKED_LINES = 100  # per test set
# Rules of FSMTTokenizer, which cannot be changed.
_FSMT_RULES = {"name": "moses", "normalize": True, "aggressive_dashes": True, "escape": True, "lowercase": False}
_DEFAULTS = {"normalize": True, "aggressive_dashes": False, "escape": False, "lowercase": False}
CUSTOM = "FairseqSharingTokenizer"


def write_tokenizer(folder: Path, files: ModelFiles, task: Any, limit: int, drawn: Sequence[Sequence[str]]) -> str:
    """Write the tokenizer, and compare it with the text preparation on drawn sentences and the test sets.

    Args:
        folder: the folder of the exported model.
        files: the model and its data.
        task: fairseq's task, with its dictionaries.
        limit: maximum number of source subwords, with the end of the sentence.
        drawn: subwords of random sentences.

    Returns:
        The name of the tokenizer's class; empty if transformers has none for this text preparation, in which case
        nothing is written.

    Raises:
        SharingError: the tokenizer's subwords differ from fairseq's.
    """
    if files.manifest is None:
        return ""
    pipeline = Pipeline.from_manifest(files.manifest)
    lines = [pipeline.decode(" ".join(words), "source") for words in drawn] + _test_lines(files.manifest)
    dictionary = task.source_dictionary
    expected = [
        dictionary.encode_line(pipeline.encode(line), line_tokenizer=str.split, add_if_not_exist=False).tolist()
        for line in lines
    ]
    wrong: list[str] = []
    for name, write in _candidates(pipeline, task):
        written = write(folder, pipeline, task, limit)
        tokenizer = load_tokenizer(folder, name)
        wrong = [line for line, ids in zip(lines, expected, strict=True) if tokenizer(line)["input_ids"] != ids]
        if not wrong:
            return name
        for file in written:
            file.unlink()
    if wrong:
        raise SharingError(
            f"{files.name}: the exported tokenizer's subwords differ from fairseq's in {len(wrong)} of {len(lines)} "
            f"sentences, such as {wrong[0][:80]!r}; allowed: none; translate the model with --engine fairseq"
        )
    return ""


def load_tokenizer(folder: Path, name: str) -> Any:
    """Load a tokenizer of a folder without executing code of the folder.

    Args:
        folder: the exported model.
        name: the tokenizer's class.
    """
    found = find_class(name, TOKENIZATION if name == CUSTOM else None)
    with quiet():
        return found.from_pretrained(folder, local_files_only=True)


def _test_lines(data: Path) -> list[str]:
    """Read the first sources of the test sets, if their raw texts are still in the data directory."""
    tests = read_manifest(data).get("tests", ())
    sources = [data / test["source"] for test in tests if (data / test["source"]).is_file()]
    return [line for source in sources for line in islice(read_lines(source), _CHECKED_LINES)]


Writer = Callable[[Path, Pipeline, Any, int], list[Path]]


def _candidates(pipeline: Pipeline, task: Any) -> list[tuple[str, Writer]]:
    """Return the tokenizers that may fit a text preparation, without code in the folder first."""
    rules = {**_DEFAULTS, **pipeline.tokenizer}
    subwords = pipeline.subword["name"]
    if subwords == "sentencepiece":
        plain = rules["name"] == "none" and not rules["lowercase"] and task.source_dictionary == task.target_dictionary
        return [("MarianTokenizer", _write_sentencepiece)] if plain else []
    if subwords != "bpe" or not _version_2(pipeline):
        return []
    stock: list[tuple[str, Writer]] = [("FSMTTokenizer", _write_bpe)] if rules == _FSMT_RULES else []
    return [*stock, (CUSTOM, _write_bpe_with_rules)]


def _version_2(pipeline: Pipeline) -> bool:
    """Return whether the merges mark the end of a word as FSMTTokenizer does."""
    assert pipeline.model is not None
    return read_codes(pipeline.model)[0] == "#version: 0.2"


def _write_bpe(folder: Path, pipeline: Pipeline, task: Any, limit: int, **more: Any) -> list[Path]:
    assert pipeline.model is not None
    merges = read_codes(pipeline.model)[1:]
    languages = [pipeline.languages[side] for side in ("source", "target")]
    names = {"vocab-src.json": task.source_dictionary, "vocab-tgt.json": task.target_dictionary}
    written = [_write_json(folder / name, _fsmt_vocabulary(dictionary)) for name, dictionary in names.items()]
    write_text(folder / "merges.txt", "".join(f"{merge}\n" for merge in merges))
    settings = {
        "tokenizer_class": "FSMTTokenizer",
        "langs": languages,
        "do_lower_case": False,
        **_common_settings(task.source_dictionary, limit),
        "bos_token": task.source_dictionary.bos_word,
        "sep_token": task.source_dictionary.eos_word,
        **more,
    }
    return [*written, folder / "merges.txt", _write_json(folder / "tokenizer_config.json", settings)]


def _write_bpe_with_rules(folder: Path, pipeline: Pipeline, task: Any, limit: int) -> list[Path]:
    more = {"tokenizer_class": CUSTOM, "auto_map": {"AutoTokenizer": [f"{TOKENIZATION}.{CUSTOM}", None]}}
    rules = {**_DEFAULTS, **pipeline.tokenizer}
    return [*_write_bpe(folder, pipeline, task, limit, rules=rules, **more), copy_code(folder, TOKENIZATION)]


def _write_sentencepiece(folder: Path, pipeline: Pipeline, task: Any, limit: int) -> list[Path]:
    assert pipeline.model is not None
    dictionary = task.source_dictionary
    copies = [Path(shutil.copyfile(pipeline.model, folder / f"{side}.spm")) for side in ("source", "target")]
    vocabulary = _write_json(
        folder / "vocab.json", {symbol: number for number, symbol in enumerate(dictionary.symbols)}
    )
    settings = {
        "tokenizer_class": "MarianTokenizer",
        "source_lang": pipeline.languages["source"],
        "target_lang": pipeline.languages["target"],
        **_common_settings(dictionary, limit),
    }
    return [*copies, vocabulary, _write_json(folder / "tokenizer_config.json", settings)]


def _common_settings(dictionary: Any, limit: int) -> dict[str, Any]:
    return {
        "unk_token": dictionary.unk_word,
        "pad_token": dictionary.pad_word,
        "eos_token": dictionary.eos_word,
        "model_max_length": limit,
        "split_special_tokens": True,  # a text that contains </s> contains these characters, not the end of a sentence
        "clean_up_tokenization_spaces": False,
    }


def _fsmt_vocabulary(dictionary: Any) -> dict[str, int]:
    """Number the subwords of a dictionary, with the end of a word marked as in the merges."""
    vocabulary: dict[str, int] = {}
    for number, symbol in enumerate(dictionary.symbols):
        if number >= dictionary.nspecial:
            symbol = symbol.removesuffix("@@") if symbol.endswith("@@") else f"{symbol}</w>"
        if symbol in vocabulary:
            raise SharingError(
                f"dictionary: {dictionary.symbols[number]!r} and {dictionary.symbols[vocabulary[symbol]]!r} would be "
                "one subword of FSMTTokenizer; allowed: a dictionary without such pairs"
            )
        vocabulary[symbol] = number
    return vocabulary


def _write_json(file: Path, content: Any) -> Path:
    write_text(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return file
