"""The examples in the docstrings of the mathematics: every public function has one, and it shows what comes out."""

import doctest
import importlib
import pkgutil

import pytest

import afactl.method

MODULES = [
    importlib.import_module(found.name)
    for found in pkgutil.walk_packages(afactl.method.__path__, "afactl.method.")
    if not found.ispkg
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.removeprefix("afactl.method."))
def test_the_examples_show_what_comes_out(module):
    assert doctest.testmod(module, verbose=False).failed == 0
