"""fairseq-sharing: parameter sharing across Transformer layers, as a fairseq plugin."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from fairseq_sharing.registration import call_after_imports

if TYPE_CHECKING:
    from fairseq_sharing.decoding.translator import Translator as Translator

__version__ = "0.1.0"


def register() -> None:
    """Register models, criterions, optimizers and tasks with fairseq, and fix fairseq for current dependencies."""
    from fairseq_sharing import fixes
    from fairseq_sharing.distillation import word_level  # noqa: F401
    from fairseq_sharing.fast import (
        fused_adam,  # noqa: F401
        fused_label_smoothed_cross_entropy,  # noqa: F401
    )
    from fairseq_sharing.models import roberta_sharing, transformer_lm_sharing, transformer_sharing  # noqa: F401
    from fairseq_sharing.models.shared_stack import SharingModel
    from fairseq_sharing.moeut import (
        moe_cross_entropy,  # noqa: F401
        transformer_lm_moeut,  # noqa: F401
        transformer_moeut,  # noqa: F401
    )
    from fairseq_sharing.schedules import tasks as sharing_tasks  # noqa: F401
    from fairseq_sharing.universal import ponder  # noqa: F401

    SharingModel.open_run = staticmethod(_open_run)
    fixes.apply()


def _open_run(*arguments: Any) -> Any:
    from fairseq_sharing.decoding.text_hub import from_pretrained

    return from_pretrained(*arguments)


def __getattr__(name: str) -> Any:
    """Import ``Translator`` on first use, so that importing the package needs neither fairseq nor torch."""
    if name == "Translator":
        from fairseq_sharing.decoding.translator import Translator

        return Translator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# On import, fairseq advises to install tensorboardX, which its text tasks and this package do not use.
logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.WARNING)
# Do not import fairseq here: fairseq-sharing --help must need neither fairseq nor torch.
call_after_imports(register)
