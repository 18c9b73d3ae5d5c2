"""What the tests of commands share: calling one in this process, and what a refusal looks like."""

import pytest

from afactl.cli.main import main
from tests.conftest import TINY

SETS = [part for override in TINY for part in ("--set", override)]


@pytest.fixture
def call(capsys):
    """Runs a command in this process: (exit code, standard output, standard error)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return run


def refused(result, code, *parts):
    """One line on the standard error, with the right exit code, holding the parts."""
    found, _, err = result
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert found == code and len(lines) == 1, err
    assert "Traceback" not in err
    for part in parts:
        assert part in lines[0], lines[0]
