"""The examples in docstrings, of the mathematics and of the refiners by name: they show what comes out.

Every public function of the mathematics has one.
"""

import doctest
import importlib
import importlib.util
import inspect
import pkgutil

import pytest

import afactl.method
from afactl.inference import refiners

MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(afactl.method.__path__, "afactl.method.")
    if not module.ispkg
]
EXAMPLES = [
    pytest.param(
        example,
        id=example.name.removeprefix("afactl.method."),
        marks=pytest.mark.skipif(
            "pydensecrf" in example.name and importlib.util.find_spec("pydensecrf") is None,
            reason="the example needs the extra [crf]",
        ),
    )
    for module in (*MODULES, refiners)
    for example in doctest.DocTestFinder(exclude_empty=True).find(module)
    if example.examples
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_show_what_comes_out(example, capsys):
    failed = doctest.DocTestRunner(verbose=False).run(example).failed
    assert failed == 0, capsys.readouterr().out


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.removeprefix("afactl.method."))
def test_every_public_function_has_an_example(module):
    functions = [
        function
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    ]
    assert [function.__name__ for function in functions if ">>>" not in (inspect.getdoc(function) or "")] == []
