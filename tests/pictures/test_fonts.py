from pathlib import Path

import pytest
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from afactl.pictures.fonts import DEFAULT, families_for, font_file

# A character of no script, which no font has.
NOWHERE = "\U000f1234"


def characters(path):
    return set(FT2Font(str(path)).get_charmap())


@pytest.fixture(scope="module")
def lacking():
    """A character that the default font lacks and STIXGeneral, which comes with matplotlib, has."""
    stix = characters(font_manager.findfont("STIXGeneral"))
    return chr(min(stix - characters(font_manager.findfont(DEFAULT))))


def test_the_default_font_serves_where_it_can():
    assert families_for("dog, chien, собака, σκύλος") == [DEFAULT]
    assert font_file("собака") == Path(font_manager.findfont(DEFAULT))


def test_what_it_lacks_comes_from_another_font(lacking):
    first, *others = families_for(f"dog {lacking}")
    assert first == DEFAULT and len(others) == 1
    assert ord(lacking) in characters(font_manager.findfont(others[0]))
    assert {ord(letter) for letter in f"dog{lacking}"} <= characters(font_file(f"dog {lacking}"))


def test_a_character_that_no_font_has_changes_nothing():
    assert families_for(f"dog{NOWHERE}") == [DEFAULT]
    assert font_file(NOWHERE) == Path(font_manager.findfont(DEFAULT))
