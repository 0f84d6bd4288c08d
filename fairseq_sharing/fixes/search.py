"""Validation of search options that fairseq accepts unchecked."""

from __future__ import annotations

import functools

from fairseq.tasks import FairseqTask
from omegaconf import DictConfig

from fairseq_sharing.errors import SharingError
from fairseq_sharing.finite import find_nonfinite
from fairseq_sharing.options import flag_of


def refuse_nonfinite_search() -> None:
    """Reject NaN and infinity in search options such as --lenpen, with which the best hypothesis is arbitrary."""
    stock = FairseqTask.build_generator

    @functools.wraps(stock)
    def build_generator(self, models, args, *more, **named):
        nonfinite = find_nonfinite(dict(args) if isinstance(args, DictConfig) else vars(args))
        if nonfinite is not None:
            name, _, value = nonfinite.partition(": ")
            raise SharingError(f"{flag_of(name)} must be a finite number, got {value}")
        return stock(self, models, args, *more, **named)

    FairseqTask.build_generator = build_generator
