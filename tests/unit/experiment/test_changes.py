"""What may change in the configuration of a run when it is resumed."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf
from run_configuration import CONFIG

from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment.changes import config_changes, refuse_changed


@pytest.mark.parametrize("key", ["train.max_epoch", "train.keep_last_epochs", "train.validate_interval", "data"])
def test_length_and_bookkeeping_may_change(run, key):
    refuse_changed(run, OmegaConf.merge(CONFIG, OmegaConf.from_dotlist([f"{key}=9"])))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr=0.2", "train.lr=0.1, now 0.2;"),
        ("train.dropout=0.5", "train.dropout=unset, now 0.5;"),
        ("dataset=other", "dataset=toy, now other;"),
        ("seed=2", "seed=1, now 2;"),
        ("train.lr=null", "train.lr=0.1, now unset;"),
    ],
)
def test_another_recipe_is_refused_with_key_and_both_values(run, override, message):
    with pytest.raises(SharingError) as error:
        refuse_changed(run, OmegaConf.merge(CONFIG, OmegaConf.from_dotlist([override])))
    assert message in str(error.value)


def test_several_changes_are_counted(run):
    with pytest.raises(SharingError, match=r"\(and 1 more\)"):
        refuse_changed(run, OmegaConf.merge(CONFIG, {"seed": 2, "train": {"lr": 1}}))


def test_changes_name_nested_keys():
    new = OmegaConf.merge(CONFIG, {"train": {"lr": 0.2}, "evaluate": {"beam": 5}})
    assert config_changes(OmegaConf.create(CONFIG), new) == {
        "evaluate.beam": (None, 5),
        "train.lr": (0.1, 0.2),
    }
