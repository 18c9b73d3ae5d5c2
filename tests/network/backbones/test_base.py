"""The contract of a backbone: what it says of itself holds, and everything after it follows its stride."""

import math

import h5py
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from afactl.cli.main import main
from afactl.datasets.images import read_image
from afactl.datasets.masks import read_mask
from afactl.errors import PresetError, ShapeError
from afactl.network.backbones import (
    Backbone,
    BackboneOutput,
    build_backbone,
    register,
    require_whole_tokens,
    smaller_crop,
)
from afactl.network.backbones.base import require_sound
from tests.conftest import TINY


class Plain(Backbone):
    """A patch embedding and one attention block of two heads; one map at one stride, sides rounded up by padding."""

    attention_layers, attention_heads = 1, 2

    def __init__(self, stride, drop_path=0.0):
        super().__init__()
        self.out_channels, self.strides = (16,), (stride,)
        self.patches = nn.Conv2d(3, 16, stride, stride)
        self.attention = nn.Linear(16, 48)

    def forward(self, image):
        rows, columns = image.shape[2:]
        padded = nn.functional.pad(image, (0, -columns % self.stride, 0, -rows % self.stride))
        features = self.patches(padded)
        tokens = features.flatten(2).transpose(1, 2)
        queries, keys, values = self.attention(tokens).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)
        return BackboneOutput(((tokens + mixed).transpose(1, 2).unflatten(2, features.shape[2:]),), queries, keys)


@pytest.fixture(scope="module", autouse=True)
def plain_backbones():
    for stride in (8, 14):
        register(f"plain_{stride}", lambda drop_path, stride=stride: Plain(stride, drop_path))


def call(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return stopped.value.code or 0


@pytest.mark.parametrize(("stride", "crop"), [(8, 64), (14, 56)])
def test_a_backbone_of_any_stride_trains_scores_and_draws(stride, crop, tmp_path, tiny_data, capsys):
    """All three phases; photos of 64 pixels, which 14 does not divide."""
    run = tmp_path / "run"
    sets = [*TINY, f"model.backbone=plain_{stride}", f"train.crop_size={crop}", "affinity.radius=2"]
    sets = [part for override in sets for part in ("--set", override)]
    assert call("train", "demo", "--data", tiny_data, "--out", run, "--device", "cpu", *sets) == 0
    lines = (run / "metrics.jsonl").read_text()
    assert all(phase in lines for phase in ("classification", "refined labels", "propagated labels"))
    assert "loss_aff" in lines and "NaN" not in lines
    assert call("dump-cams", "--split", "val", "--run", run, "--device", "cpu") == 0
    cells = math.ceil(96 / stride)  # the demo keeps the affinity of scale 1.5
    with h5py.File(run / "cache" / "cams-val.h5") as cache:
        for record in cache["images"].values():
            assert record["affinity"].shape[:2] == record["attention"].shape[:2] == (cells, cells)
    photo = tiny_data / "images/val/0001.png"
    assert call("pseudo-eval", "--split", "val", "--run", run) == 0
    assert call("eval", "--split", "val", "--run", run) == 0
    assert call("viz-attn", photo, "--query", "63,63", "--run", run, "--layer", "1", "--head", "2") == 0
    assert call("viz-cams", photo, "--run", run) == 0
    assert call("viz-heads", "--run", run) == 0
    assert call("predict", photo, "--run", run, "--out", tmp_path / "masks") == 0
    assert read_mask(tmp_path / "masks" / "0001.png", 6).shape == read_image(photo).shape[:2]
    again = [*sets, "--set", "train.max_iters=1", "--init", run / "checkpoints/last/weights.safetensors"]
    assert call("train", "demo", "--data", tiny_data, "--out", tmp_path / "again", "--device", "cpu", *again) == 0
    assert "all weights from" in capsys.readouterr().err


def test_every_part_learns_at_a_stride_of_its_own(tmp_path, tiny_data):
    """The gradient of the last phase reaches the backbone, the affinity head and the decoder."""
    from afactl.method.schedule import Phase
    from afactl.network.model import AFA
    from afactl.presets import load_preset
    from afactl.training.step import training_losses

    model = AFA("plain_14", 6, decoder_width=16)
    preset = load_preset("demo", [*TINY, "cam.scales=[1.0, 0.5]", "affinity.scale=1.0"])
    image = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8)
    label = torch.eye(6)[:2]
    box = torch.tensor([[0, 56, 0, 56]] * 2)
    losses = training_losses(model, image, label, box, Phase.PROPAGATED, preset)
    sum(losses.values()).backward()
    assert set(losses) >= {"cls", "aff", "seg"}
    # A bias added to all queries alike moves no softmax; everything else has a gradient.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.backbone.attention.weight.grad.abs().sum() > 0 and model.affinity_head.weight.grad.abs().sum() > 0


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([8, 14]))
def test_the_grid_of_a_pass_is_what_the_stride_says(height, width, stride):
    backbone = build_backbone(f"plain_{stride}", 0.0)
    grid = backbone(torch.zeros(1, 3, height, width)).grid
    assert backbone.stride == stride and grid == (math.ceil(height / stride), math.ceil(width / stride))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 120), st.integers(1, 120))
