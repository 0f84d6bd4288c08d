"""Run ``fairseq-sharing prepare`` like a user: the real command, real fairseq-preprocess, texts with real faults."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
from fairseq_processes import Commands

from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.config import compose
from fairseq_sharing.files import read_lines, sha256
from fairseq_sharing.preparation import toy
from fairseq_sharing.preparation.binarize import preprocess_arguments
from fairseq_sharing.preparation.prepare import prepare
from fairseq_sharing.preparation.recipe import Recipe, build_recipe, files_recipe, load_recipe
from fairseq_sharing.preparation.sources import find_texts
from fairseq_sharing.preparation.stream import process_chunks
from fairseq_sharing.preparation.text import Pipeline
from fairseq_sharing.preparation.unpack import unpack
from fairseq_sharing.training.plan import make_plan

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = {"source_lang": "en", "target_lang": "de"}
SUBSETS = ("train", "valid", "test")
COMMAND = [sys.executable, "-m", "fairseq_sharing", "prepare"]


def run(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([*COMMAND, *map(str, arguments)], env=environment, capture_output=True, text=True)
    assert not check or result.returncode == 0, result.stderr
    return result


def write(prefix: Path, pairs: list[tuple[str, str]]) -> Path:
    prefix.parent.mkdir(parents=True, exist_ok=True)
    for lang, side in (("en", 0), ("de", 1)):
        Path(f"{prefix}.{lang}").write_bytes("".join(pair[side] + "\n" for pair in pairs).encode())
    return prefix


@pytest.fixture(scope="module")
def corpus() -> dict[str, list[tuple[str, str]]]:
    sizes = {"train": 2500, "valid": 40, "test": 30}
    return {name: [(pair["en"], pair["de"]) for pair in pairs] for name, pairs in toy.generate(sizes).items()}


@pytest.fixture(scope="module")
def texts(corpus: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write parallel texts with one example of each handled fault."""
    folder = tmp_path_factory.mktemp("texts")
    train = list(corpus["train"])
    train[10] = ("", train[10][1])
    train[11] = (train[11][0], " \u2028 ")
    train[12] = ("The old\u2028dog sleeps .", "Der alte Hund\x85schläft .")
    train[13] = ("one " * 300, "eins " * 300)
    train[14] = ("a b c d e f g h", "a b c")
    train[15] = ("The\tdog\r", "Der Hund")
    test = list(corpus["test"])
    test[3] = ("", test[3][1])
    test[4] = ("The old\u2028dog\x0csleeps.", "Der alte\u2028Hund schläft.")
    write(folder / "train", train)
    write(folder / "valid", corpus["valid"])
    write(folder / "test", test)
    return folder


