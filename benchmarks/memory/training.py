"""Measure the peak memory of training updates and its parts, vanilla and shared, against the estimate of ``describe``.

Run: python -m benchmarks.memory.training [--output results/speed/training_memory.json]
Each case is an update of fairseq's trainer in a new process: one sentence, then the measured batch, so that gradients
exist at the peak as in any update of several steps. On a CPU, the peak is that of torch's allocations, event by event;
the growth of the resident memory is reported next to it. On CUDA it is max_memory_allocated.
The sizes are those of the paper's base model: d_model 512, d_ffn 2048, 8 heads, 32,768 shared embeddings, dropout 0.1.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from benchmarks.record import environment, write

SHARED = {"sharing": "cycle", "unique_layers": 6}
MODELS: dict[str, dict[str, Any]] = {
    "vanilla N=6": {"layers": 6},
    "vanilla N=12": {"layers": 12},
    "vanilla N=24": {"layers": 24},
    "vanilla N=48": {"layers": 48},
    "cycle M=6 N=12": {"layers": 12, **SHARED},
    "cycle M=6 N=24": {"layers": 24, **SHARED},
    "cycle M=6 N=48": {"layers": 48, **SHARED},
}
LONGEST = ("vanilla N=6", "cycle M=6 N=12")
WAYS = {"stored": False, "recomputed": True}
VOCABULARY, LENGTH = 32_768, 25
GPU_MEMORY = 80e9  # bytes


def train_options(model: str, recompute: bool) -> dict[str, Any]:
    """Return the ``train`` block of a model."""
    sizes = dict(MODELS[model])
    layers = sizes.pop("layers")
    return {
        **{"arch": "transformer_sharing", "encoder_layers": layers, "decoder_layers": layers, **sizes},
        **{"share_all_embeddings": True, "dropout": 0.1, "fast": True, "checkpoint_activations": recompute},
        **{"criterion": "fused_label_smoothed_cross_entropy", "label_smoothing": 0.1, "optimizer": "fused_adam"},
        **{"task": "translation", "source_lang": "en", "target_lang": "de", "max_tokens": 4096},
    }


def arguments(model: str, recompute: bool) -> Namespace:
    """Return fairseq's arguments for a model."""
    from fairseq_sharing import flags

    return flags.parse(train_options(model, recompute))


