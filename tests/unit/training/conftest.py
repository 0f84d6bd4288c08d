"""Fixtures for the tests of one run: a machine without its devices."""

from __future__ import annotations

import pytest

from fairseq_sharing.experiment import environment

CPU = {"kind": "cpu", "name": "cpu", "count": 4, "memory_bytes": 1}


@pytest.fixture(params=[CPU], ids=["cpu"])
def machine(request, monkeypatch):
    monkeypatch.setattr(environment, "device", lambda: request.param)
    monkeypatch.setattr(environment, "cpu_cores", lambda: 4)
