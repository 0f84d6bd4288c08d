"""Run the ``fairseq-sharing`` command with ``python -m fairseq_sharing``."""

import os
import signal
import sys

from fairseq_sharing.commands import main
from fairseq_sharing.training.processes import END_WITH_PARENT, end_with_parent

if parent := os.environ.pop(END_WITH_PARENT, ""):
    end_with_parent(signal.SIGTERM, int(parent))
sys.exit(main())
