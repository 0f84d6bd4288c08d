"""Save a checkpoint when training is terminated: fairseq would lose all updates since the last one."""

from __future__ import annotations

import functools
import logging
import signal
import threading

from fairseq import checkpoint_utils, trainer
from fairseq.distributed import utils as distributed

logger = logging.getLogger(__name__)
_SIGNALS = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
_received: list[int] = []


def save_when_terminated() -> None:
    """After SIGTERM or SIGINT, finish the current update, write ``checkpoint_last.pt`` and exit with 128 + signal.

    A second SIGINT interrupts at once; a second SIGTERM, which a parent may forward, is ignored. Several ranks stop as
    before: they would have to agree on an update.
    """
    stock_iterator = trainer.Trainer.get_train_iterator
    stock_step = trainer.Trainer.train_step

    @functools.wraps(stock_iterator)
    def get_train_iterator(self, *args, **kwargs):
        _listen()
        self._train_iterator = stock_iterator(self, *args, **kwargs)
        return self._train_iterator

    @functools.wraps(stock_step)
    def train_step(self, samples, raise_oom=False):
        output = stock_step(self, samples, raise_oom)
        iterator = getattr(self, "_train_iterator", None)
        # At the end of an epoch, fairseq is about to validate and save.
        if _received and iterator is not None and not iterator.end_of_epoch():
            checkpoint_utils.save_checkpoint(self.cfg.checkpoint, self, iterator, None)
            name = signal.Signals(_received[0]).name
            logger.info(f"{name}: stopped after {self.get_num_updates()} updates; restart to resume from here")
            raise SystemExit(128 + _received[0])
        return output

    trainer.Trainer.get_train_iterator = get_train_iterator
    trainer.Trainer.train_step = train_step


def _listen() -> None:
    """Take over the signals of a training of one rank, unless they have handlers."""
    if threading.current_thread() is threading.main_thread() and distributed.get_data_parallel_world_size() == 1:
        for number, default in _SIGNALS.items():
            if signal.getsignal(number) == default:
                signal.signal(number, _receive)


def _receive(number: int, frame: object) -> None:
    _received.append(number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
