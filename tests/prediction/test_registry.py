"""Every form has a writer behind its name, and the names cost nothing."""

import subprocess
import sys

import pytest

from afactl.prediction.registry import WRITERS
from afactl.prediction.writers import Writer, writer_class


@pytest.mark.parametrize("form", WRITERS.names())
def test_every_form_has_a_writer(form):
    assert issubclass(writer_class(form), Writer)


def test_the_names_need_no_torch():
    code = "import sys; from afactl.prediction.registry import WRITERS; WRITERS.names(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
