import contextlib
import json
import random
from pathlib import Path

import pytest

from fairseq_sharing.errors import SharingError
from fairseq_sharing.files import sha256
from fairseq_sharing.preparation.manifest import DISTILL, PREPARE
from fairseq_sharing.preparation.steps import ResumableSteps, locked


def work(directory: Path, first: int = 1, second: int = 1, fail: bool = False, names: str = "ab") -> list[str]:
    """Run two steps, the second from the output of the first, and return the names of those that ran."""
    steps = ResumableSteps(directory)

    def action(name: str, content: str) -> dict[str, int]:
        if fail:
            raise RuntimeError
        (directory / name).write_text(content)
        return {"size": len(content)}

    one, two = names
    assert steps.run("one", {"n": first}, {"input": "x"}, [one], lambda: action(one, "x" * (first // 2)))["size"] >= 0
    steps.run("two", {"n": second}, [one], [two], lambda: action(two, "y" * second))
    steps.finish({"format": 1})
    return steps.ran


def test_finished_steps_are_skipped(tmp_path: Path):
    assert work(tmp_path) == ["one", "two"]
    before = (tmp_path / "manifest.json").stat().st_mtime_ns
    assert work(tmp_path) == []
    assert (tmp_path / "manifest.json").stat().st_mtime_ns == before


def test_a_changed_setting_redoes_its_step_and_what_depends_on_it(tmp_path: Path):
    work(tmp_path, first=2)
    assert work(tmp_path, first=2, second=5) == ["two"]
    assert work(tmp_path, first=8, second=5) == ["one", "two"]
    # The first step's output is unchanged, so the second step is not repeated.
    assert work(tmp_path, first=9, second=5) == ["one"]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("other")])
def test_a_lost_or_damaged_output_is_made_again(tmp_path: Path, damage):
    work(tmp_path)
    damage(tmp_path / "b")
    assert work(tmp_path) == ["two"]
    assert (tmp_path / "b").read_text() == "y"


def test_the_manifest_is_absent_while_the_directory_is_incomplete(tmp_path: Path):
    work(tmp_path)
    with pytest.raises(RuntimeError):
        work(tmp_path, second=3, fail=True)
    assert not (tmp_path / "manifest.json").exists()
    assert work(tmp_path, second=3) == ["two"]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert sorted(manifest["files"]) == ["a", "b"]
    assert manifest["steps"]["two"]["settings"] == {"n": 3}


def test_files_that_are_no_longer_made_are_removed(tmp_path: Path):
    work(tmp_path, names="ab")
    (tmp_path / "own").touch()
    work(tmp_path, names="ac", second=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "manifest.json", "own"]


def test_a_folder_without_manifest_is_refused(tmp_path: Path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SharingError, match=r"exists and contains no manifest\.json; give a new or empty directory"):
        ResumableSteps(tmp_path)


def test_a_damaged_manifest_is_refused(tmp_path: Path):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(SharingError, match=r"manifest\.json: not JSON"):
        ResumableSteps(tmp_path)


def test_a_directory_has_one_run_at_a_time(tmp_path: Path):
    with (
        locked(tmp_path),
        pytest.raises(SharingError, match="another prepare is running in this directory; wait until it has finished"),
        locked(tmp_path),
    ):
        pass


@pytest.mark.parametrize(("maker", "other"), [(PREPARE, DISTILL), (DISTILL, PREPARE)])
@pytest.mark.parametrize("finished", [True, False])
def test_a_directory_belongs_to_the_command_that_made_it(tmp_path: Path, maker: str, other: str, finished: bool):
    steps = ResumableSteps(tmp_path, maker)
    steps.run("text", {}, {}, ["text"], lambda: (tmp_path / "text").write_text("x") and {})
    if finished:
        steps.finish({"dataset": "mine"})
    with pytest.raises(SharingError, match=f"contains data of fairseq-sharing {maker}; give another directory"):
        ResumableSteps(tmp_path, other)
    with locked(tmp_path), pytest.raises(SharingError, match=f"another {maker} is running"), locked(tmp_path):
        pass
    assert ResumableSteps(tmp_path, maker).run("text", {}, {}, ["text"], lambda: pytest.fail("again")) == {}


def snapshot(folder: Path, but: str) -> dict[str, bytes | str]:
    """Read the files in a folder, except for one subfolder; for links, read their targets."""
    found = {}
    for path in folder.rglob("*"):
        if but not in path.relative_to(folder).parts and not path.is_dir():
            found[str(path)] = str(path.readlink()) if path.is_symlink() else path.read_bytes()
    return found


@pytest.mark.parametrize("seed", range(40))
def test_a_manifest_cannot_change_files_outside_of_the_folder(tmp_path: Path, seed: int):
    draw = random.Random(seed)
    directory, victim = tmp_path / "data", tmp_path / "victim"
    directory.mkdir()
    victim.mkdir()
    work(directory)
    for name in ("precious", "precious.tmp", "b"):
        (victim / name).write_text("precious")
    (directory / "own").write_text("own")
    (directory / "notes").mkdir()
    (directory / "notes" / "draft.tmp").write_text("own")
    (directory / "link").symlink_to(draw.choice([victim, victim / "precious"]))
    names = ["../victim/precious", str(victim / "precious"), "link", "link/precious", "a/../../victim/b", "./a", "own"]
    names += ["..", "", "\0", "own/../../victim/precious", "b\ud800"]
    chosen = draw.sample(names, 2)
    file = directory / "manifest.json"
    manifest = json.loads(file.read_text())
    digest = draw.choice([sha256(victim / "precious"), "0" * 64])
    for place in draw.sample(["files", "outputs", "begun"], 2):
        if place == "begun":
            manifest["begun"] = chosen
        else:
            where = manifest["files"] if place == "files" else manifest["steps"]["two"]["outputs"]
            where.update(dict.fromkeys(chosen, digest))
    file.write_text(json.dumps(manifest))
    if draw.random() < 0.5:
        file.rename(directory / "manifest.unfinished.json")
    before = snapshot(tmp_path, "data")
    with contextlib.suppress(SharingError), locked(directory):
        work(directory, names=draw.choice(["ab", "cd"]), first=draw.randrange(5))
    assert snapshot(tmp_path, "data") == before
    assert (directory / "own").read_text() == (directory / "notes" / "draft.tmp").read_text() == "own"


def test_a_file_that_was_changed_by_hand_is_not_removed(tmp_path: Path):
    work(tmp_path, names="ab")
    (tmp_path / "b").write_text("my own")
    work(tmp_path, names="ac")
    assert (tmp_path / "b").read_text() == "my own"


@pytest.mark.parametrize("name", ["b", "b.tmp", "b.journal.tmp", ".lock"])
def test_an_output_that_is_a_link_to_outside_is_refused(tmp_path: Path, name: str):
    directory, victim = tmp_path / "data", tmp_path / "victim"
    directory.mkdir()
    victim.write_text("precious")
    work(directory)
    (directory / name).unlink(missing_ok=True)
    (directory / name).symlink_to(victim)
    with pytest.raises(SharingError, match="not inside"), locked(directory):
        work(directory, second=4)
    assert victim.read_text() == "precious"


def test_temporary_files_of_a_stopped_run_are_removed_even_when_the_next_makes_other_files(tmp_path: Path):
    with pytest.raises(RuntimeError):
        work(tmp_path, fail=True)
    (tmp_path / "a.journal.tmp").touch()
    (tmp_path / "other.tmp").touch()
    work(tmp_path, names="cd")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "d", "manifest.json", "other.tmp"]


def test_a_record_that_lacks_an_output_is_done_again(tmp_path: Path):
    work(tmp_path)
    file = tmp_path / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["steps"]["one"]["outputs"] = {}
    file.write_text(json.dumps(manifest))
    assert work(tmp_path) == ["one"]


def test_a_directory_whose_first_preparation_was_killed_at_its_first_write_is_used_again(tmp_path: Path):
    (tmp_path / "manifest.unfinished.json.0123abcd.tmp").write_text("{")
    (tmp_path / ".lock").touch()
    assert ResumableSteps(tmp_path).dataset is None
    (tmp_path / "notes.0123abcd.tmp").touch()
    with pytest.raises(SharingError, match="exists and contains no manifest"):
        ResumableSteps(tmp_path)