def test_the_grid_of_mit_is_what_its_strides_say(height, width):
    backbone = build_backbone("mit_demo", 0.0).eval()
    with torch.no_grad():
        output = backbone(torch.zeros(1, 3, height, width))
    for features, stride in zip(output.features, (4, 8, 16, 16), strict=True):
        assert tuple(features.shape[2:]) == (math.ceil(height / stride), math.ceil(width / stride))


def broken(change):
    """A backbone of stride 8 whose output is changed."""

    class Broken(Plain):
        def forward(self, image):
            return change(super().forward(image))

    return Broken(8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: out._replace(features=(out.features[0], out.features[0])), "expected 1 maps .* got 2"),
        (
            lambda out: out._replace(features=(out.features[0][..., 1:],)),
            "1 x 16 x 4 x 5 at stride 8 of 32 x 40 pixels",
        ),
        (lambda out: out._replace(features=(out.features[0][:, 1:],)), "expected a map of 1 x 16"),
        (lambda out: out._replace(queries=out.queries[:, 1:]), "expected queries of 1 x 2 x 20"),
        (lambda out: out._replace(keys=nn.functional.pad(out.keys, (0, 0, 1, 0))), "keys .* no class token"),
    ],
    ids=["maps", "stride", "channels", "heads", "class token"],
)
def test_an_output_that_breaks_the_contract_is_named(change, message):
    with pytest.raises(ShapeError, match=f"Broken: .*{message}"):
        broken(change)(torch.zeros(1, 3, 32, 40))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"strides": (8, 16)}, "one of each per stage"),
        ({"strides": (7.5,)}, "a whole number"),
        ({"strides": (16, 8), "out_channels": (16, 16)}, "finest first"),
        ({"strides": (), "out_channels": ()}, "one of each per stage"),
        ({"attention_layers": 0}, "at least one layer"),
        ({"attention_heads": 3, "attention_layers": 2}, "as many heads in each"),
    ],
)
def test_attributes_that_contradict_each_other_are_refused(attributes, message):
    backbone = Plain(8)
    for name, value in attributes.items():
        setattr(backbone, name, value)
    with pytest.raises(PresetError, match=message):
        require_sound(backbone, "mine")


def test_what_a_backbone_does_not_say_is_named():
    backbone = Plain(8)
    del backbone.out_channels
    with pytest.raises(PresetError, match="does not say its out_channels"):
        require_sound(backbone, "mine")
    with pytest.raises(PresetError, match="is a Conv2d, expected a subclass of"):
        require_sound(nn.Conv2d(3, 3, 1), "mine")


@pytest.mark.parametrize(("crop", "advice"), [(64, "take 56 or 70"), (13, "take 14")])
def test_a_view_that_cuts_tokens_is_refused(crop, advice):
    require_whole_tokens(Plain(14), 56)
    with pytest.raises(PresetError, match=f"multiple of the backbone's stride of 14 pixels, got {crop}; {advice}"):
        require_whole_tokens(Plain(14), crop)


@pytest.mark.parametrize(("stride", "crop", "half"), [(16, 512, 256), (16, 48, 32), (14, 518, 252), (14, 56, 42)])
def test_half_a_view_is_of_whole_tokens(stride, crop, half):
    assert smaller_crop(Plain(stride), crop) == half


def test_training_refuses_such_a_view_before_it_writes_anything(tmp_path, tiny_data, capsys):
    sets = [part for override in (*TINY, "train.crop_size=100") for part in ("--set", override)]
    assert call("train", "demo", "--data", tiny_data, "--out", tmp_path / "run", *sets) == 2
    assert "take 96 or 112" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_map_may_have_a_stride_that_is_no_whole_number():
    """A pyramid over patches of 14 pixels has maps at 3.5 and 7."""

    class Pyramid(Plain):
        def __init__(self):
            super().__init__(14)
            self.out_channels, self.strides = (16, 16), (3.5, 14)

        def forward(self, image):
            out = super().forward(image)
            fine = nn.functional.interpolate(out.features[0], scale_factor=4)
            return out._replace(features=(fine, *out.features))

    output = require_sound(Pyramid(), "pyramid")(torch.zeros(1, 3, 28, 42))
    assert output.features[0].shape[2:] == (8, 12) and output.grid == (2, 3)
