"""``python -m fairseq_sharing`` is the command ``fairseq-sharing``."""

import sys

from fairseq_sharing.commands import main

sys.exit(main())
