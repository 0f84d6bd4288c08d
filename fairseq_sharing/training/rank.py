"""Run one rank under torchrun: check the other ranks, then run ``fairseq-train``.

torchrun --nproc-per-node 4 -m fairseq_sharing.training.rank ARGUMENTS OF fairseq-train
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from fairseq_sharing.errors import SharingError
from fairseq_sharing.training.processes import end_with_parent

logger = logging.getLogger("fairseq_sharing.training.rank")  # torchrun runs it as __main__


def main() -> None:
    """Check that torchrun started the planned number of ranks, then train."""
    # Report errors under the name of fairseq-train, whose arguments these are.
    sys.argv[0] = "fairseq-train"
    planned, started = planned_world_size(sys.argv), int(os.environ.get("WORLD_SIZE", "1"))
    if planned != started:
        if os.environ.get("RANK", "0") == "0":
            print(
                f"fairseq-train: error: --distributed-world-size {planned}: torchrun started {started} ranks, which "
                "would change the batch size; allowed: the same number of --devices on each machine",
                file=sys.stderr,
            )
        sys.exit(2)
    # Otherwise the rank would keep training alongside a resumed run when torchrun is killed.
    end_with_parent(signal.SIGKILL)
    from fairseq_cli import train

    import fairseq_sharing

    fairseq_sharing.register()  # --user-dir does not import the package again
    train.main = after_roll_call(train.main)
    train.cli_main()


def planned_world_size(words: Sequence[str]) -> int:
    """Read ``--distributed-world-size`` from a command line; 1 without it."""
    words = list(words)
    return int(words[words.index("--distributed-world-size") + 1]) if "--distributed-world-size" in words else 1


def after_roll_call(train: Callable[..., None]) -> Callable[..., None]:
    """Wrap a training: log all ranks, and stop if two ranks share a GPU or have different batch settings."""

    @functools.wraps(train)
    def checked(cfg: Any, **kwargs: Any) -> None:
        import torch

        rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
        gathered: list[Any] = [None] * count
        torch.distributed.all_gather_object(gathered, (_place(cfg), batch_settings(cfg)))
        places, settings = zip(*gathered, strict=True)
        if rank == 0:
            for number, (host, device, name) in enumerate(places):
                logger.info(f"rank {number}: {host}, {device}, {name}")
        check_places(places)
        check_settings(settings)
        train(cfg, **kwargs)

    return checked


def check_places(places: Sequence[tuple[str, str, str]]) -> None:
    """Reject two ranks on one GPU.

    Args:
        places: for each rank, its host, device and device name.

    Raises:
        SharingError: two ranks are on the same GPU; the error names both.
    """
    first: dict[tuple[str, str], int] = {}
    for rank, (host, device, _) in enumerate(places):
        other = first.setdefault((host, device), rank)
        if device != "cpu" and other != rank:
            raise SharingError(f"ranks {other} and {rank} are both on {device} of {host}; allowed: one rank per GPU")


def batch_settings(cfg: Any) -> dict[str, Any]:
    """Return the flags that determine the batches; each machine is started with its own."""
    return {
        "--max-tokens": cfg.dataset.max_tokens,
        "--batch-size": cfg.dataset.batch_size,
        "--required-batch-size-multiple": cfg.dataset.required_batch_size_multiple,
        "--update-freq": list(cfg.optimization.update_freq),
        "--seed": cfg.common.seed,
    }


def check_settings(settings: Sequence[dict[str, Any]]) -> None:
    """Reject ranks with different batch settings.

    Args:
        settings: flags and values of each rank.

    Raises:
        SharingError: a flag differs; the error names the flag, the rank and both values.
    """
    for rank, others in enumerate(settings):
        for flag, value in settings[0].items():
            if others[flag] != value:
                raise SharingError(
                    f"{flag} is {value} on rank 0 and {others[flag]} on rank {rank}; allowed: one value for all ranks"
                )


def _place(cfg: Any) -> tuple[str, str, str]:
    import torch

    if cfg.common.cpu or not torch.cuda.is_available():
        return socket.gethostname(), "cpu", f"{torch.get_num_threads()} threads"
    index = torch.cuda.current_device()
    return socket.gethostname(), f"cuda:{index}", torch.cuda.get_device_name(index)


if __name__ == "__main__":
    main()
