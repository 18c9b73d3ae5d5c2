"""Names of things, and what stands behind them: built in, registered by a program, or brought by a package."""

import sys

import pytest

from afactl import registry
from afactl.errors import DependencyError, PresetError, UsageError
from afactl.registry import Registry


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes a package with one module and entry points importable, as an installation does."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name, module, **points):
        (tmp_path / f"{name}.py").write_text(module)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{point} = {name}:{value}" for point, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[afactl.things]", *lines]) + "\n")
        registry.installed.cache_clear()

    yield make
    registry.installed.cache_clear()
    for name in [name for name in sys.modules if name.startswith("tiny")]:
        del sys.modules[name]


@pytest.fixture
def things():
    return Registry("model.thing", "afactl.things", {"square": "math:sqrt", "cosine": "math:cos"})


def test_built_in_things_are_imported_when_they_are_asked_for(things):
    import math

    assert things.names() == ["square", "cosine"] and things.get("cosine") is math.cos
    later = Registry("model.thing", "afactl.things", {"x": "no_such_module:x"})
    assert later.names() == ["x"]
    with pytest.raises(DependencyError, match='model.thing: "x" of afactl itself cannot be imported'):
        later.get("x")


def test_a_program_registers_things_of_its_own(things):
    thing = object()
    things.register("mine", thing)
    assert things.get("mine") is thing and things.names() == ["square", "cosine", "mine"]


def test_a_name_is_given_once(things, package):
    things.register("mine", 1)
    with pytest.raises(
        UsageError, match='model.thing: "mine" is taken by this program; register it under another name'
    ):
        things.register("mine", 1)
    with pytest.raises(UsageError, match='"square" is taken by afactl itself'):
        things.register("square", 1)
    package("tiny_a", "thing = 3", theirs="thing")
    with pytest.raises(UsageError, match='"theirs" is taken by the package tiny_a'):
        things.register("theirs", 1)
    assert things.get("mine") == 1


def test_an_unknown_name_offers_the_nearest(things, package):
    with pytest.raises(PresetError, match='model.thing: "sqare" is unknown; did you mean "square"'):
        things.get("sqare")
    package("tiny_a", "thing = 3", hexagon="thing")
    with pytest.raises(PresetError, match='did you mean "hexagon"'):
        things.get("hexagn")
    with pytest.raises(PresetError, match="known: square, cosine, hexagon"):
        things.get("zzz")


def test_packages_bring_things_by_entry_points(things, package):
    package("tiny_a", "class Thing: pass", b="Thing", a="Thing.__name__")
    assert things.names() == ["square", "cosine", "a", "b"] and "tiny_a" not in sys.modules
    assert things.get("a") == "Thing" and things.get("b").__module__ == "tiny_a"


def test_two_packages_with_one_name_are_named_and_the_others_work(things, package):
    package("tiny_a", "thing = 1", same="thing", own="thing")
    package("tiny_b", "thing = 2", same="thing", cosine="thing")
    assert things.names() == ["square", "cosine", "own", "same"] and things.get("own") == 1
    with pytest.raises(
        UsageError, match='"same" is brought by the package tiny_. and the package tiny_.; uninstall one'
    ):
        things.get("same")
    with pytest.raises(UsageError, match='"cosine" is brought by afactl itself and the package tiny_b'):
        things.get("cosine")


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise RuntimeError('first\\nsecond')", r"RuntimeError: first\)"),
        ("def f(:", "SyntaxError"),
        ("", "AttributeError: .*thing"),
    ],
)
def test_a_package_that_cannot_be_imported_is_named(things, package, module, reason):
    package("tiny_a", module, broken="thing")
    assert "broken" in things.names() and things.get("cosine")
    with pytest.raises(
        DependencyError, match=f'model.thing: "broken" of the package tiny_a cannot be imported .{reason}'
    ):
        things.get("broken")


def test_an_entry_of_the_wrong_kind_is_named(things, package):
    package("tiny_a", "class Thing: pass", a="Thing")
    error = things.strange("a", things.get("a"), "a number")
    assert str(error) == 'model.thing: "a" of the package tiny_a is the class Thing; expected a number'
    things.register("b", [])
    assert "of this program is a list" in str(things.strange("b", [], "a number"))
