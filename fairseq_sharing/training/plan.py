"""Plan a training run: its directory, data, devices and command."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fairseq_sharing.errors import SharingError
from fairseq_sharing.experiment import config as configuration
from fairseq_sharing.experiment import environment
from fairseq_sharing.experiment.command_line import path_word, refuse_separator
from fairseq_sharing.experiment.direction import (
    KEYS,
    Direction,
    direction_of,
    inferred_direction,
    refuse_other_languages,
)
from fairseq_sharing.experiment.run_directory import RunDirectory, default_directory
from fairseq_sharing.preparation.manifest import read_manifest
from fairseq_sharing.resources import PACKAGE_DIR
from fairseq_sharing.training.from_trained import tied_file

# The module that torchrun starts for each rank: checks the other ranks, then runs fairseq-train.
_FIRST_START_ONLY = (*("restore_file", "reset_optimizer", "reset_lr_scheduler", "reset_meters", "reset_dataloader"),)
MAX_PORT = 65535
RANK_MODULE = "fairseq_sharing.training.rank"


@dataclass(frozen=True)
class Machines:
    """The machines of one run; all are started with the same values except for ``node_rank``.

    Args:
        nodes: number of machines.
        node_rank: rank of this machine, from 0.
        master: ``HOST:PORT`` of machine 0, where the ranks rendezvous; None on a single machine.

    Raises:
        SharingError: inconsistent numbers, or no ``master`` for several machines.
    """

    nodes: int = 1
    node_rank: int = 0
    master: str | None = None

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise SharingError(f"--nodes must be at least 1, got {self.nodes}")
        if not 0 <= self.node_rank < self.nodes:
            raise SharingError(
                f"--node-rank must be between 0 and {self.nodes - 1} (--nodes - 1), got {self.node_rank}"
            )
        if self.nodes > 1 and self.master is None:
            raise SharingError(f"--nodes {self.nodes}: needs --master HOST:PORT, the address of machine 0")
        if self.master is not None:
            host, _, port = self.master.rpartition(":")
            if not host or not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= MAX_PORT:
                raise SharingError(f"--master must be HOST:PORT, got {self.master}; allowed: ports 1 to {MAX_PORT}")

    def master_address(self) -> tuple[str, str]:
        """Return the host and port where the ranks rendezvous."""
        host, _, port = (self.master or f"127.0.0.1:{_free_port()}").rpartition(":")
        return host, port


@dataclass(frozen=True)
class Plan:
    """One training run, ready to start.

    Args:
        config: the composed configuration.
        run: the run directory.
        data: the data directory, created by ``fairseq-sharing prepare``.
        devices: processes per machine: one per GPU or, without GPUs, each with an equal share of the CPU cores.
        cuda: whether to train on GPUs.
        machines: the machines.
    """

    config: DictConfig
    run: RunDirectory
    data: Path
    devices: int
    cuda: bool
    machines: Machines = Machines()

    @property
    def world_size(self) -> int:
        """The total number of processes on all machines."""
        return self.devices * self.machines.nodes

    def words(self) -> list[str]:
        """Return the arguments of ``fairseq-train``, which are the same for all ranks.

        Raises:
            SharingError: a key or value of the ``train`` block that ``fairseq-train`` does not accept.
        """
        from fairseq_sharing import flags  # imports torch, which a plan alone does not need

        train = dict(self.config.train)
        train.update(self._languages())
        if (self.run.checkpoints / "checkpoint_last.pt").is_file():
            # fairseq would start from the other weights again at every start, instead of resuming.
            for key in _FIRST_START_ONLY:
                train.pop(key, None)
        if (tied := tied_file(self.config, self.run)) is not None:
            train["finetune_from_model"] = path_word(tied)
        train["update_freq"] = configuration.update_freq(self.config, self.world_size)
        words = [
            path_word(self.data / "bin"),
            *("--user-dir", str(PACKAGE_DIR)),
            *flags.words(train),
            *("--seed", str(self.config.seed)),
            *("--save-dir", path_word(self.run.checkpoints)),
            *("--tensorboard-logdir", path_word(self.run.tensorboard)),
            *("--log-format", "json"),
            *("--distributed-world-size", str(self.world_size)),
        ]
        return words if self.cuda else [*words, "--cpu"]

    def command(self) -> list[str]:
        """Return the command that starts this machine's ranks: fairseq-train, or torchrun for several ranks."""
        if self.world_size == 1:
            return ["fairseq-train", *self.words()]
        host, port = self.machines.master_address()
        return [
            *("torchrun", "--nnodes", str(self.machines.nodes), "--node-rank", str(self.machines.node_rank)),
            *("--nproc-per-node", str(self.devices), "--master-addr", host, "--master-port", port),
            *("-m", RANK_MODULE, *self.words()),
        ]

    def threads(self) -> int:
        """Return the number of torch threads per process, which determines the rounding of results on a CPU.

        It is that of OMP_NUM_THREADS if set, otherwise that of the run's last start if there are enough cores.
        """
        if (chosen := environment.chosen_threads()) is not None:
            return chosen
        before = self.run.record().get("device", {}).get("threads") or 0
        if 0 < before * self.devices <= environment.cpu_cores():
            return before
        if self.devices > 1:  # processes on GPUs get a single thread, as from torchrun
            return 1 if self.cuda else max(1, environment.cpu_cores() // self.devices)
        import torch

        return torch.get_num_threads()

    def variables(self) -> dict[str, str]:
        """Return the environment of the processes, with the number of threads."""
        # torch follows MKL's number if both are set.
        return {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads()))}

    def tokens_per_batch(self) -> int | None:
        """Return the maximum number of tokens per update; None if batches are counted in sentences."""
        return configuration.tokens_per_batch(self.config, self.world_size)

    def batch(self) -> str:
        """Describe the batch of one update in words."""
        steps, tokens = configuration.update_freq(self.config, self.world_size) or 1, self.tokens_per_batch()
        train, count = self.config.train, self.world_size
        max_tokens = train.get("max_tokens")
        per_step = f"{max_tokens:,} tokens" if max_tokens else f"{train.get('batch_size')} sentences"
        total = f"{tokens:,} tokens per batch = " if tokens else ""
        return f"{total}{per_step} x {count} device{'s' * (count > 1)} x update_freq {steps}"

    def world(self) -> str:
        """Describe the world size in words."""
        one, many = ("GPU", "GPUs") if self.cuda else ("CPU process", "CPU processes")
        machines = f" on {self.machines.nodes} machines" if self.machines.nodes > 1 else ""
        return f"world size {self.world_size} ({one if self.world_size == 1 else many}{machines})"

    def direction(self) -> Direction | None:
        """Return source and target language: those of the data, the configuration, or as inferred by fairseq."""
        file = self.data / "manifest.json"
        given = direction_of(self.manifest(), file) or direction_of(self.config.train, "train")
        return given or (inferred_direction(self.data / "bin") if not file.is_file() else None)

    def _languages(self) -> dict[str, str]:
        """Return the language flags; none for the data of a language model.

        Raises:
            SharingError: the task does not match the data (translation or language modeling).
        """
        from fairseq_sharing import flags  # imports torch, which a plan alone does not need

        direction, manifest, train = self.direction(), self.manifest(), self.config.train
        translates = flags.takes(train, KEYS[0])
        if direction is None and manifest.get(KEYS[0]) and translates:
            raise SharingError(f"{self.data}: monolingual data; allowed: train.task and train.arch of a language model")
        if direction is None or not (translates or manifest):
            return {}
        if not translates:
            raise SharingError(
                f"train.task: {train.get('task')}; allowed: a translation task, because {self.data} is parallel data"
            )
        # A task for several directions trains only one if it is given these flags.
        return {} if train.get("lang_pairs") else dict(zip(KEYS, direction, strict=True))

    def manifest(self) -> dict[str, Any]:
        """Return the manifest of the data directory; empty if it has none."""
        return read_manifest(self.data)


