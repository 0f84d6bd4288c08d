"""Stand-in for ``fairseq-sharing train`` and ``evaluate``: the files and locks of a run, without a model.

Called like ``python -m fairseq_sharing``; tests of studies put it in the place of ``runner.python_words``. Each update
appends a line to ``updates`` in the run directory, so a test sees if one was repeated or lost. A run directory with a
file ``meet`` waits until another run trains; with a file ``hold`` in the current directory, no run makes more than one
update.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

UPDATES = 6  # per epoch; one epoch
SECONDS = 0.05  # per update
LAST = "checkpoints/checkpoint_last.pt"  # contains the number of updates


def words(command) -> list[str]:
    """Return the command line of the stand-in for a command of fairseq-sharing."""
    return [sys.executable, __file__, *command[1:]]


def meet(seconds: float) -> None:
    """Wait until another run trains, however long the machine takes to start it.

    Raises:
        TimeoutError: if no other run started in ``seconds``.
    """
    end = time.monotonic() + seconds
    while len(list(Path("started").iterdir())) < 2:
        if time.monotonic() > end:
            raise TimeoutError("no other run trains")
        time.sleep(0.02)


def train(study: str, row: str, seed: str, *more: str) -> int:
    from fairseq_sharing.experiment.config import compose
    from fairseq_sharing.experiment.run_directory import RunDirectory

    config = compose(study, [row, seed, *(word for word in more if "=" in word)])
    run = RunDirectory(Path("runs") / config.study / f"{config.run}-seed{config.seed}")
    stopped = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    with run.locked():
        run.checkpoints.mkdir(exist_ok=True)
        run.write_config(config)
        last = run.path / LAST
        done = int(last.read_text()) if last.is_file() else 0
        record = {"exit_status": None, "train_seconds": 0.0, "seed": config.seed}
        run.write_record(record)
        if (run.path / "fail").exists():
            run.write_record({**record, "exit_status": 2})
            print("fairseq-sharing train: error: fairseq-train failed: something is wrong", file=sys.stderr)
            return 2
        environment = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
        environment["cores"] = sorted(os.sched_getaffinity(0))
        (run.path / "environment.json").write_text(json.dumps(environment))
        Path("started").mkdir(exist_ok=True)
        (Path("started") / f"{run.path.name}.{os.getpid()}").touch()
        if (run.path / "meet").exists():
            meet(60)
        while done < UPDATES and not stopped:
            time.sleep(SECONDS)
            if done and Path("hold").exists():
                continue
            done += 1
            with (run.path / "updates").open("a") as updates:
                updates.write(f"{done}\n")
            temporary = last.with_suffix(".tmp")
            temporary.write_text(str(done))
            temporary.replace(last)
            with run.log_file.open("a") as log:
                values = {"epoch": 1, "update": done / UPDATES, "num_updates": done, "wps": 100.0}
                log.write(f"2026-01-01 00:00:00 | INFO | train_inner | {json.dumps(values)}\n")
        (Path("started") / f"{run.path.name}.{os.getpid()}").unlink()
        status = 0 if done == UPDATES else 143
        run.write_record({**record, "exit_status": status, "train_seconds": 1.5})
        return status


def evaluate(path: str, *flags: str) -> int:
    from evaluation_results import result

    from fairseq_sharing.experiment.run_directory import RunDirectory
    from fairseq_sharing.files import write_text
    from fairseq_sharing.reporting.results import add_result

    run = RunDirectory(Path(path))
    with run.evaluating():
        name, _, seed = run.path.name.rpartition("-seed")
        if "--run" in flags:
            name = flags[flags.index("--run") + 1]
            (run.path / "flags").write_text(" ".join(flags))
        write_text(run.result_file, json.dumps(result(name, seed=int(seed), train_seconds=1.5)))
        add_result(run.result_file, Path(flags[flags.index("--out") + 1]))
    return 0


def main() -> None:
    from fairseq_sharing.training.processes import END_WITH_PARENT, end_with_parent

    if parent := os.environ.pop(END_WITH_PARENT, ""):
        end_with_parent(signal.SIGTERM, int(parent))
    command, *words_left = sys.argv[1:]
    sys.exit({"train": train, "evaluate": evaluate}[command](*words_left))


if __name__ == "__main__":
    main()
