"""Trainings in separate processes that wait for commands, so that several trainings can be timed alternately.

This module does not import this package: stock fairseq, which is timed as well, must run without it.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

PROFILED = 40  # operations that a profile lists, longest first


def serve(words: list[str], threads: int, batches: int) -> None:
    """Build a trainer from flags of fairseq-train; for each line on standard input, time one update per batch.

    The line ``profile`` returns the share of each operation in the time of an update instead.
    """
    import torch
    from fairseq import options, tasks, utils
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq.trainer import Trainer

    torch.set_num_threads(threads)
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), words))
    utils.import_user_module(cfg.common)
    torch.manual_seed(1)
    task = tasks.setup_task(cfg.task)
    model = task.build_model(cfg.model)
    trainer = Trainer(cfg, task, model, task.build_criterion(cfg.criterion))
    task.load_dataset("train")
    limit = cfg.dataset.max_tokens
    iterator = task.get_batch_iterator(
        task.dataset("train"),
        max_tokens=limit,
        max_positions=(min(limit, 1024), min(limit, 1024)),
        ignore_invalid_inputs=True,
        seed=1,
    ).next_epoch_itr(shuffle=True)
    samples = [sample for _, sample in zip(range(batches), iterator, strict=False)]
    trainer.begin_epoch(1)
    trainer.train_step([samples[0]])
    print(json.dumps({"ready": sum(p.numel() for p in model.parameters())}), flush=True)
    for line in sys.stdin:
        if line.strip() == "profile":
            print(json.dumps(profile(lambda: trainer.train_step([samples[0]]))), flush=True)
            continue
        seconds, tokens = 0.0, 0
        for sample in samples:
            began = time.perf_counter()
            trainer.train_step([sample])
            if not cfg.common.cpu:
                torch.cuda.synchronize()
            seconds += time.perf_counter() - began
            tokens += sample["ntokens"]
        peak = torch.cuda.max_memory_allocated() if not cfg.common.cpu else resource.getrusage(0).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "tokens": tokens, "peak_bytes": peak}), flush=True)


def profile(work: Callable[[], object]) -> dict[str, float]:
    """Profile a function; return the time shares of the longest operations."""
    import torch

    with torch.profiler.profile() as profiler:
        work()
    on_cpu = not torch.cuda.is_available()
    times = {
        event.key: event.self_cpu_time_total if on_cpu else event.self_device_time_total
        for event in profiler.key_averages()
    }
    whole = sum(times.values())
    longest = sorted(times, key=lambda name: -times[name])[:PROFILED]
    return {name: round(times[name] / whole, 4) for name in longest}


class Side:
    """One of the trainings that are timed alternately.

    Args:
        words: the flags of fairseq-train.
        threads: number of threads of its process.
        batches: updates per timed run, each on another batch.
        variables: environment variables of its process.
    """

    def __init__(self, words: list[str], threads: int, batches: int, variables: Mapping[str, str] | None = None):
        job = json.dumps({"words": words, "threads": threads, "batches": batches})
        self.process = subprocess.Popen(
            [sys.executable, __file__, job],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), **(variables or {})},
        )
        self.parameters = self._answer()["ready"]
        self.runs: list[dict] = []

    def _answer(self) -> dict:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"a training process ended early; run its command to see the error: {self.process.args!r}")

    def _ask(self, line: str) -> dict:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._answer()

    def time(self) -> None:
        """Train for one update per batch."""
        self.runs.append(self._ask("go"))

    def profile(self) -> dict[str, float]:
        """Return the longest operations and their shares of the time of an update."""
        return self._ask("profile")

    def close(self) -> dict:
        """End the process and return the medians."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        speeds = [run["tokens"] / run["seconds"] for run in self.runs]
        return {
            "tokens_per_second": statistics.median(speeds),
            "fastest": max(speeds),
            "slowest": min(speeds),
            "parameters": self.parameters,
            "peak_bytes": max(run["peak_bytes"] for run in self.runs),
        }


if __name__ == "__main__":
    serve(**json.loads(sys.argv[1]))
