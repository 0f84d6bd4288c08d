"""Resume from another checkpoint if the last one is damaged, and cases without such a fallback."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from fairseq import checkpoint_utils
from sharing_cases import BY_NAME
from tiny_models import make_trainer, save, train_step

from fairseq_sharing.checkpoints.choose import missing_parts, newest_readable
from fairseq_sharing.checkpoints.files import copy_atomically, load_checkpoint, save_atomically
from fairseq_sharing.errors import SharingError


def content(updates: int) -> dict:
    return {
        "model": {},
        "last_optimizer_state": {},
        "optimizer_history": [{"num_updates": updates}],
        "extra_state": {"train_iterator": {"epoch": 1}},
    }


def damage(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def folder(tmp_path):
    """Make a training's checkpoints, whose file times decrease with the updates, and unrelated files."""
    written = {"checkpoint1.pt": 7, "checkpoint_2_10.pt": 10, "checkpoint2.pt": 14, "checkpoint_best.pt": 14}
    written |= {"checkpoint.best_loss_8.5170.pt": 7, "checkpoint_last.pt": 14}
    others = ["checkpoint_average.pt", "checkpoint_pretrained.pt", "checkpoint9-shard0.pt", "checkpoint_last_old.pt"]
    for name, updates in {**written, **dict.fromkeys(others, 99)}.items():
        save_atomically(content(updates), tmp_path / name)
        os.utime(tmp_path / name, (2000 - updates, 2000 - updates))
    (tmp_path / "checkpoint11.pt.tmp").write_bytes(b"half")
    return tmp_path


def test_checkpoint_with_the_most_updates_is_found(folder):
    assert newest_readable(folder).name == "checkpoint_last.pt"
    for name in ("checkpoint_last.pt", "checkpoint_best.pt", "checkpoint2.pt", "checkpoint_2_10.pt", "checkpoint1.pt"):
        assert newest_readable(folder).name == name
        damage(folder / name)
    assert newest_readable(folder).name == "checkpoint.best_loss_8.5170.pt"
    damage(folder / "checkpoint.best_loss_8.5170.pt")
    assert newest_readable(folder) is None
    assert newest_readable(folder / "nothing") is None
    assert newest_readable(folder, "-shard0").name == "checkpoint9-shard0.pt"


@pytest.mark.parametrize("part", ["last_optimizer_state", "optimizer_history", "extra_state"])
def test_checkpoint_without_what_resuming_needs_is_passed_over(folder, part):
    for name in ("checkpoint_last.pt", "checkpoint_best.pt"):
        incomplete = content(14)
        del incomplete[part]
        save_atomically(incomplete, folder / name)
    assert missing_parts(incomplete) == [part]
    assert newest_readable(folder).name == "checkpoint2.pt"
    without = newest_readable(folder, optimizer_state=False)
    assert without.name == ("checkpoint_last.pt" if part == "last_optimizer_state" else "checkpoint2.pt")


@pytest.fixture
def interrupted(data_dir, tmp_path):
    """Make checkpoints after one and two updates, and a function that resumes from them."""
    trainer = make_trainer(data_dir, BY_NAME["cycle_rev"])
    for update in (1, 2):
        train_step(trainer, seed=update)
        save(trainer, tmp_path / f"checkpoint_1_{update}.pt")
        os.utime(tmp_path / f"checkpoint_1_{update}.pt", (2000 - update, 2000 - update))
    copy_atomically(str(tmp_path / "checkpoint_1_2.pt"), str(tmp_path / "checkpoint_last.pt"))

    def resume(arch: str = "transformer_sharing", **changes) -> int:
        resumed = make_trainer(data_dir, BY_NAME["cycle_rev" if arch == "transformer_sharing" else "none"], arch=arch)
        resumed.get_train_iterator = lambda **_: SimpleNamespace(epoch=1, load_state_dict=lambda state: None)
        resumed.lr_step = lambda epoch: None
        cfg = resumed.cfg.checkpoint
        for name, value in {"save_dir": str(tmp_path), **changes}.items():
            cfg[name] = value
        checkpoint_utils.load_checkpoint(cfg, resumed)
        assert cfg.restore_file == changes.get("restore_file", "checkpoint_last.pt")
        return resumed.get_num_updates()

    return SimpleNamespace(folder=tmp_path, last=tmp_path / "checkpoint_last.pt", resume=resume)


def test_training_resumes_from_the_newest_whole_checkpoint(interrupted, caplog):
    assert interrupted.resume() == 2
    assert "resuming from" not in caplog.text
    for broken, updates in (("checkpoint_last.pt", 2), ("checkpoint_1_2.pt", 1)):
        damage(interrupted.folder / broken)
        caplog.clear()
        assert interrupted.resume() == updates
        assert f"{interrupted.last}: not a readable checkpoint (" in caplog.text
        assert f"; resuming from {interrupted.folder / f'checkpoint_1_{updates}.pt'}" in caplog.text


def test_training_falls_back_to_checkpoints_of_its_own_suffix(interrupted):
    for path in list(interrupted.folder.glob("*.pt")):
        path.rename(path.with_name(f"{path.stem}-rank-0.pt"))
    damage(interrupted.folder / "checkpoint_last-rank-0.pt")
    assert interrupted.resume(checkpoint_suffix="-rank-0") == 2


