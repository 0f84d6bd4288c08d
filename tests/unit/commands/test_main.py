"""The command line as a whole: versions and the order of arguments."""

from __future__ import annotations

import pytest

from fairseq_sharing.commands import main


def test_version_names_the_packages(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        *("fairseq-sharing", "fairseq-fixed", "torch", "sacrebleu")
    ]