def file_flags(texts: Path) -> list[object]:
    return [
        "files", "--source-lang", "en", "--target-lang", "de", "--train", texts / "train", "--valid", texts / "valid",
        "--test", f"small={texts}/test", "--subword-size", 400, "--max-ratio", 2.5,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def prepared(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data") / "with, comma"
    run(*file_flags(texts), "--out", directory, "--workers", 2)
    return directory


def binary_sentences(directory: Path, subset: str, lang: str) -> list[list[int]]:
    """Read fairseq's binary files without fairseq: header, lengths, then token indices of two bytes each."""
    prefix = directory / "bin" / f"{subset}.en-de.{lang}"
    index = Path(f"{prefix}.idx").read_bytes()
    count = int.from_bytes(index[18:26], "little")
    lengths = numpy.frombuffer(index, numpy.int32, count, 26)
    tokens = numpy.fromfile(f"{prefix}.bin", numpy.uint16)
    assert lengths.sum() == len(tokens)
    return [part.tolist() for part in numpy.split(tokens, numpy.cumsum(lengths)[:-1])]


def test_faulty_training_pairs_are_removed_and_counted(prepared: Path):
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert manifest["train"] == {
        "raw_lines": 2500,
        "lines": 2496,
        "removed": {"empty": 2, "too_long": 1, "length_ratio": 1, "long_word": 0},
    }
    lines = list(read_lines(prepared / "tok" / "train.en"))
    assert lines[10] == "The old dog sleeps ."
    assert list(read_lines(prepared / "tok" / "train.de"))[10] == "Der alte Hund schläft ."
    assert lines[11] == "The dog"


def test_test_sets_keep_every_segment_and_their_raw_text(prepared: Path, texts: Path):
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert manifest["tests"] == [
        {"name": "small", "subset": "test", "segments": 30, "source": "raw/small.en", "reference": "raw/small.de"}
    ]
    for lang in ("en", "de"):
        assert (prepared / f"raw/small.{lang}").read_bytes() == (texts / f"test.{lang}").read_bytes()
    assert len(binary_sentences(prepared, "test", "en")) == len(binary_sentences(prepared, "test", "de")) == 30


@pytest.mark.parametrize(("subset", "name"), [("train", "train"), ("valid", "valid"), ("test", "small")])
@pytest.mark.parametrize("lang", ["en", "de"])
def test_binary_files_contain_the_segmented_text_line_by_line(prepared: Path, subset: str, name: str, lang: str):
    symbols = ["<s>", "<pad>", "</s>", "<unk>"]
    symbols += [line.rpartition(" ")[0] for line in read_lines(prepared / "bin" / f"dict.{lang}.txt")]
    decoded = [[symbols[token] for token in sentence] for sentence in binary_sentences(prepared, subset, lang)]
    expected = [[*line.split(), "</s>"] for line in read_lines(prepared / "bpe" / f"{name}.{lang}")]
    known = set(symbols)
    assert decoded == [[word if word in known else "<unk>" for word in sentence] for sentence in expected]


def test_the_joined_dictionary_is_that_of_the_training_text(prepared: Path):
    assert (prepared / "bin/dict.en.txt").read_bytes() == (prepared / "bin/dict.de.txt").read_bytes()
    words = {w for lang in ("en", "de") for line in read_lines(prepared / f"bpe/train.{lang}") for w in line.split()}
    dictionary = {line.rpartition(" ")[0] for line in read_lines(prepared / "bin/dict.en.txt")}
    assert {word for word in dictionary if not word.startswith("madeupword")} == words


def test_fairseq_preprocess_makes_the_same_files(commands: Commands, prepared: Path, tmp_path: Path):
    arguments = preprocess_arguments(["en", "de"], ["small"])
    fairseq_preprocess(commands, prepared, arguments, tmp_path / "bin")
    names = [f"{subset}.en-de.{lang}.{end}" for subset in SUBSETS for lang in ("en", "de") for end in ("bin", "idx")]
    assert sorted(path.name for path in (prepared / "bin").iterdir()) == sorted([*names, "dict.de.txt", "dict.en.txt"])
    assert_same_files(prepared / "bin", tmp_path / "bin")


def test_texts_of_one_language_are_those_of_a_language_model(commands: Commands, texts: Path, tmp_path: Path):
    splits = {name: {"en": {"path": f"{texts}/{name}.en"}} for name in ("train", "valid", "test")}
    content = {"source_lang": "en", "splits": splits, "subword": {"name": "bpe", "size": 300}}
    manifest = prepare(build_recipe("mine", content), tmp_path / "data", workers=1)
    assert manifest["train"]["removed"] == {"empty": 1, "too_long": 1, "length_ratio": 0, "long_word": 0}
    assert manifest["target_lang"] == ""
    test = {"name": "test", "subset": "test", "segments": 30, "source": "raw/test.en"}
    assert manifest["tests"] == [test]
    fairseq_preprocess(commands, tmp_path / "data", preprocess_arguments(["en"], ["test"]), tmp_path / "bin")
    assert_same_files(tmp_path / "data/bin", tmp_path / "bin")
    assert Pipeline.from_manifest(tmp_path / "data").encode("The dog.") != ""


def fairseq_preprocess(commands: Commands, directory: Path, arguments: list[str], destination: Path) -> None:
    """Run fairseq-preprocess in the directory, because it splits paths at commas."""
    commands.run("fairseq_cli.preprocess", *arguments[:-1], destination, cwd=directory)
    (destination / "preprocess.log").unlink()


def assert_same_files(folder: Path, reference: Path) -> None:
    contents = [{path.name: path.read_bytes() for path in sorted(where.iterdir())} for where in (folder, reference)]
    assert list(contents[0]) == list(contents[1])
    assert [name for name in contents[0] if contents[0][name] != contents[1][name]] == [], "these files differ"


def test_the_manifest_has_the_hash_of_every_file(prepared: Path):
    manifest = json.loads((prepared / "manifest.json").read_text())
    files = {str(path.relative_to(prepared)) for path in prepared.rglob("*") if path.is_file()}
    assert files - set(manifest["files"]) == {"manifest.json", ".lock"}
    assert all(sha256(prepared / file) == digest for file, digest in manifest["files"].items())
    assert str(prepared) not in json.dumps(manifest)


def test_the_pipeline_of_the_directory_repeats_what_was_done(prepared: Path):
    pipeline = Pipeline.from_manifest(prepared)
    for side, lang in (("source", "en"), ("target", "de")):
        raw, done = read_lines(prepared / f"raw/small.{lang}"), read_lines(prepared / f"bpe/small.{lang}")
        assert [pipeline.encode(line, side) for line in raw] == list(done)
    clean = [line for number, line in enumerate(read_lines(prepared / "raw/small.de")) if number != 4]
    assert [pipeline.decode(pipeline.encode(line, "target")) for line in clean] == clean


def test_a_second_run_does_nothing(prepared: Path, texts: Path):
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*") if path.name != ".lock"}
    result = run(*file_flags(texts), "--out", prepared, "--json")
    assert "nothing to do" in result.stderr
    assert json.loads(result.stdout)["train"]["lines"] == 2496
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (b"a\nb\xff\n", b"a\nb\n", "train.en, line 2: not UTF-8"),
        (b"a\nb\n", b"a\n", "train: the two sides differ in length"),
        (b"a\0\nb\n", b"a\nb\n", "train.en, line 1: contains a NUL byte"),
        (b"\n\n", b"a\nb\n", "no training pairs left after cleaning"),
    ],
)
def test_bad_text_ends_the_command_with_one_line(tmp_path: Path, source: bytes, target: bytes, message: str):
    write(tmp_path / "valid", [("a", "b")])
    (tmp_path / "train.en").write_bytes(source)
    (tmp_path / "train.de").write_bytes(target)
    flags = ["files", "--source-lang", "en", "--target-lang", "de", "--train", tmp_path / "train"]
    result = run(*flags, "--valid", tmp_path / "valid", "--out", tmp_path / "data", check=False)
    assert result.returncode == 2
    errors = [line for line in result.stderr.split("\n") if "error:" in line]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_help_needs_neither_torch_nor_fairseq(tmp_path: Path):
    for name in ("torch", "fairseq", "sacremoses"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('imported for --help')")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    result = subprocess.run([*COMMAND, "--help"], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "multi30k, " in result.stdout


# Small chunks with a save and a pause after each, so that a kill interrupts a step.
SLOWLY = """
import sys, time
from fairseq_sharing.commands import main
from fairseq_sharing.preparation import stream
stream.CHUNK, stream.SAVE_EVERY = 100, 0.0
write = stream._write_journal
stream._write_journal = lambda *arguments: (write(*arguments), time.sleep(0.1))
sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_run_resumes_and_writes_the_same_files(prepared: Path, texts: Path, tmp_path: Path):
    directory = tmp_path / "data"
    words = [*map(str, file_flags(texts)), "--out", str(directory)]
    for growing in ("tok/train.en", "bpe/train.en", "bin/train.en-de.de.bin"):
        command = [sys.executable, "-c", SLOWLY, "prepare", *words, "--workers", "1"]
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
        journal = directory / f"{growing}.journal.tmp"
        while process.poll() is None and not journal.is_file():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert 0 < json.loads(journal.read_text())["lines"] < 2496, f"not killed while {growing} was growing"
        assert not (directory / "manifest.json").exists()
    result = run(*file_flags(texts), "--out", directory)
    assert "read train" not in result.stderr
    assert "tokenize train" not in result.stderr
    manifests = [json.loads((path / "manifest.json").read_text()) for path in (directory, prepared)]
    assert manifests[0]["files"] == manifests[1]["files"]
    assert not list(directory.rglob("*.tmp"))


# Waits, once a text is half read and once half of the merges are learned, for a kill.
WAITING = """
import itertools, sys, time
from pathlib import Path
from fairseq_sharing.commands import main
from fairseq_sharing.preparation import sources, subwords
place, here = sys.argv.pop(1), Path(sys.argv.pop(1))
def waiting(items, after):
    for number, item in enumerate(items):
        if number == after:
            here.touch()
            time.sleep(300)
        yield item
if place == "reading":
    lines = sources.Text.lines
    sources.Text.lines = lambda text: waiting(lines(text), 1200)
else:
    advancing = subwords._advancing
    subwords._advancing = lambda items, advance: waiting(advancing(items, advance), 200)
sys.exit(main(sys.argv[1:]))
"""


def test_a_run_killed_while_it_reads_or_learns_resumes(prepared: Path, texts: Path, tmp_path: Path):
    directory, here = tmp_path / "data", tmp_path / "here"
    words = ["prepare", *map(str, file_flags(texts)), "--out", str(directory), "--workers", "1"]
    for place, missing in (("reading", "raw/train.en"), ("learning", "codes.bpe")):
        command = [sys.executable, "-c", WAITING, place, str(here), *words]
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
        while process.poll() is None and not here.exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"it ended before it was killed while {place}"
        here.unlink()
        assert not (directory / missing).exists()
    assert "tokenize train" not in run(*file_flags(texts), "--out", directory).stderr
    manifests = [json.loads((path / "manifest.json").read_text()) for path in (directory, prepared)]
    assert manifests[0]["files"] == manifests[1]["files"]
    assert not list(directory.rglob("*.tmp"))


def test_special_words_of_fairseq_get_the_indices_of_fairseq_preprocess(
    commands: Commands, corpus: dict, tmp_path: Path
):
    special = ["<unk>", "<s>", "</s>", "<pad>", "<unk>a", "madeupword0000", "@@", "a@@", "</w>", "#fairseq:overwrite"]
    pairs = [
        (f"{en} {special[number % 10]} x", f"{special[number % 7]} {de}")
        for number, (en, de) in enumerate(corpus["train"][:300])
    ]
    write(tmp_path / "train", pairs)
    write(tmp_path / "valid", [*pairs[:20], ("<pad> </s> новое <unk>ж", "<s> <unk> @@ neues")])
    for subword, flags in (("bpe", {"subword_size": 60}), ("none", {})):
        directory, languages = tmp_path / subword, {**LANGUAGES, "subword": subword, "tokenizer": "none"}
        prepare(
            files_recipe(f"{tmp_path}/train", f"{tmp_path}/valid", [], {**languages, **flags}), directory, workers=1
        )
        fairseq_preprocess(commands, directory, preprocess_arguments(["en", "de"], []), tmp_path / f"{subword}-bin")
        assert_same_files(directory / "bin", tmp_path / f"{subword}-bin")
    assert binary_sentences(tmp_path / "none", "valid", "en")[-1] == [1, 2, 3, 3, 2]
    assert binary_sentences(tmp_path / "none", "valid", "de")[-1][:2] == [0, 3]


# Below, what is tested is which steps run, in this process, with one call each.


def steps_run(texts: Path, directory: Path, capsys: pytest.CaptureFixture, **settings: object) -> list[str]:
    """Prepare and list the steps that ran, by their file times."""
    names = ["raw/train.en", "raw/small.en", "tok/train.en", "tok/small.en", "codes.bpe", "sentencepiece.model"]
    files = [directory / name for name in (*names, "bpe/train.en", "bpe/small.en", "bin/train.en-de.en.bin")]
    for file in files:
        if file.exists():
            os.utime(file, (0, 0))
    overrides = {**LANGUAGES, "subword_size": 300, **settings}
    prepare(files_recipe(f"{texts}/train", f"{texts}/valid", [f"small={texts}/test"], overrides), directory, workers=1)
    return [str(file.relative_to(directory)) for file in files if file.exists() and file.stat().st_mtime > 0]


def test_a_changed_setting_redoes_only_what_depends_on_it(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    directory = tmp_path / "data"
    everything = ["raw/train.en", "raw/small.en", "tok/train.en", "tok/small.en", "codes.bpe"]
    segmented = ["bpe/train.en", "bpe/small.en", "bin/train.en-de.en.bin"]
    assert steps_run(texts, directory, capsys) == [*everything, *segmented]
    assert steps_run(texts, directory, capsys) == []
    assert steps_run(texts, directory, capsys, subword_size=200) == ["codes.bpe", *segmented]
    assert steps_run(texts, directory, capsys, subword_size=200, max_ratio=2.0) == [
        "tok/train.en", "codes.bpe", *segmented,
    ]  # fmt: skip
    (directory / "raw" / "train.en").unlink()
    assert steps_run(texts, directory, capsys, subword_size=200, max_ratio=2.0) == ["raw/train.en"]
    (directory / "bpe" / "small.en").write_text("damaged\n")
    assert steps_run(texts, directory, capsys, subword_size=200, max_ratio=2.0) == ["bpe/small.en"]
    assert steps_run(texts, directory, capsys, tokenizer="none", subword_size=200) == [
        "tok/train.en", "tok/small.en", "codes.bpe", *segmented,
    ]  # fmt: skip
    assert steps_run(texts, directory, capsys, subword="sentencepiece", subword_size=200)[-4:] == [
        "sentencepiece.model", *segmented,
    ]  # fmt: skip
    assert not (directory / "codes.bpe").exists(), "a file of the earlier setting is left"


def test_a_changed_text_is_prepared_again(corpus: dict, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    for split in ("train", "valid", "test"):
        for lang in ("en", "de"):
            (tmp_path / f"{split}.{lang}").write_bytes((texts / f"{split}.{lang}").read_bytes())
    steps_run(tmp_path, tmp_path / "data", capsys)
    write(tmp_path / "test", corpus["test"])
    assert steps_run(tmp_path, tmp_path / "data", capsys) == [
        "raw/small.en", "tok/small.en", "bpe/small.en",
    ]  # fmt: skip


def test_a_process_does_not_reuse_data_of_an_earlier_text(corpus: dict, texts: Path, tmp_path: Path):
    """Prepare two texts in one directory and process: the second must not use the merges or indices of the first."""
    manifests = {}
    for out, length in (("again", 1000), ("again", 2000), ("afresh", 2000)):
        train = write(tmp_path / "text" / "train", corpus["train"][:length])
        recipe = files_recipe(str(train), f"{texts}/valid", [], {**LANGUAGES, "subword_size": 300})
        manifests[out] = prepare(recipe, tmp_path / out, workers=1)
    assert manifests["again"]["files"] == manifests["afresh"]["files"]


@pytest.mark.parametrize("first", [True, False], ids=["made", "remade"])
@pytest.mark.parametrize("step", ["binarize train.en", "binarize valid.de"])
def test_data_whose_preparation_was_stopped_is_refused_for_training(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, first: bool
):
    def recipe(size: int) -> Recipe:
        return files_recipe(f"{texts}/valid", f"{texts}/valid", [], {**LANGUAGES, "subword_size": size})

    def stop(title: str, *arguments: object) -> object:
        if title == step:
            raise KeyboardInterrupt
        return process_chunks(title, *arguments)

    config, data = compose("toy", ["row=vanilla"]), tmp_path / "data"
    if not first:
        prepare(recipe(60), data, workers=1)
        make_plan(config, data=data, devices=1)
    with monkeypatch.context() as patched:
        patched.setattr("fairseq_sharing.preparation.binarize_text.process_chunks", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(recipe(90), data, workers=1)
    assert (data / "bin/dict.en.txt").is_file(), "stopped too early for this test"
    with pytest.raises(SharingError, match=f"^{data}: its preparation has not finished; re-run the same "):
        make_plan(config, data=data, devices=1)
    prepare(recipe(90), data, workers=1)
    assert "--source-lang" in make_plan(config, data=data, devices=1).words()


def test_a_data_folder_from_elsewhere_removes_nothing_outside_of_it(texts: Path, tmp_path: Path):
    recipe = files_recipe(f"{texts}/valid", f"{texts}/valid", [], {**LANGUAGES, "subword_size": 60})
    data, precious = tmp_path / "data", tmp_path / "victim" / "precious.txt"
    prepare(recipe, data, workers=1)
    precious.parent.mkdir()
    precious.write_text("precious")
    whole = (data / "manifest.json").read_text()
    for name in ("../victim/precious.txt", str(precious), "bin/../../victim/precious.txt"):
        for place in ("files", "outputs"):
            manifest = json.loads(whole)
            where = manifest["files"] if place == "files" else manifest["steps"]["raw/train"]["outputs"]
            where[name] = sha256(precious)
            (data / "manifest.json").write_text(json.dumps(manifest))
            with pytest.raises(SharingError, match=r"manifest\.json: path .* not inside"):
                prepare(recipe, data, workers=1)
            assert precious.read_text() == "precious"
    (data / "manifest.json").write_text(whole)
    (data / "raw" / "draft.tmp").write_text("own")
    (data / "tok" / "train.en").unlink()
    prepare(recipe, data, workers=1)
    assert (data / "raw" / "draft.tmp").read_text() == "own"
    (data / "download").symlink_to(precious.parent)
    with pytest.raises(SharingError, match="path 'download': not inside"):
        prepare(recipe, data, workers=1)
    (data / "download").unlink()
    (data / "bin").rename(tmp_path / "bin")
    (data / "bin").symlink_to(tmp_path / "bin")
    with pytest.raises(SharingError, match=r"path 'bin/dict\.de\.txt': not inside"):
        prepare(recipe, data, workers=1)


def test_the_number_of_workers_changes_nothing(texts: Path, tmp_path: Path):
    recipe = files_recipe(f"{texts}/train", f"{texts}/valid", [], {**LANGUAGES, "subword_size": 300})
    manifests = [prepare(recipe, tmp_path / str(workers), workers=workers) for workers in (1, 3)]
    assert manifests[0]["files"] == manifests[1]["files"]


def test_sentencepiece_and_whole_words(texts: Path, tmp_path: Path):
    arguments = (f"{texts}/train", f"{texts}/valid", [f"small={texts}/test"])
    prepare(files_recipe(*arguments, {**LANGUAGES, "subword": "sentencepiece", "subword_size": 500}), tmp_path / "sp")
    pipeline = Pipeline.from_manifest(tmp_path / "sp")
    first = next(read_lines(tmp_path / "sp/raw/small.de"))
    assert pipeline.decode(next(read_lines(tmp_path / "sp/bpe/small.de"))) == first
    prepare(files_recipe(*arguments, {**LANGUAGES, "subword": "none"}), tmp_path / "words")
    assert (tmp_path / "words/bpe/small.de").read_bytes() == (tmp_path / "words/tok/small.de").read_bytes()


def test_a_directory_keeps_its_dataset(texts: Path, tmp_path: Path):
    recipe = files_recipe(f"{texts}/train", f"{texts}/valid", [], {**LANGUAGES, "subword": "none"})
    assert prepare(recipe, tmp_path, workers=1)["artificial"] is False
    with pytest.raises(SharingError, match="contains dataset files, not toy; give another directory"):
        prepare(load_recipe("toy"), tmp_path)
    with pytest.raises(SharingError, match="--workers must be at least 1, got 0"):
        prepare(recipe, tmp_path, workers=0)


def test_a_recipe_with_a_wrong_number_of_lines_stops_with_both(texts: Path, tmp_path: Path):
    content = {
        **LANGUAGES,
        "splits": {
            name: {"lines": 39, **{lang: {"path": f"{texts}/valid.{lang}"} for lang in ("en", "de")}}
            for name in ("train", "valid")
        },
    }
    with pytest.raises(SharingError, match=r"valid\.en: 40 lines, expected 39"):
        prepare(build_recipe("mine", content), tmp_path / "data")


# Real text

MIRROR = os.environ.get("FAIRSEQ_SHARING_MIRROR")
needs_mirror = pytest.mark.skipif(not MIRROR, reason="FAIRSEQ_SHARING_MIRROR names no folder of real texts")


@needs_mirror
def test_multi30k_is_fetched_and_tokenized_both_ways(tmp_path: Path):
    recipe = load_recipe("multi30k", {"subword_size": 500})
    manifest = prepare(recipe, tmp_path, mirror=f"{MIRROR}/multi30k")
    assert manifest["train"] == {
        "raw_lines": 29_000,
        "lines": 28_998,
        "removed": {"empty": 0, "too_long": 0, "length_ratio": 2, "long_word": 0},
    }
    assert [(test["subset"], test["segments"]) for test in manifest["tests"]] == [
        ("test", 1000), ("test1", 1000), ("test2", 461),
    ]  # fmt: skip
    pipeline = Pipeline.from_manifest(tmp_path)
    references = list(read_lines(tmp_path / "raw/test_2016_flickr.de"))
    decoded = [pipeline.decode(line) for line in read_lines(tmp_path / "bpe/test_2016_flickr.de")]
    same = sum(a == b for a, b in zip(decoded, references, strict=True))
    assert same >= 980, f"only {same} of 1,000 references survive tokenizing and detokenizing"


@needs_mirror
def test_news_commentary_keeps_its_alignment(tmp_path: Path):
    """Real noise: U+2028 inside three lines, empty lines on one side."""
    recipe = load_recipe("news_commentary")
    corpora = {name: find_texts(recipe.splits[name][0], recipe.languages, tmp_path, MIRROR) for name in recipe.splits}
    outputs = [tmp_path / "train.en", tmp_path / "train.de"]
    counts = unpack("train", [corpora["train"]], outputs, [230_000])
    assert counts == {"lines": 230_000, "lines_with_line_breaks_inside": 3}
    assert [sum(not line for line in read_lines(path)) for path in outputs] == [296, 219]
    english = [sum(1 for _ in texts[0].lines()) for name, texts in corpora.items() if name != "train"]
    assert english == [recipe.splits[name][0].lines for name in recipe.splits if name != "train"]


@needs_mirror
def test_sentences_of_the_test_sets_are_not_trained_on(tmp_path: Path):
    folder = f"{MIRROR}/wmt-newstest"
    held_out = {lang: {"path": f"{folder}/newstest2013.{lang}.gz"} for lang in ("en", "de")}
    train = {lang: {"path": f"{folder}/newstest2015.{lang}.gz"} for lang in ("en", "de")}
    content = {**LANGUAGES, "splits": {"train": [train, held_out], "valid": held_out}, "subword": {"name": "none"}}
    content |= {"exclude_held_out": True, "cleaning": "none"}
    manifest = prepare(build_recipe("mine", content), tmp_path, workers=1)
    both = set(read_lines(Path(held_out["en"]["path"]))).intersection(read_lines(Path(train["en"]["path"])))
    assert manifest["train"]["raw_lines"] == 5169
    assert manifest["train"]["removed"]["held_out"] >= 3000 + len(both) - 1
    assert both.isdisjoint(read_lines(tmp_path / "tok/train.en"))
