"""What fairseq 0.12 gets wrong on current Python, torch and numpy, fixed for the whole process."""

from __future__ import annotations

import fairseq

from fairseq_sharing.fixes.checkpoints import mend_checkpoints, mend_meters
from fairseq_sharing.fixes.data import mend_batches_of_later_epochs, mend_batching, mend_numpy
from fairseq_sharing.fixes.distributed import mend_broadcast, mend_torchrun
from fairseq_sharing.fixes.error_messages import tell_errors_in_one_line
from fairseq_sharing.fixes.log import log_maps_for_ties, show_data_wait
from fairseq_sharing.fixes.processor import avoid_cudnn_attention, avoid_half_hidden_amx
from fairseq_sharing.fixes.search import refuse_nonfinite_search
from fairseq_sharing.fixes.trainer import mend_recomputation, mend_trainer


def apply() -> None:
    """Fix fairseq, once per process."""
    if getattr(fairseq, "_fixed_by_fairseq_sharing", False):
        return
    fairseq._fixed_by_fairseq_sharing = True
    avoid_half_hidden_amx()
    avoid_cudnn_attention()
    mend_broadcast()
    mend_numpy()
    mend_batching()
    mend_batches_of_later_epochs()
    mend_checkpoints()
    mend_meters()
    refuse_nonfinite_search()
    show_data_wait()
    mend_recomputation()
    mend_trainer()
    log_maps_for_ties()
    mend_torchrun()
    tell_errors_in_one_line()
