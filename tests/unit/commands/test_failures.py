"""Every command ends with one line on stderr, exit status 2 and no temporary file if a file cannot be used."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from command_errors import failed
from sharing_cases import BY_NAME
from tiny_models import make_trainer, save

from fairseq_sharing import commands
from fairseq_sharing.checkpoints.files import copy_atomically, save_atomically
from fairseq_sharing.commands import COMMANDS, explain, main
from fairseq_sharing.files import atomic_write, temporary_folder, write_text
from fairseq_sharing.interruption import Interruption, interruptible


@pytest.fixture
def model(data_dir, tmp_path) -> Path:
    return save(make_trainer(data_dir, BY_NAME["cycle_rev"]), tmp_path / "checkpoint1.pt")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


OUTPUTS = {
    "average": lambda model: ["average", model, "--output"],
    "untie": lambda model: ["untie", model, "--output"],
    "export": lambda model: ["export", model, "--materialize", "--output"],
    "translate": lambda model: ["translate", model, model.parent / "text", "--out"],
    "describe": lambda model: ["describe", "toy", "row=vanilla", "--vocabulary", 100, "--svg"],
}


@pytest.mark.parametrize("command", OUTPUTS)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(command, tmp_path, capfd, monkeypatch):
    """The model does not exist, so that any work would end in another error."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "text").write_text("a\n")
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "pipe")
    words, before = OUTPUTS[command](tmp_path / "none.pt"), names(tmp_path)
    flag = words[-1]
    for name, reason in (
        ("folder", "is a folder; allowed: a file"),
        ("pipe", "is not a regular file; allowed: a file, or omit the flag and redirect"),
        ("file/x", f"{tmp_path / 'file'} is a file; allowed: a path below folders"),
        ("n" * 250, "File name too long; allowed: a path that can be written"),
        ("circle/x", "Too many levels of symbolic links; allowed: a path that can be written"),
    ):
        assert failed(capfd, [*words, tmp_path / name]) == f"{flag} {tmp_path / name}: {reason}"
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "folder")
    assert failed(capfd, [*words, tmp_path / "folder" / "x"]) == (
        f"{flag} {tmp_path / 'folder' / 'x'}: no permission to write to {tmp_path / 'folder'}; "
        "allowed: a folder of yours"
    )
    assert names(tmp_path) == before


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "{run}", "--out", "{file}"],
        ["evaluate", "{run}", "--out", "{file}/below"],
        ["export", "{run}", "--to", "ctranslate2", "--output", "{file}/below"],
        ["train", "toy", "row=vanilla", "--data", "{run}", "--out", "{file}", "--dry-run"],
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_an_output_folder_that_cannot_be_written_is_refused_before_the_work(words, tmp_path, capfd):
    (tmp_path / "run").mkdir()
    (tmp_path / "file").write_text("x")
    filled = [word.format(run=tmp_path / "run", file=tmp_path / "file") for word in words]
    given = next(word for word in filled if word.startswith(f"{tmp_path / 'file'}"))
    message = f" {given}: {tmp_path / 'file'} is a file; allowed: a path below folders"
    assert failed(capfd, filled).endswith(message)
    assert names(tmp_path) == ["file", "run"]


@pytest.mark.parametrize("command", ["average", "untie"])
def test_a_directory_is_no_checkpoint(command, tmp_path, capfd):
    words = [*OUTPUTS[command](tmp_path), tmp_path / "out.pt"]
    assert failed(capfd, words) == f"{tmp_path}: a directory; allowed: a checkpoint file"
    assert not names(tmp_path)


@pytest.mark.parametrize("command", ["average", "untie", "export"])
def test_a_full_disk_is_one_line_and_leaves_the_old_file(command, model, tmp_path, capfd, small_disk):
    output = tmp_path / "out.pt"
    output.write_bytes(b"before")
    small_disk(10_000)
    assert failed(capfd, [*OUTPUTS[command](model), output]) == f"{output}: File too large"
    assert output.read_bytes() == b"before"
    assert names(tmp_path) == ["checkpoint1.pt", "out.pt"]


def test_a_full_disk_during_preparation_is_one_line_and_the_next_run_finishes(tmp_path, capfd, small_disk):
    words = ["prepare", "toy", "--out", tmp_path / "toy", "--workers", 1]
    small_disk(100_000)
    text = failed_at_end(capfd, words)
    assert text.startswith(f"{tmp_path / 'toy'}/")
    assert text.endswith(": File too large")


