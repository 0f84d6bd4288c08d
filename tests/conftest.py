"""The fork server of the tests that run commands."""

from __future__ import annotations

import resource
import signal
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


@pytest.fixture
def small_disk():
    """Limit the size of files that this process writes; the error is like that of a full disk."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, before)
