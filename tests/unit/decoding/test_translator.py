"""Translate plain text from Python and from the command line."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy
import pytest
import torch
from rich.console import Console
from sharing_cases import BY_NAME
from tiny_models import make_trainer, save

from fairseq_sharing import Translator
from fairseq_sharing.checkpoints.files import save_atomically
from fairseq_sharing.commands import main
from fairseq_sharing.decoding.ctranslate2_engine import batch_tokens
from fairseq_sharing.decoding.ctranslate2_export import export
from fairseq_sharing.decoding.fairseq_engine import FairseqEngine
from fairseq_sharing.decoding.model_files import find_model
from fairseq_sharing.decoding.search import Search
from fairseq_sharing.errors import SharingError
from fairseq_sharing.evaluation.evaluate import evaluate_run

LINES = ["w5 w6.", "", "w9", " \t ", "w7 w8, w9 w5", "unheard-of ¡w6!", "w5\u2028w6.", "w5 w6.\r"]


@pytest.fixture(scope="session")
def prepared(data_dir, tmp_path_factory):
    """Make a data directory like prepare does, with tokenized words of the dictionary and no subwords."""
    folder = tmp_path_factory.mktemp("prepared")
    shutil.copytree(data_dir, folder / "bin")
    tokenizer = {"name": "moses", "aggressive_dashes": False, "escape": False}
    manifest = {"source_lang": "en", "target_lang": "de", "tokenizer": tokenizer, "subword": {"name": "none"}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="session")
def checkpoint(data_dir, tmp_path_factory):
    trainer = make_trainer(data_dir, BY_NAME["sequence"], "pre")
    return save(trainer, tmp_path_factory.mktemp("trained") / "checkpoint1.pt")


@pytest.fixture(scope="session")
def exported(checkpoint, prepared, tmp_path_factory):
    files = find_model(str(checkpoint), prepared, Console(stderr=True))
    return export(files, tmp_path_factory.mktemp("exported") / "model").path


@pytest.fixture(params=["fairseq", "ctranslate2"])
def translator(request, checkpoint, exported, prepared):
    if request.param == "fairseq":
        return Translator(checkpoint, data=prepared, threads=1)
    return Translator(str(exported), threads=2)


@pytest.fixture
def call(monkeypatch, capsysbinary):
    """Return a function that runs ``fairseq-sharing translate`` in this process."""

    def run(*words: object, stdin: bytes | None = None):
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = main(["translate", *map(str, words), "--max-len-b", "6", "--threads", "1"])
        out, err = capsysbinary.readouterr()
        return SimpleNamespace(status=status, out=out.decode(), err=err.decode())

    return run


@pytest.mark.parametrize("pairs", [["en-de", "de-en"], "en-de,de-en"])
def test_a_model_for_several_directions_takes_that_of_the_data(pairs, prepared, data_dir, tmp_path):
    task = {"_name": "translation_multi_simple_epoch", "lang_pairs": pairs, "source_lang": None, "target_lang": None}
    save_atomically({"model": {}, "cfg": {"task": {**task, "data": "moved"}}}, tmp_path / "several.pt")
    files = find_model(str(tmp_path / "several.pt"), prepared, Console())
    assert (files.languages, files.dictionaries) == ({"source": "en", "target": "de"}, prepared / "bin")
    other = tmp_path / "other"
    shutil.copytree(data_dir, other / "bin")
    manifest = json.loads((prepared / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "target_lang": "fr"}))
    with pytest.raises(SharingError) as caught:
        find_model(str(tmp_path / "several.pt"), other, Console())
    assert str(caught.value) == (
        f"{other}: direction en-fr; {tmp_path / 'several.pt'} was trained for de-en, en-de; "
        "allowed: data of one of them, with --data"
    )


def test_translations_stand_where_their_sentences_stood(translator):
    together = translator.translate(LINES, beam=3, max_len_b=6, max_tokens=7)
    assert together == [translator.translate([line], beam=3, max_len_b=6)[0] for line in LINES]
    assert [bool(text) for text in together] == [bool(line.strip()) for line in LINES]
    assert together[0] == together[6] == together[7], "any line break within a sentence is a space"
    assert all("\n" not in text and "\u2028" not in text for text in together)


def test_nothing_to_translate(translator):
    assert translator.translate([]) == []
    assert translator.translate(["", " "]) == ["", ""]


def test_long_sentences_are_cut_with_a_warning(translator, caplog):
    long = " ".join(["w5"] * 70)
    assert translator.translate(["w5", long], max_len_b=6)[1] == translator.translate([long[: 63 * 3]], max_len_b=6)[0]
    assert "sentence 2: 70 subwords; the model reads only the first 63" in caplog.text
    assert "sentence 1: translation cut off at --max-len-b (6 subwords)" in caplog.text


def test_nbest_is_sorted_and_complete(translator):
    ((*found,),) = translator.hypotheses(["w5 w9"], Search(beam=4, nbest=3, max_len_b=6))
    assert len(found) == len({hypothesis.text for hypothesis in found}) == 3
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


@pytest.mark.parametrize(
    ("sentences", "search", "message"),
    [
        ("w5", {}, "a list of str, got one str"),
        (["w5", "\ud800"], {}, "sentence 2: not Unicode text"),
        (["w5"], {"beam": 0}, "--beam must be an integer >= 1, got 0"),
        (["w5"], {"beam": 2, "nbest": 3}, r"--nbest must be between 1 and --beam \(2\), got 3"),
        (["w5"], {"lenpen": "x"}, "--lenpen must be a finite number, got 'x'"),
    ],
)
def test_bad_input_is_named(translator, sentences, search, message):
    with pytest.raises(SharingError, match=message):
        translator.translate(sentences, **search)


def test_unusable_models_and_options_are_named(checkpoint, exported, prepared, tmp_path):
    def message_of(model, **options):
        with pytest.raises(SharingError) as raised:
            Translator(model, **options).translate(["w5"])
        return str(raised.value)

    assert "not found; allowed: the path of a trained model" in message_of(tmp_path / "none")
    assert "neither a run directory (config.yaml) nor an exported model" in message_of(tmp_path)
    assert "no manifest.json" in message_of(checkpoint)
    assert "dict.en.txt: no such file; give the prepared data" in message_of(checkpoint, data=tmp_path, prepared=True)
    assert "omit --data" in message_of(exported, data=prepared)
    assert "is a CTranslate2 model; allowed: a run directory or a checkpoint" in message_of(exported, engine="fairseq")
    assert "--quantization int8 requires --engine ctranslate2" in message_of(
        checkpoint, data=prepared, quantization="int8"
    )
    assert "--quantization float16 is not supported on this cpu; allowed: float32, int" in message_of(
        exported, quantization="float16"
    )
    assert "--threads must be at least 1" in message_of(exported, threads=0)
    if not torch.cuda.is_available():
        assert "torch finds no GPU; allowed: cpu" in message_of(checkpoint, data=prepared, device="cuda")
        assert "CTranslate2 finds no GPU; allowed: cpu" in message_of(exported, device="cuda")
    shutil.copytree(exported, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.bin").write_bytes((exported / "model.bin").read_bytes()[:5000])
    assert "damaged/model.bin: missing or changed since the export" in message_of(tmp_path / "damaged")
    both = f"{checkpoint}:{checkpoint}"
    assert "cannot export several checkpoints; allowed: one" in message_of(both, data=prepared, engine="ctranslate2")
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    assert "bad.pt: not a readable checkpoint" in message_of(tmp_path / "bad.pt")


def test_checkpoints_translate_together(checkpoint, prepared):
    one = Translator(checkpoint, data=prepared, threads=1).translate(LINES, max_len_b=6)
    both = Translator(f"{checkpoint}:{checkpoint}", data=prepared, threads=1)
    assert both.translate(LINES, max_len_b=6) == one


def test_engine_ctranslate2_exports_by_itself(checkpoint, exported, prepared):
    direct = Translator(checkpoint, data=prepared, engine="ctranslate2", quantization="int8", threads=1)
    assert direct.translate(LINES) == Translator(exported, quantization="int8", threads=1).translate(LINES)


def test_every_processor_gets_a_batch_of_a_limited_size():
    assert batch_tokens([["a"] * 10] * 100, threads=8, most=512) == 125
    assert batch_tokens([["a"] * 10] * 100_000, threads=8, most=512) == 512
    assert batch_tokens([["a"] * 10] * 8, threads=8, most=512) == 10
    assert batch_tokens([["a"]], threads=8, most=512) == 1


def test_command_gives_a_line_for_each(call, exported, translator, tmp_path):
    wanted = [text + "\n" for text in translator.translate(["w5 w6.", "", "w9"], max_len_b=6)]
    done = call(exported, stdin=b"w5 w6.\n\nw9")
    assert (done.status, done.out) == (0, "".join(wanted)), "the last line may lack its line feed"
    assert "translate" in done.err, "progress"
    assert call(exported, stdin=b"").out == ""
    (tmp_path / "in").write_text("w5 w6.\n\nw9\n")
    done = call(exported, tmp_path / "in", "--out", tmp_path / "out", "--buffer", 2)
    assert (done.out, (tmp_path / "out").read_text()) == ("", "".join(wanted))


def test_command_writes_nbest(call, exported):
    rows = [line.split("\t") for line in call(exported, "--nbest", 2, stdin=b"w5 w6\n\nw9\n").out.splitlines()]
    assert [row[0] for row in rows] == ["1", "1", "2", "3", "3"]
    assert float(rows[0][1]) >= float(rows[1][1])
    assert rows[2][1:] == ["0.000000", ""]


def test_command_names_the_line_that_is_no_text(call, exported, tmp_path):
    done = call(exported, stdin=b"w5\nw6\nw\xff\n")
    assert (done.status, done.out) == (2, "")
    assert "standard input, line 3: not UTF-8 (byte 0xff at position 2)" in done.err
    (tmp_path / "in").write_bytes(b"w5\n")
    done = call(exported, tmp_path / "in", "--out", tmp_path / "in" / "out")
    assert (done.status, done.err.count("Traceback")) == (2, 0)
    (tmp_path / "in").write_bytes(b"w5\n\0\n")
    done = call(exported, tmp_path / "in", "--out", tmp_path / "out")
    assert (done.status, [path.name for path in tmp_path.iterdir()]) == (2, ["in"])
    assert "in, line 2: contains a NUL byte" in done.err
    assert f"{tmp_path}: a directory" in call(exported, tmp_path).err
    assert "gone: no such file" in call(exported, tmp_path / "gone").err


def test_the_package_and_an_exported_model_need_no_torch(exported):
    """Test in a new process: a sentence, the lazy imports, and a reader that closes the pipe."""
    code = (
        "import sys, fairseq_sharing; assert 'torch' not in sys.modules; "
        "fairseq_sharing.Translator(sys.argv[1]).translate(['w5']); "
        "assert not {'torch', 'fairseq'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, exported], check=True)


def test_lines_are_answered_one_by_one_and_a_closed_pipe_ends_it(exported):
    command = [sys.executable, "-m", "fairseq_sharing", "translate", exported, "--buffer", "1", "--max-len-b", "6"]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1) as process:
        process.stdin.write(b"w5 w6.\n")
        process.stdin.flush()
        assert process.stdout.readline().endswith(b"\n"), "answered before the end of the input"
        process.stdout.close()
        process.stdin.write(b"w5\n" * 9)
        process.stdin.close()
        errors = process.stderr.read().decode()
        assert process.wait() == 141
    assert "Error" not in errors
    assert "Traceback" not in errors


def test_the_run_of_a_language_model_is_refused_by_name(tmp_path):
    run, data = tmp_path / "run", tmp_path / "data"
    run.mkdir()
    data.mkdir()
    (run / "config.yaml").write_text("run: lm\n")
    (run / "run.json").write_text(json.dumps({"data": str(data)}))
    (data / "manifest.json").write_text(json.dumps({"source_lang": "en", "target_lang": ""}))
    with pytest.raises(SharingError, match=r"/run: is a language model; allowed: translation models$"):
        Translator(run)


@pytest.fixture(scope="session")
def binarized(data_dir, tmp_path_factory):
    """Make the output of fairseq-preprocess: dictionaries, and files with the direction in their names."""
    folder = tmp_path_factory.mktemp("binarized")
    shutil.copytree(data_dir, folder, dirs_exist_ok=True)
    (folder / "train.en-de.en.idx").touch()
    return folder


@pytest.fixture(scope="session")
def saved(checkpoint, binarized):
    """Return a function that stores a copy of the checkpoint with other languages in its task."""

    def save_with(source: str | None, target: str | None, data: object = binarized):
        stored = torch.load(checkpoint)
        stored["cfg"]["task"].update(source_lang=source, target_lang=target, data=str(data))
        path = checkpoint.with_name(f"{source}-{target}.pt")
        torch.save(stored, path)
        return path

    return save_with


@pytest.mark.parametrize("languages", [(None, None), ("en", None), ("en", "de")])
def test_languages_that_fairseq_inferred_are_inferred_again(saved, binarized, prepared, languages):
    path = saved(*languages)
    for data in (None, binarized, prepared):
        files = find_model(str(path), data, Console(stderr=True))
        assert files.languages == {"source": "en", "target": "de"}
        assert (files.dictionaries / "dict.en.txt").is_file()
    assert len(Translator(path, prepared=True, threads=1).translate(["w5 w6", "w7"], max_len_b=4)) == 2


def test_unknown_languages_are_reported(saved, tmp_path):
    path = saved(None, None, tmp_path / "gone")
    with pytest.raises(SharingError) as error:
        find_model(str(path), None, Console(stderr=True))
    assert str(error.value) == (
        f"{path}: the checkpoint does not contain its languages, and {tmp_path}/gone has no file that names them; "
        "give the prepared data directory with --data"
    )


def test_models_and_data_of_other_directions_are_refused(saved, prepared):
    one, other = saved("en", "de"), saved("de", "en")
    with pytest.raises(SharingError, match=r": direction en-de; .*/de-en\.pt was trained for de-en;"):
        find_model(str(other), prepared, Console(stderr=True))
    with pytest.raises(
        SharingError, match=r"was trained for de-en, .* for en-de; allowed: models of the same direction$"
    ):
        find_model(f"{one}:{other}", prepared, Console(stderr=True))


def test_a_run_refuses_data_of_another_direction(tmp_path):
    (tmp_path / "config.yaml").write_text("run: mine\ndataset: mine\ntrain: {}\n")
    record = {"data": str(tmp_path), "source_lang": "de", "target_lang": "en"}
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "manifest.json").write_text(
        json.dumps(
            {
                **{"source_lang": "en", "target_lang": "de", "tests": [], "files": {}},
                **{"tokenizer": {"name": "none"}, "subword": {"name": "none"}},
            }
        )
    )
    for refused in (lambda: Translator(tmp_path), lambda: evaluate_run(tmp_path, Console(stderr=True))):
        with pytest.raises(SharingError) as error:
            refused()
        assert str(error.value) == (
            f"{tmp_path}: direction en-de; {tmp_path} was trained for de-en; allowed: data of that direction"
        )


def test_a_run_whose_name_is_a_path_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("run: ../../x\ndataset: mine\n")
    with pytest.raises(SharingError, match=r"config\.yaml: .*: run is '\.\./\.\./x'; allowed: letters, digits"):
        Translator(tmp_path)


def test_every_file_of_an_exported_model_is_checked(exported, tmp_path, caplog):
    (exported / "README.md").write_text("An edited model card does not change the model.")
    Translator(exported)
    names = sorted(path.name for path in exported.iterdir() if path.name not in ("manifest.json", "README.md"))
    assert "model.bin" in names
    for name in names:
        folder = tmp_path / name
        shutil.copytree(exported, folder)
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
        with pytest.raises(SharingError, match=rf"^{folder / name}: missing or changed since the export; export"):
            Translator(folder)
        (folder / name).unlink()
        if name != "model.bin":  # its presence marks a folder as an exported model
            with pytest.raises(SharingError, match=rf"^{folder / name}: missing"):
                Translator(folder)
    manifest = json.loads((exported / "manifest.json").read_text())
    for name in names:
        folder = tmp_path / f"without {name}"
        shutil.copytree(exported, folder)
        checksums = {key: value for key, value in manifest["sha256"].items() if key != name}
        (folder / "manifest.json").write_text(json.dumps({**manifest, "sha256": checksums}))
        with pytest.raises(SharingError, match=rf"manifest\.json: sha256 lacks {name}; export the model again$"):
            Translator(folder)
    del manifest["sha256"]
    shutil.copytree(exported, tmp_path / "old")
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest))
    assert Translator(tmp_path / "old", threads=1).translate(["w5"], max_len_b=6)
    assert "cannot verify the files because manifest.json has no sha256; export the model again" in caplog.text
    (tmp_path / "old" / "model.bin").write_bytes((exported / "model.bin").read_bytes()[:5000])
    with pytest.raises(SharingError, match="old: CTranslate2 cannot read the model"):
        Translator(tmp_path / "old", threads=1).translate(["w5"])


FORK = """
import os, signal, sys
from fairseq_sharing import Translator
from fairseq_sharing.errors import SharingError