@pytest.mark.parametrize("part", ["last_optimizer_state", "optimizer_history", "extra_state"])
def test_training_resumes_past_an_incomplete_checkpoint(interrupted, caplog, part):
    incomplete = load_checkpoint(interrupted.last)
    del incomplete[part]
    save_atomically(incomplete, interrupted.last)
    assert interrupted.resume() == 2
    newest = interrupted.folder / "checkpoint_1_2.pt"
    assert f"{interrupted.last}: has no {part}; resuming from {newest}" in caplog.text


def test_weights_without_optimizer_state_are_used_as_a_last_resort(interrupted):
    """Test files of --no-save-optimizer-state, and weights that a user copied to the folder."""
    weights = load_checkpoint(interrupted.last)
    del weights["last_optimizer_state"]
    save_atomically(weights, interrupted.last)
    for path in interrupted.folder.glob("checkpoint_1_*.pt"):
        path.unlink()
    assert interrupted.resume() == 0


def test_deleted_last_checkpoint_starts_a_new_training(interrupted, caplog):
    """Same as fairseq, unless a temporary file shows that the process was killed while writing the first checkpoint."""
    interrupted.last.unlink()
    assert interrupted.resume() == 0
    assert "resuming from" not in caplog.text
    (interrupted.folder / "checkpoint_last.pt.0123abcd.tmp").write_bytes(b"half")
    assert interrupted.resume() == 2
    assert f"{interrupted.last}: was not written completely; resuming from" in caplog.text


def test_another_source_of_weights_is_used_as_asked_for(interrupted):
    """--finetune-from-model starts from its file, even if the folder contains checkpoints."""
    pretrained = interrupted.folder / "checkpoint_pretrained.pt"
    interrupted.last.rename(pretrained)
    assert interrupted.resume(finetune_from_model=str(pretrained)) == 0
    assert interrupted.resume(restore_file=str(pretrained)) == 2
    assert interrupted.resume(continue_once=str(pretrained)) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"reset_optimizer": True},
        {"reset_lr_scheduler": True},
        {"reset_meters": True},
        {"reset_dataloader": True},
        {"restore_file": "{last}"},
    ],
    ids=str,
)
def test_no_other_checkpoint_is_taken_when_the_options_name_what_to_load(interrupted, options):
    damage(interrupted.last)
    options = {k: v.format(last=interrupted.last) if k == "restore_file" else v for k, v in options.items()}
    with pytest.raises(SharingError, match=rf"^{interrupted.last}: not a readable checkpoint \(.*\)$"):
        interrupted.resume(**options)


@pytest.mark.parametrize("option", ["finetune_from_model", "continue_once"])
def test_fine_tuning_whose_last_checkpoint_is_truncated_resumes_from_its_own_checkpoints(interrupted, caplog, option):
    """The model that a fine-tuning starts from is no checkpoint of it, wherever it is and whatever its name."""
    damage(interrupted.last)
    pretrained = interrupted.folder / "checkpoint9.pt"
    save_atomically({**load_checkpoint(interrupted.folder / "checkpoint_1_2.pt")}, pretrained)
    assert interrupted.resume(**{option: str(pretrained)}) == 2
    assert f"; resuming from {interrupted.folder / 'checkpoint_1_2.pt'}" in caplog.text
    interrupted.last.unlink()
    caplog.clear()
    interrupted.resume(**{option: str(pretrained)})
    assert "resuming from" not in caplog.text


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_training_does_not_resume_from_a_checkpoint_that_validated_as_nan(interrupted, caplog, loss):
    diverged = load_checkpoint(interrupted.last)
    diverged["extra_state"]["val_loss"] = loss
    save_atomically(diverged, interrupted.last)
    assert interrupted.resume() == 2
    assert f"{interrupted.last}: its validation loss is {loss}; resuming from " in caplog.text
    for path in interrupted.folder.glob("checkpoint_1_*.pt"):
        save_atomically(diverged, path)
    with pytest.raises(SharingError, match=f"its validation loss is {loss}; .* has no other checkpoint to resume from"):
        interrupted.resume()


def test_no_other_checkpoint_is_taken_for_fairseq_s_own_models(interrupted):
    damage(interrupted.last)
    with pytest.raises(SharingError, match=rf"^{interrupted.last}: not a readable checkpoint \(.*\)$"):
        interrupted.resume(arch="transformer")


def test_training_stops_if_no_checkpoint_can_be_read(interrupted):
    for path in interrupted.folder.glob("checkpoint*.pt"):
        damage(path)
    with pytest.raises(SharingError) as caught:
        interrupted.resume()
    assert str(caught.value).startswith(f"{interrupted.last}: not a readable checkpoint (")
    assert str(caught.value).endswith(f"); {interrupted.folder} has no other checkpoint to resume from")


def test_training_starts_without_a_checkpoint(interrupted):
    for path in interrupted.folder.glob("checkpoint*.pt"):
        path.unlink()
    assert interrupted.resume() == 0
