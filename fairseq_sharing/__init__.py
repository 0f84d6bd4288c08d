"""fairseq-sharing: parameter sharing across Transformer layers, as a fairseq plugin."""

from __future__ import annotations

import sys

__version__ = "0.1.0"


def register() -> None:
    """Register the models with fairseq, and mend fairseq on current Python, torch and numpy."""
    from fairseq_sharing import compat  # noqa: F401
    from fairseq_sharing.criterions import moe_cross_entropy  # noqa: F401
    from fairseq_sharing.models import (  # noqa: F401
        transformer_lm_moeut,
        transformer_lm_sharing,
        transformer_moeut,
        transformer_sharing,
    )


# --user-dir imports this package when fairseq is there already. The command fairseq-sharing imports it without, so
# that its --help needs neither fairseq nor torch.
if "fairseq" in sys.modules:
    register()