model, data, engine, case = sys.argv[1:]
def load():
    return Translator(model, engine=engine, threads=2, data=data or None)

def compute():
    if engine == "fairseq":  # with all of torch's threads, as a larger model does
        import torch
        torch.ones(1 << 20).exp()

lines = ["w5 w6", "w9"]
translator = load()
if case != "first":
    wanted = translator.translate(lines, max_len_b=3)
    compute()
child = os.fork()
if not child:
    signal.alarm(20)  # kills a process that hangs
    if case == "exit":
        sys.exit(7)
    try:
        if case == "both":
            assert translator.translate(lines, max_len_b=3) == wanted
            compute()
        translator = load() if case in ("fresh", "both") else translator
        found = translator.translate(lines, max_len_b=3)
        compute()
        sys.exit(5 if case == "first" or found == wanted else 6)
    except SharingError as error:
        sys.exit(8 if "forked after a model had been loaded" in str(error) else 9)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
if case != "first":
    assert translator.translate(lines, max_len_b=3) == wanted, "the parent still works"
"""


@pytest.mark.parametrize(
    ("engine", "case", "status"),
    [
        ("fairseq", "both", 5),
        ("ctranslate2", "same", 8),
        ("ctranslate2", "fresh", 8),
        ("ctranslate2", "first", 5),
        ("ctranslate2", "exit", 7),
    ],
)
def test_forked_processes_do_not_hang(checkpoint, exported, prepared, engine, case, status):
    """torch continues with one thread, CTranslate2 reports an error, and a process that loads first translates."""
    model, data = (exported, "") if engine == "ctranslate2" else (checkpoint, prepared)
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-c", FORK, str(model), str(data), engine, case]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.stdout.split(), done.returncode) == ([str(status)], 0), done.stderr


@pytest.mark.parametrize("engine", ["fairseq", "ctranslate2"])
def test_a_translator_is_not_sent_to_another_process(checkpoint, exported, prepared, engine):
    translator = Translator(exported) if engine == "ctranslate2" else Translator(checkpoint, data=prepared)
    with pytest.raises(SharingError, match="a Translator cannot be sent to another process"):
        pickle.dumps(translator)


def test_batches_do_not_depend_on_random_numbers(checkpoint, prepared):
    """Rounding depends on the batch, and samples on its order."""
    engine = FairseqEngine(find_model(str(checkpoint), prepared, Console(stderr=True)), 1, "cpu")
    sentences = [[f"w{number}", f"w{number + 1}"] for number in range(20)]
    orders = []
    for seed in (1, 2):
        numpy.random.seed(seed)
        batches = engine.batches(sentences, Search(max_tokens=12))
        orders.append([number for batch in batches for number in batch["id"].tolist()])
    assert orders[0] == orders[1] == list(range(20))
