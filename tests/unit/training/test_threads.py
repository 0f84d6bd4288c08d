"""The number of threads of a training, which determines the rounding of its results."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from fairseq_sharing.experiment.config import compose
from fairseq_sharing.training import launch
from fairseq_sharing.training.plan import make_plan

CPU = {"kind": "cpu", "name": "cpu", "count": 4, "memory_bytes": 1}
GPUS = {"kind": "cuda", "name": "gpu", "count": 4, "memory_bytes": 80 * 1024**3}


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data" / "bin").mkdir(parents=True)
    (tmp_path / "data" / "manifest.json").write_text('{"source_lang": "en", "target_lang": "de"}')
    return tmp_path / "data"


@pytest.mark.parametrize(("machine", "share"), [(CPU, 2), (GPUS, 1)], indirect=["machine"], ids=["cpu", "gpu"])
@pytest.mark.usefixtures("machine")
def test_cpu_processes_share_the_cores(monkeypatch, share):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    plan = make_plan(compose("toy", ["row=vanilla"]), devices=2)
    assert plan.threads() == share
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert plan.threads() == 3


@pytest.mark.usefixtures("machine")
def test_the_number_of_threads_is_set_for_torch_and_kept_on_resume(data, tmp_path, monkeypatch):
    """Set explicitly: torch's default depends on the machine's cores, and on MKL's variable."""
    plan = make_plan(compose("toy", ["row=vanilla"]), runs=tmp_path, data=data)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("MKL_NUM_THREADS", "2")
    assert (plan.variables()["OMP_NUM_THREADS"], plan.variables()["MKL_NUM_THREADS"]) == ("3", "3")
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert plan.threads() == torch.get_num_threads()
    for recorded, threads in ((4, 4), (5, torch.get_num_threads())):  # the machine has 4 cores
        plan.run.path.mkdir(parents=True, exist_ok=True)
        plan.run.write_record({"device": {**CPU, "threads": recorded}})
        assert plan.threads() == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert plan.threads() == 1


@pytest.mark.usefixtures("machine")
def test_a_resumed_run_keeps_its_earlier_devices(data, tmp_path):
    plan = make_plan(compose("toy", ["row=vanilla"]), runs=tmp_path, data=data)
    record = launch._start(plan, {})
    assert record["device"]["threads"] == plan.threads()
    assert record["earlier_devices"] == []
    same = launch._start(plan, record)
    assert same["earlier_devices"] == []
    other = {**record["device"], "threads": 7, "name": "Other CPU"}
    resumed = launch._start(plan, {**record, "device": other})
    assert (resumed["device"], resumed["earlier_devices"]) == (record["device"], [other])
    console = Console(file=io.StringIO(), width=500)
    launch._print_other_device(same, same, console)
    assert console.file.getvalue() == ""
    launch._print_other_device({**record, "device": other}, resumed, console)
    assert "the run was last trained on Other CPU, 7 threads, " in console.file.getvalue()
