"""One rank of a training that torchrun starts: looks at the others, then is ``fairseq-train``.

torchrun --nproc-per-node 4 -m fairseq_sharing.training.rank ARGUMENTS OF fairseq-train
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from fairseq_sharing.errors import SharingError

logger = logging.getLogger("fairseq_sharing.training.rank")  # not __main__, as which torchrun starts it
_PR_SET_PDEATHSIG = 1  # prctl(2)


def main() -> None:
    """Check that torchrun started what was planned, then train."""
    # Errors are told as those of fairseq-train, whose arguments these are.
    sys.argv[0] = "fairseq-train"
    planned, started = planned_world_size(sys.argv), int(os.environ.get("WORLD_SIZE", "1"))
    if planned != started:
        if os.environ.get("RANK", "0") == "0":
            print(
                f"fairseq-train: error: --distributed-world-size {planned} was planned, torchrun started {started}: "
                "the batch would have another size; allowed: as many devices on each machine as planned",
                file=sys.stderr,
            )
        sys.exit(2)
    _end_with_torchrun()
    from fairseq_cli import train

    import fairseq_sharing

    fairseq_sharing.register()  # --user-dir finds the package imported already
    train.main = after_roll_call(train.main)
    train.cli_main()


def planned_world_size(words: Sequence[str]) -> int:
    """Read ``--distributed-world-size`` from a command line; 1 without it."""
    words = list(words)
    return int(words[words.index("--distributed-world-size") + 1]) if "--distributed-world-size" in words else 1


def after_roll_call(train: Callable[..., None]) -> Callable[..., None]:
    """Make a training tell who takes part, and stop where two ranks would share a GPU or train differently."""

    @functools.wraps(train)
    def checked(cfg: Any, **kwargs: Any) -> None:
        import torch

        rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
        told: list[Any] = [None] * count
        torch.distributed.all_gather_object(told, (_place(cfg), batch_settings(cfg)))
        places, settings = zip(*told, strict=True)
        if rank == 0:
            for number, (host, device, name) in enumerate(places):
                logger.info(f"rank {number}: {host}, {device}, {name}")
        check_places(places)
        check_settings(settings)
        train(cfg, **kwargs)

    return checked


def check_places(places: Sequence[tuple[str, str, str]]) -> None:
    """Refuse two ranks on one GPU.

    Args:
        places: host, device and its name of each rank.

    Raises:
        SharingError: naming both ranks.
    """
    first: dict[tuple[str, str], int] = {}
    for rank, (host, device, _) in enumerate(places):
        other = first.setdefault((host, device), rank)
        if device != "cpu" and other != rank:
            raise SharingError(f"ranks {other} and {rank} are both on {device} of {host}; allowed: a GPU for each")


def batch_settings(cfg: Any) -> dict[str, Any]:
    """Return the flags that decide what is in a batch; each machine of several is started with its own."""
    return {
        "--max-tokens": cfg.dataset.max_tokens,
        "--batch-size": cfg.dataset.batch_size,
        "--required-batch-size-multiple": cfg.dataset.required_batch_size_multiple,
        "--update-freq": list(cfg.optimization.update_freq),
        "--seed": cfg.common.seed,
    }


def check_settings(settings: Sequence[dict[str, Any]]) -> None:
    """Refuse ranks whose batches would be put together differently.

    Args:
        settings: flags and values of each rank.

    Raises:
        SharingError: naming the flag, the rank and both values.
    """
    for rank, others in enumerate(settings):
        for flag, value in settings[0].items():
            if others[flag] != value:
                raise SharingError(
                    f"{flag} is {value} on rank 0 and {others[flag]} on rank {rank}; allowed: one for all"
                )


def _place(cfg: Any) -> tuple[str, str, str]:
    import torch

    if cfg.common.cpu or not torch.cuda.is_available():
        return socket.gethostname(), "cpu", f"{torch.get_num_threads()} threads"
    index = torch.cuda.current_device()
    return socket.gethostname(), f"cuda:{index}", torch.cuda.get_device_name(index)


def _end_with_torchrun() -> None:
    """Let the kernel end this rank when torchrun is gone: a lost rank would train on, beside the next start."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
