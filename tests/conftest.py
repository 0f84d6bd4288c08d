"""The fork server of the tests that run commands."""

from __future__ import annotations

from multiprocessing import forkserver

import pytest
from fairseq_processes import ENVIRONMENT, Commands


@pytest.fixture(scope="session")
def commands(tmp_path_factory) -> Commands:
    """Start commands of fairseq and of this project."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in ENVIRONMENT.items():
            environment.setenv(name, value)
        forkserver.ensure_running()
    return Commands(tmp_path_factory.mktemp("commands"))