def failed_at_end(capfd, words: list[object]) -> str:
    """Run a command that fails after it has shown progress; return the last line."""
    assert main([str(word) for word in words]) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    return last.removeprefix(f"fairseq-sharing {words[0]}: error: ")


@pytest.mark.parametrize("fails", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt(), RuntimeError("x")])
def test_no_writer_leaves_a_temporary_file(tmp_path, monkeypatch, fails):
    def fail(*_: object) -> None:
        raise fails

    (tmp_path / "source").write_text("x")
    monkeypatch.setattr(os, "fsync", fail)
    for write in (
        lambda: save_atomically({"model": {}}, tmp_path / "a.pt"),
        lambda: copy_atomically(str(tmp_path / "source"), str(tmp_path / "b.pt")),
        lambda: write_text(tmp_path / "c.txt", "x"),
    ):
        with pytest.raises(type(fails)):
            write()
    assert names(tmp_path) == ["source"]


def test_a_failed_write_names_its_folder(tmp_path):
    with pytest.raises(OSError, match="No space left") as error, temporary_folder(tmp_path / "x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert explain(error.value) == f"{tmp_path / 'x'}: No space left on device"
    assert not names(tmp_path)


def test_a_failed_write_names_its_file(tmp_path):
    with pytest.raises(OSError, match="No space left") as error, atomic_write(tmp_path / "x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert explain(error.value) == f"{tmp_path / 'x'}: No space left on device"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/a\x1b[2J\nb"), "/a\\x1b[2J b: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.EXDEV, "Invalid cross-device link", "/a", None, "/b"), "/a -> /b: Invalid cross-device link"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", Path("/a")), "/a: Is a directory"),
        (OSError("no reason"), "no reason"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_an_error_of_the_system_is_one_line_in_every_command(command, error, text, capfd, monkeypatch):
    def fail(args: object) -> None:
        raise error

    monkeypatch.setattr(f"fairseq_sharing.commands.{command}.run", fail)
    assert failed(capfd, [command, *NEEDED.get(command, [])]) == text


NEEDED = {
    "average": ["a", "--output", "b"],
    "export": ["a", "--materialize", "--output", "b"],
    "match": ["a", "--to", "b", "--solve", "c"],
    "card": ["a"],
    "untie": ["a", "--output", "b"],
    "tie": ["a", "--output", "b"],
    "prepare": ["toy", "--out", "b"],
    "distill": ["a", "--out", "b"],
    "autodepth": ["a", "--penalty", "1"],
    **{name: ["a"] for name in ("describe", "train", "translate", "report", "score", "clean")},
    "study": ["run", "a"],
    "power": ["--sd", "1"],
}


@pytest.fixture(autouse=True)
def default_signals():
    """Handle signals as in a terminal; in the background, a shell ignores SIGINT and nohup ignores SIGHUP."""
    defaults = {
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
        signal.SIGINT: signal.default_int_handler,
    }
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_signals_end_every_command_like_an_interrupt(command, number, status, capfd, monkeypatch, tmp_path):
    def run(args: object) -> None:
        with atomic_write(tmp_path / "file") as file:
            file.write(b"half")
            os.kill(os.getpid(), number)
            time.sleep(10)  # the signal interrupts it

    monkeypatch.setattr(f"fairseq_sharing.commands.{command}.run", run)
    before = signal.getsignal(number)
    assert main([command, *NEEDED.get(command, [])]) == status
    what = "interrupted" if number == signal.SIGINT else "terminated"
    assert capfd.readouterr().err == f"fairseq-sharing {command}: {what}; re-run the command to resume\n"
    assert not names(tmp_path)
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(
    ("number", "message"),
    [(signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")],
)
def test_signals_while_arguments_are_parsed_end_in_one_line(number, message, capfd, monkeypatch):
    def add_arguments(parser: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(10)  # the signal interrupts it

    monkeypatch.setattr("fairseq_sharing.commands.flags.add_arguments", add_arguments)
    assert main(["flags"]) == 128 + number
    assert capfd.readouterr().err == f"fairseq-sharing: {message}; re-run the command to resume\n"


def test_a_second_signal_does_not_disturb_the_clean_up():
    cleaned = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)
            cleaned.append(True)

    with pytest.raises(Interruption) as error, interruptible():
        work()
    assert cleaned == [True]
    assert error.value.status == 143


def test_ignored_signals_stay_ignored_and_threads_are_left_alone():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGHUP)  # as under nohup
    finally:
        signal.signal(signal.SIGHUP, before)
    handlers = []

    def inside() -> None:
        with interruptible():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert handlers == [signal.SIG_DFL]


def test_a_forked_process_ends_at_a_signal():
    with interruptible():
        child = os.fork()
        if not child:
            try:
                signal.raise_signal(signal.SIGTERM)
                time.sleep(10)  # the signal interrupts it
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM


def test_a_closed_pipe_ends_quietly(monkeypatch, capfd):
    def run(args: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("fairseq_sharing.commands.flags.run", run)
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    assert main(["flags"]) == 141
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("columns", ["0", "1", "-5", "x", "", "9" * 30])
def test_any_width_of_the_terminal_is_usable(columns, monkeypatch, capfd):
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["flags", "transformer_sharing_tiny"]) == 0
    assert capfd.readouterr().out


def test_text_that_the_terminal_cannot_encode_is_escaped(monkeypatch):
    monkeypatch.setattr(sys, "stderr", open(os.devnull, "w", encoding="ascii"))  # noqa: SIM115
    monkeypatch.setattr("fairseq_sharing.commands.flags.run", lambda args: print("± ü", file=sys.stderr))
    assert main(["flags"]) == 0
    assert main(["describe", "ü.yaml"]) == 2


def test_torch_reports_a_full_disk_as_the_system_does(tmp_path, small_disk):
    small_disk(10_000)
    with pytest.raises(OSError, match="File too large") as error:
        save_atomically({"model": {"a": torch.zeros(10_000)}}, tmp_path / "a.pt")
    assert error.value.filename == str(tmp_path / "a.pt")
    assert not names(tmp_path)


def test_every_command_is_in_these_tests():
    assert set(COMMANDS) - set(NEEDED) <= {"evaluate", "flags", "list", "power", "calibrate"}
    assert commands.MIN_COLUMNS == 20


READERS = {
    "untie": lambda model: ["untie", model, "--output"],
    "average": lambda model: ["average", model.parent / "checkpoint2.pt", model, "--output"],
    "export": lambda model: ["export", model, "--materialize", "--output"],
    "translate a text": lambda model: ["translate", "none.pt", model, "--out"],
    "translate with it": lambda model: ["translate", f"none.pt:{model}", "--out"],
}


@pytest.mark.parametrize("command", READERS)
def test_an_output_that_is_an_input_is_refused(command, tmp_path, capfd):
    """Under its own name and as a link."""
    model = tmp_path / "checkpoint1.pt"
    model.write_bytes(b"precious")
    (tmp_path / "checkpoint2.pt").write_bytes(b"x")
    (tmp_path / "link.pt").symlink_to(model)
    for output in (model, tmp_path / "link.pt"):
        words = [*READERS[command](model), output]
        assert failed(capfd, words) == f"{words[-2]} {output}: would overwrite the input {model}; allowed: another file"
        assert model.read_bytes() == b"precious"


def test_a_link_at_the_name_of_a_temporary_file_is_not_followed(tmp_path):
    """A folder from someone else may contain one."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("a.pt.tmp", "b.pt.tmp", "a.pt.0123abcd.tmp"):
        (tmp_path / name).symlink_to(victim)
    save_atomically({"model": {}}, tmp_path / "a.pt")
    copy_atomically(str(tmp_path / "a.pt"), str(tmp_path / "b.pt"))
    assert victim.read_text() == "precious"
    assert torch.load(tmp_path / "b.pt", weights_only=True) == {"model": {}}


def test_checkpoints_written_at_once_under_one_name_are_not_mixed(tmp_path, monkeypatch):
    """The second is written between the first one's content and its name."""
    path, stock = tmp_path / "a.pt", Path.replace
    calls = []

    def replace(self, target):
        calls.append(self)
        if len(calls) == 1:
            save_atomically({"model": {"second": torch.ones(3)}}, path)
        return stock(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    save_atomically({"model": {"first": torch.zeros(5)}}, path)
    assert len(set(calls)) == 2
    assert set(torch.load(path, weights_only=True)["model"]) == {"first"}
    assert names(tmp_path) == ["a.pt"]