def make_plan(
    config: DictConfig,
    *,
    run: Path | None = None,
    runs: Path = Path("runs"),
    data: Path | None = None,
    devices: int | None = None,
    machines: Machines = Machines(),
    fit_memory: bool = False,
) -> Plan:
    """Choose the run directory, data and devices of a run.

    Args:
        config: the composed configuration.
        run: the run directory; that of ``default_directory`` if None.
        runs: the directory of all runs.
        data: the data directory; if None, ``data`` of the configuration, or ``data/<dataset>``.
        devices: GPUs per machine, or CPU processes if it has no GPU; all GPUs, or one process, if None.
        machines: the machines.
        fit_memory: whether to choose ``train.max_tokens`` by device memory.

    Raises:
        SharingError: more devices than are available, a batch that cannot be divided over the devices, languages that
            differ from those of the data, or data whose preparation has not finished.
    """
    here = environment.device()
    cuda = here["kind"] == "cuda" and not config.train.get("cpu")
    most = here["count"] if cuda else environment.cpu_cores()
    devices = devices if devices is not None else (most if cuda else 1)
    if not 1 <= devices <= most:
        raise SharingError(
            f"--devices must be between 1 and {most} ({'GPUs' if cuda else 'CPU cores'} here), got {devices}"
        )
    data = data or Path(config.get("data") or Path("data") / config.dataset)
    directory = run or default_directory(config, runs)
    refuse_separator(directory, "run directory")
    refuse_separator(data.resolve(), "data directory")  # evaluation uses the recorded absolute path
    read_manifest(data)
    if fit_memory:
        from fairseq_sharing.description.fit import fit_max_tokens  # imports torch, which only this option needs

        memory = here["memory_bytes"] if cuda else here["memory_bytes"] // devices
        config = fit_max_tokens(config, devices * machines.nodes, memory, data, "cuda" if cuda else "cpu")
    configuration.update_freq(config, devices * machines.nodes)
    plan = Plan(config, RunDirectory(directory), data, devices, cuda, machines)
    refuse_other_languages(config.train, plan.manifest(), data)
    return plan


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
