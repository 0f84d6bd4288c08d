"""A run directory with a configuration."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf
from run_configuration import CONFIG

from fairseq_sharing.experiment.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path / "runs" / "a")
    run.write_config(OmegaConf.create(CONFIG))
    return run
