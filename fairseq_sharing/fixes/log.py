"""Additional training logs: the time spent waiting for data, and the layer map of each stack."""

from __future__ import annotations

import functools
import re
import time

from fairseq import trainer
from fairseq.data import iterators
from fairseq.logging import metrics

from fairseq_sharing.layer_map import format_component, format_map, num_unique


def show_data_wait() -> None:
    """Log the seconds per epoch that training waits for its next batches, as ``data_wait``."""
    stock = iterators.GroupedIterator.__next__

    def __next__(self):
        began = time.perf_counter()
        batches = stock(self)
        metrics.log_scalar_sum("data_wait", time.perf_counter() - began, priority=950, round=2)
        return batches

    iterators.GroupedIterator.__next__ = __next__


def log_maps_for_ties() -> None:
    """Log one line per stack instead of one per tied parameter (1,764 lines with 6 sets in 48 layers)."""
    stock = trainer._catalog_shared_params

    @functools.wraps(stock)
    def catalog(module, memo=None, prefix=""):
        for stack, sharing in getattr(module, "sharing", {}).items() if memo is None else ():
            drawn, sets = format_map(sharing.layer_map), num_unique(sharing.layer_map)
            scope = "" if sharing.components or sharing.scope == ("layer",) else f" ({','.join(sharing.scope)})"
            trainer.logger.info(
                "%s: %d layers, %d parameter sets%s: %s", stack, len(sharing.layer_map), sets, scope, drawn
            )
            for component in sharing.components:
                trainer.logger.info("%s: %s", stack, format_component(component))
        return stock(module, memo, prefix)

    trainer._catalog_shared_params = catalog
    tied = re.compile(r"detected shared parameter: \S*\blayers\.\d")
    trainer.logger.addFilter(lambda record: not tied.match(str(record.msg)))