def measure(model: str, recompute: bool, tokens: int, device: str, threads: int) -> dict[str, Any]:
    """Train for one update in this process.

    Returns:
        The peak, its parts and the growth of the resident memory, in bytes; the seconds of the batch's step, in CPU
        time on a CPU.
    """
    import torch
    from fairseq import tasks
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq.logging import metrics
    from fairseq.trainer import Trainer

    from benchmarks.synthetic import write_dictionaries
    from fairseq_sharing.schedules.change_sharing import measure_bytes

    torch.set_num_threads(threads)
    args = arguments(model, recompute)
    with tempfile.TemporaryDirectory() as folder:
        write_dictionaries(folder, VOCABULARY)
        args.data, args.cpu = folder, device == "cpu"
        cfg = convert_namespace_to_omegaconf(args)
        task = tasks.setup_task(cfg.task)
    torch.randn(256, 256) @ torch.randn(256, 256)  # warm-up: the first use allocates memory
    resident = resident_bytes("VmRSS")
    torch.manual_seed(1)
    trainer = Trainer(cfg, task, task.build_model(cfg.model), task.build_criterion(cfg.criterion))
    step = MeasuredStep(task, tokens, device)
    with metrics.aggregate():
        trainer.train_step([batch(1), batch(1)])  # creates the optimizer's state
        static = measure_bytes(trainer.model, trainer.optimizer)
        trainer.zero_grad()
        peak = cuda_peak if device == "cuda" else cpu_peak
        high, grown = peak(lambda: trainer.train_step([batch(1), batch(tokens // LENGTH)]))
    found = {**static, "activations": step.activations, "peak": grown + (0 if device == "cuda" else held(static))}
    found["workspace"] = found["peak"] - sum(static.values()) - step.activations
    return {**found, "resident": high and high - resident, "seconds": step.seconds}


def held(static: dict[str, int]) -> int:
    """Return the bytes that training uses between updates."""
    return static["weights"] + static["optimizer"]


def batch(sentences: int) -> dict[str, Any]:
    """Make a batch of random words with padding."""
    import torch

    words = torch.randint(4, VOCABULARY, (sentences, LENGTH))
    words[0, -1] = 1
    inputs = {"src_tokens": words, "src_lengths": torch.full((sentences,), LENGTH), "prev_output_tokens": words}
    counts = {"id": torch.arange(sentences), "nsentences": sentences, "ntokens": words.numel() - 1}
    return {**counts, "target": words, "net_input": inputs}


class MeasuredStep:
    """Measures the step on batches of one size: seconds, and the bytes kept for the backward pass."""

    def __init__(self, task: Any, tokens: int, device: str):
        self.activations, self.seconds = 0, 0.0
        # CPU time excludes the time of other processes.
        self._clock = time.process_time if device == "cpu" else time.perf_counter
        self._tokens = tokens // LENGTH * LENGTH
        self._stock, task.train_step = task.train_step, self._step

    def _step(self, sample: dict[str, Any], model: Any, criterion: Any, *args: Any, **kwargs: Any) -> Any:
        import torch

        if sample["target"].numel() != self._tokens:
            return self._stock(sample, model, criterion, *args, **kwargs)
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        def forward(*given: Any, **options: Any) -> Any:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                return criterion(*given, **options)

        began = self._clock()
        made = self._stock(sample, model, forward, *args, **kwargs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds, self.activations = self._clock() - began, sum(kept.values())
        return made


def resident_bytes(name: str) -> int:
    """Return the current (VmRSS) or peak (VmHWM) resident memory of this process."""
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(name))


def cpu_peak(update: Any) -> tuple[int, int]:
    """Return the peak resident memory during an update, and the peak of torch's allocations above the start."""
    import torch

    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets VmHWM
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        update()
        high = resident_bytes("VmHWM")
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    allocated = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        most = max(most, allocated)
    return high, most


def cuda_peak(update: Any) -> tuple[None, int]:
    """Return the peak of torch's allocations during an update."""
    import torch

    torch.cuda.reset_peak_memory_stats()
    update()
    return None, torch.cuda.max_memory_allocated()


def in_own_process(job: dict[str, Any]) -> dict[str, Any]:
    """Measure a case in a process whose allocator returns freed memory, so that resident memory is meaningful."""
    threads = str(job["threads"])
    surroundings = {"MALLOC_MMAP_THRESHOLD_": "65536", **os.environ, "OMP_NUM_THREADS": threads}
    command = [sys.executable, "-m", __spec__.name, "--measure", json.dumps(job)]
    ran = subprocess.run(command, capture_output=True, text=True, env=surroundings)
    if ran.returncode:
        raise SystemExit(f"{job}: {ran.stderr.strip()[-2000:]}")
    return json.loads(ran.stdout.splitlines()[-1])


def measure_models(args: Namespace) -> dict[str, dict[str, Any]]:
    """Measure every model with activations stored and recomputed, and print a line for each."""
    from fairseq_sharing.description.step_memory import TrainingStep, estimate

    rows: dict[str, dict[str, Any]] = {}
    print("model           activations   static activations workspace    peak estimate    off", end="")
    print(" resident seconds  fits 80 GB", flush=True)
    for model, (way, recompute) in itertools.product(MODELS, WAYS.items()):
        options = arguments(model, recompute)
        told = TrainingStep(options, VOCABULARY, args.device).count(args.tokens, LENGTH)
        gpu = estimate(options, VOCABULARY, LENGTH, GPU_MEMORY, "cuda").longest_batch
        job = {"model": model, "recompute": recompute, "tokens": args.tokens}
        found = in_own_process({**job, "device": args.device, "threads": args.threads})
        off = told.peak / found["peak"] - 1
        row = {"measured": found, "closed_form_static": told.static, "estimate": {**vars(told), "peak": told.peak}}
        rows.setdefault(model, {})[way] = {**row, "off": off, "longest_batch_80_gb_estimated": gpu}
        static = sum(found[part] for part in ("weights", "gradients", "optimizer"))
        sizes = (static, found["activations"], found["workspace"], found["peak"], told.peak)
        shown = [f"{size / 1e9:{width}.2f}" for size, width in zip(sizes, (8, 12, 10, 8, 9), strict=True)]
        resident = f"{(found['resident'] or 0) / 1e9:9.2f}"
        print(f"{model:16}{way:12}{''.join(shown)}{off:7.1%}{resident}{found['seconds']:8.1f}{gpu:12,}", flush=True)
    return rows


def measure_longest(args: Namespace) -> dict[str, dict[str, Any]]:
    """Train on the longest batch that is estimated to fit, and print the share of memory that it uses."""
    from fairseq_sharing.description.step_memory import estimate

    rows: dict[str, dict[str, Any]] = {}
    for model, (way, recompute) in itertools.product(LONGEST, WAYS.items()):
        tokens = estimate(arguments(model, recompute), VOCABULARY, LENGTH, 1e9 * args.memory, args.device).longest_batch
        job = {"model": model, "recompute": recompute, "tokens": tokens}
        found = in_own_process({**job, "device": args.device, "threads": args.threads})
        filled = found["peak"] / (1e9 * args.memory)
        rows.setdefault(model, {})[way] = {"tokens": tokens, "measured": found, "filled": filled}
        print(f"{model}, {way}: {tokens:,} tokens take {filled:.1%} of {args.memory:g} GB", flush=True)
    return rows


def main() -> None:
    """Measure every case, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="device to train on (default: cpu)")
    parser.add_argument("--threads", type=int, default=1, help="number of CPU threads (default: 1)")
    parser.add_argument("--tokens", type=int, default=1000, help="tokens per side of the batch")
    parser.add_argument("--memory", type=float, default=3, help="memory for the longest batch, in GB")
    parser.add_argument("--part", choices=["all", "models", "longest"], default="all", help="what to measure")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(**json.loads(args.measure))))
        return

    if args.part != "all" and args.output is None:
        parser.error("--part requires --output; the other part of that file is kept")

    result: dict[str, Any] = {**environment(), "device": args.device, "threads": args.threads, "length": LENGTH}
    if args.part != "longest":
        result.update(tokens=args.tokens, models=measure_models(args))
    if args.part != "models":
        result["longest"] = {"memory": 1e9 * args.memory, **measure_longest(args)}
    kept = json.loads(args.output.read_text()) if args.part != "all" and args.output.is_file() else {}
    write({**kept, **result}, args.output)


if __name__ == "__main__":
    main()
