import json
from pathlib import Path

import pytest

from fairseq_sharing.errors import SharingError
from fairseq_sharing.preparation.steps import Steps, locked


def work(directory: Path, first: int = 1, second: int = 1, fail: bool = False, names: str = "ab") -> list[str]:
    """Two steps in a row, the second made from the output of the first; returns what ran."""
    steps = Steps(directory)

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
    # The first step's output stays the same, so nothing follows from its change.
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


def test_somebody_elses_folder_is_refused(tmp_path: Path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SharingError, match=r"exists and holds no manifest\.json; give a new or empty directory"):
        Steps(tmp_path)


def test_a_damaged_manifest_is_refused(tmp_path: Path):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(SharingError, match="not a manifest of prepare"):
        Steps(tmp_path)


def test_a_directory_has_one_run_at_a_time(tmp_path: Path):
    with locked(tmp_path), pytest.raises(SharingError, match="another prepare is at work there"), locked(tmp_path):
        pass
