"""Process-wide fixes for fairseq 0.12 with current versions of Python, torch and numpy."""

from __future__ import annotations

import fairseq

from fairseq_sharing.depths.losses import add_losses_of_depths
from fairseq_sharing.fixes.checkpoints import fix_checkpoints, fix_meters
from fairseq_sharing.fixes.data import fix_batches_of_later_epochs, fix_batching, fix_numpy, refuse_unfinished_data
from fairseq_sharing.fixes.distributed import fix_broadcast, fix_torchrun
from fairseq_sharing.fixes.ema import fix_ema
from fairseq_sharing.fixes.error_messages import print_errors_on_one_line
from fairseq_sharing.fixes.log import log_maps_for_ties, show_data_wait
from fairseq_sharing.fixes.processor import avoid_cudnn_attention, avoid_unusable_amx
from fairseq_sharing.fixes.search import refuse_nonfinite_search
from fairseq_sharing.fixes.stock_options import (
    fix_combined_subsets,
    fix_valid_subsets,
    refuse_broken_flags,
    refuse_skipped_blocks,
)
from fairseq_sharing.fixes.termination import save_when_terminated
from fairseq_sharing.fixes.trainer import fix_recomputation, fix_trainer


def apply() -> None:
    """Apply all fixes, once per process."""
    if getattr(fairseq, "_fixed_by_fairseq_sharing", False):
        return
    fairseq._fixed_by_fairseq_sharing = True
    avoid_unusable_amx()
    avoid_cudnn_attention()
    fix_broadcast()
    fix_numpy()
    fix_batching()
    fix_batches_of_later_epochs()
    refuse_unfinished_data()
    fix_checkpoints()
    fix_meters()
    fix_ema()
    refuse_nonfinite_search()
    fix_valid_subsets()
    fix_combined_subsets()
    refuse_broken_flags()
    refuse_skipped_blocks()
    show_data_wait()
    fix_recomputation()
    fix_trainer()
    add_losses_of_depths()
    save_when_terminated()
    log_maps_for_ties()
    fix_torchrun()
    print_errors_on_one_line()
