"""A study on a real Slurm of one node: array, resources, time limit, requeue, resume; skipped without Slurm.

Debian: ``apt-get install slurm-wlm munge``; run as root. The daemons run in a temporary directory.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fairseq_processes import ROOT
from tiny_training import free_port

from fairseq_sharing.experiment.run_directory import RunDirectory

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
pytestmark = pytest.mark.skipif(
    os.getuid() != 0 or not all(shutil.which(name) for name in PROGRAMS), reason="needs Slurm, munge and root"
)
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=5
GresTypes=gpu
SchedulerParameters=sched_interval=1,bf_interval=1,requeue_delay=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
STUDY = """
question: Does Slurm run it?
data: toy
recipe: recipes/toy.yaml
rows:
  vanilla: {train: {sharing: none}}
  cycle: {train: {sharing: cycle, unique_layers: 2, encoder_layers: 4, decoder_layers: 4}}
seeds: [1]
overrides: [train.max_epoch=1, train.cpu=true, train.max_tokens=8192, evaluate.beam=1, evaluate.max_len_b=9]
compare: {baseline: vanilla}
"""
STOPPED = re.compile(r"SIGTERM: stopped after (\d+) updates")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Start the daemons; return the environment of their clients."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    for gpu in range(2):
        (folder / f"gpu{gpu}").touch()
    (folder / "gres.conf").write_text("".join(f"Name=gpu File={folder}/gpu{gpu}\n" for gpu in range(2)))
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(CONF.format(host=host, folder=folder, ports=[free_port(), free_port()]))
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
    places = {name: f"{folder}/munge.{name}" for name in ("socket", "key")}
    munge = [f"--socket={places['socket']}", f"--key-file={places['key']}", f"--pid-file={folder}/munged.pid"]
    munge += [f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed", "--force", "--foreground"]
    daemons = [subprocess.Popen(["munged", *munge], stderr=subprocess.DEVNULL)]
    while not Path(places["socket"]).exists():
        time.sleep(0.05)
    for name in ("slurmctld", "slurmd"):
        daemons.append(subprocess.Popen([name, "-D"], env=environment, stderr=subprocess.DEVNULL))
    wait_until(lambda: "idle" in ask(environment, "sinfo", "--noheader"), 30)
    yield environment
    ask(environment, "scancel", "--user=root")
    for daemon in reversed(daemons):
        daemon.terminate()
        daemon.wait(30)


def ask(environment: dict[str, str], *words: str) -> str:
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False).stdout


def wait_until(ready, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.3)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A directory with a study, and the command on the PATH."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "mine.yaml").write_text(STUDY)
    (folder / "fairseq-sharing").write_text(f'#!/bin/sh\nexec {sys.executable} -P -m fairseq_sharing "$@"\n')
    (folder / "fairseq-sharing").chmod(0o755)
    return folder


def study(slurm: dict[str, str], place: Path, *words: str) -> str:
    """Run ``study run``; return what it prints on stderr."""
    environment = {**slurm, "PATH": f"{place}:{slurm['PATH']}", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-m", "fairseq_sharing", "study", "run", "mine.yaml", *words]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_job_that_cannot_start_is_explained(slurm, place):
    told = study(slurm, place, "--slurm", "--cpus-per-task 64 --hold", "--rows", "vanilla")
    job = re.search(r"submitted as job (\d+)", told)[1]
    ask(slurm, "scancel", job)
    told = study(slurm, place, "--slurm", "--cpus-per-task 64", "--rows", "vanilla")
    job = re.search(r"submitted as job (\d+)", told)[1]
    ask(slurm, "scancel", job)
    assert f"job {job} cannot start with these resources (PartitionConfig)" in told


@pytest.mark.slow
def test_study_is_stopped_at_its_time_limit_requeued_and_resumed(slurm, place):
    # Slurm sends SIGTERM up to a minute early: 60 to 120 seconds after the start, when the training runs.
    long = ["train.max_tokens=64", "train.max_epoch=50"]
    told = study(slurm, place, "--slurm", "--time 4 --signal=B:TERM@120", "--gpus", "1", *long)
    job = re.search(r"submitted as job (\d+)", told)[1]
    assert "--gpus-per-node 1 --cpus-per-task 2" in told
    wait_until(lambda: "Restarts=1" in ask(slurm, "scontrol", "show", "job", job), 180)
    ask(slurm, "scancel", job)
    runs = [RunDirectory(path) for path in place.glob("runs/mine/*-seed1")]
    wait_until(lambda: not any(run.is_training() for run in runs), 60)
    logs = {run.path.name.removesuffix("-seed1"): run.log_file.read_text() for run in runs if run.log_file.is_file()}
    stopped = {row: int(STOPPED.findall(text)[-1]) for row, text in logs.items() if STOPPED.search(text)}
    assert stopped, "the last update was saved"
    row, updates = next(iter(stopped.items()))
    told = study(slurm, place, *long, f"train.max_update={updates + 3}", "--rows", row)
    assert "resuming after" in told
    assert told.count(": finished, BLEU: ") == 1
