"""Run the ``fairseq-sharing`` command with ``python -m fairseq_sharing``."""

import sys

from fairseq_sharing.commands import main

sys.exit(main())
