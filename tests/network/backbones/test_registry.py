"""Backbones by name."""

import pytest

from afactl.errors import PresetError, UsageError
from afactl.network.backbones import BACKBONES, Backbone, build_backbone, register


@pytest.fixture
def fresh(monkeypatch):
    monkeypatch.setattr(BACKBONES, "_registered", {})


@pytest.mark.parametrize("name", BACKBONES.names())
def test_every_name_builds_a_backbone(name):
    assert isinstance(build_backbone(name, 0.1), Backbone)


def test_a_name_is_given_once(fresh):
    register("mine", lambda drop_path: build_backbone("mit_demo", drop_path))
    assert build_backbone("mine", 0.0).strides == (4, 8, 16, 16)
    with pytest.raises(UsageError, match='model.backbone: "mine" is taken by this program'):
        register("mine", list)
    with pytest.raises(UsageError, match='model.backbone: "mit_b1" is taken by afactl itself'):
        register("mit_b1", list)


def test_what_is_no_backbone_is_refused(fresh):
    register("odd", lambda drop_path: drop_path)
    with pytest.raises(PresetError, match='"odd" is a float, expected a subclass of'):
        build_backbone("odd", 0.1)
    register("text", "no builder")
    with pytest.raises(PresetError, match='model.backbone: "text" of this program is a str; expected a subclass of'):
        build_backbone("text", 0.1)
    with pytest.raises(PresetError, match='model.backbone: "mit_b9" is unknown; did you mean "mit_b'):
        build_backbone("mit_b9", 0.1)
