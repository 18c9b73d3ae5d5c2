import argparse
import re

import pytest
import torch
from safetensors.torch import save_file

from afactl.errors import CheckpointError, UsageError
from afactl.network.model import AFA
from afactl.runs.foreign_weights import (
    from_authors,
    from_imagenet,
    read_state,
    to_authors,
    translate,
)
from afactl.runs.starting_weights import initialize
from tests import golden
from tests.runs.test_hugging_face import hugging_face_state


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return AFA("mit_demo", 3, decoder_width=8)


@pytest.mark.parametrize("backbone", ["mit_b0", "mit_b1"])
def test_the_authors_names_fit_exactly(backbone):
    names = golden.table(f"state_{backbone}")
    state = golden.formula_weights(backbone)
    assert set(state) == set(names)
    model = AFA(backbone, 20)
    model.load_state_dict(from_authors({f"module.{name}": value for name, value in state.items()}))
    assert torch.equal(model.affinity_head.weight, state["attn_proj.weight"].flatten())
    given_back = to_authors(model.state_dict())
    assert {name: list(value.shape) for name, value in given_back.items()} == names
    assert all(torch.equal(given_back[name], value) for name, value in state.items())
    assert torch.equal(model.decoder.project[3].weight[:, :, 0, 0], state["decoder.linear_c4.proj.weight"])


def test_an_unknown_part_is_named():
    with pytest.raises(CheckpointError, match="extra.weight is no part"):
        from_authors({"extra.weight": torch.zeros(1)})


def test_published_weights_lose_their_head(network):
    state = {**network.backbone.state_dict(), "head.weight": torch.zeros(1), "head.bias": torch.zeros(1)}
    mapped = from_imagenet(state)
    assert set(mapped) == {f"backbone.{name}" for name in network.backbone.state_dict()}


def mmseg_state(backbone):
    """The backbone's weights as mmsegmentation has them, beside a head."""
    state = {"decode_head.conv_seg.weight": torch.zeros(3)}
    ours = backbone.state_dict()
    parts = {"attn.proj": "attn.attn.out_proj", "mlp.fc1": "ffn.layers.0", "mlp.dwconv.dwconv": "ffn.layers.1"}
    parts |= {"mlp.fc2": "ffn.layers.4"}
    for name, value in ours.items():
        stage, rest = int(re.search(r"\d", name)[0]) - 1, name.split(".", 1)[1]
        if name.startswith("patch_embed"):
            state[f"backbone.layers.{stage}.0.{rest.replace('proj.', 'projection.')}"] = value
        elif name.startswith("norm"):
            state[f"backbone.layers.{stage}.2.{rest}"] = value
        elif ".attn.q." in name:
            both = torch.cat([value, ours[name.replace(".q.", ".kv.")]])
            state[f"backbone.layers.{stage}.1.{rest.replace('attn.q.', 'attn.attn.in_proj_')}"] = both
        elif ".attn.kv." not in name:
            block, _, part = rest.partition(".")
            part, _, kind = part.rpartition(".")
            value = value[:, :, None, None] if part in ("mlp.fc1", "mlp.fc2") and kind == "weight" else value
            state[f"backbone.layers.{stage}.1.{block}.{parts.get(part, part)}.{kind}"] = value
    return state


@pytest.mark.parametrize("alone", [False, True])
def test_weights_of_mmsegmentation_are_taken_whole(network, alone):
    state = mmseg_state(network.backbone)
    if alone:
        state = {name.removeprefix("backbone."): value for name, value in state.items() if "head" not in name}
    mapped = translate(state, "x").state
    ours = network.backbone.state_dict()
    assert mapped.keys() == {f"backbone.{name}" for name in ours}
    assert all(torch.equal(mapped[f"backbone.{name}"], value) for name, value in ours.items())
    other = AFA("mit_demo", 3, decoder_width=8)
    other.backbone.load_state_dict({name.removeprefix("backbone."): value for name, value in mapped.items()})
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(other.eval()(image).features[-1], network.eval()(image).features[-1])
    state["layers.0.1.0.attn.gate.weight" if alone else "backbone.layers.0.1.0.attn.gate.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match="attn.gate.weight belongs to no part of a MiT"):
        translate(state, "x")


def test_formats_are_told_apart(network):
    ours = network.state_dict()
    assert translate(ours, "x").state.keys() == ours.keys()
    found = translate(hugging_face_state(network.backbone), "x")
    assert set(found.state) == {n for n in ours if n.startswith("backbone.")} and found.left == ["classifier.weight"]
    with pytest.raises(CheckpointError, match="x: expected MiT weights .* got names such as conv.weight"):
        translate({"conv.weight": torch.zeros(1)}, "x")


def test_files_of_both_kinds_and_their_wrappers_are_read(tmp_path):
    state = {"a": torch.ones(2)}
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "wrapped.pth")
    for name in ("w.safetensors", "plain.pth", "wrapped.pth"):
        assert torch.equal(read_state(tmp_path / name)["a"], state["a"]), name


class Malicious:
    def __reduce__(self):
        return (eval, ("open('/tmp/afactl-was-here', 'w')",))


def test_code_in_a_file_is_never_run(tmp_path):
    torch.save({"a": Malicious()}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match="bad.pth: cannot be read as weights"):
        read_state(tmp_path / "bad.pth")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut off"])
def test_damaged_files_are_named(tmp_path, content):
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name}: cannot be read as weights"):
            read_state(tmp_path / name)
    with pytest.raises(UsageError, match="no such weights file; give --init FILE, or --init none"):
        read_state(tmp_path / "missing.pth")


def backbone_equal(init, network):
    torch.manual_seed(1)
    model = AFA("mit_demo", 3, decoder_width=8)
    said = initialize(model, str(init))
    state = model.backbone.state_dict()
    assert all(torch.equal(state[name], value) for name, value in network.backbone.state_dict().items())
    return said


def whole_segformer(network):
    """A whole checkpoint of SegFormer or mmsegmentation: our names of the backbone, a head of its own."""
    heads = {"decode_head.linear_c1.proj.weight": torch.zeros(4, 4), "decode_head.conv_seg.bias": torch.zeros(4)}
    return {**{f"backbone.{name}": value for name, value in network.backbone.state_dict().items()}, **heads}


@pytest.mark.parametrize("wrapping", ["", "module.", "module.model.", "_orig_mod.module."])
def test_every_format_is_read_behind_any_wrapping(tmp_path, network, wrapping):
    plain = network.backbone.state_dict()
    forms = {
        "imagenet": {**plain, "head.weight": torch.zeros(1)},
        "hugging face": hugging_face_state(network.backbone),
        "mmsegmentation": mmseg_state(network.backbone),
        "hugging face, encoder alone": {
            name.removeprefix("segformer."): value
            for name, value in hugging_face_state(network.backbone).items()
            if name.startswith("segformer.")
        },
        "segformer": whole_segformer(network),
        "ours": dict(network.state_dict()),
    }
    for name, state in forms.items():
        wrapped = {wrapping + key: value for key, value in state.items()}
        torch.save(wrapped, tmp_path / "w.pth")
        said = backbone_equal(tmp_path / "w.pth", network)
        assert said.startswith("all weights" if name == "ours" else "backbone from"), name
        left = {"imagenet": 1, "hugging face": 1, "segformer": 2}.get(name)
        assert left is None or f" {left} left (" in said, f"{name}: nothing is passed over silently"


@pytest.mark.parametrize(
    "holders",
    [["state_dict"], ["model_state_dict"], ["model", "state_dict"], ["net"], ["weights"], ["module", "model"]],
)
def test_weights_are_found_in_what_trainers_put_around_them(tmp_path, network, holders):
    content = dict(network.backbone.state_dict())
    for holder in reversed(holders):
        content = {"epoch": 3, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=0.1), holder: content}
    torch.save(content, tmp_path / "w.pth")
    assert backbone_equal(tmp_path / "w.pth", network).startswith("backbone from")


def test_what_makes_no_other_architecture_is_left_out_and_said(tmp_path, network):
    state = {**network.state_dict(), "pixel_mean": torch.zeros(3), "backbone.position_ids": torch.arange(4)}
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    assert counters
    for name in counters:
        del state[name]
    torch.save(state, tmp_path / "w.pth")
    said = backbone_equal(tmp_path / "w.pth", network)
    taken = len(network.state_dict()) - len(counters)
    assert said.endswith(f": {taken} tensors taken, 2 left (pixel_mean, backbone.position_ids)")
    torch.save({**state, "backbone.block1.9.attn.q.weight": torch.zeros(2, 2)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="another architecture.*block1.9.attn.q.weight is not known"):
        backbone_equal(tmp_path / "w.pth", network)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_numbers_in_a_file_are_named_before_training(tmp_path, network, value):
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state["decoder.predict.bias"][1] = value
    torch.save(state, tmp_path / "w.pth")
    message = r"w.pth: 1 of \d+ tensors hold NaN or infinite values \(first: decoder.predict.bias\)"
    with pytest.raises(CheckpointError, match=message):
        initialize(AFA("mit_demo", 3, decoder_width=8), str(tmp_path / "w.pth"))


class Thing:
    """A class that nobody else knows."""


def test_other_objects_are_named_in_one_true_line(tmp_path, network):
    torch.save({"model": network.state_dict(), "config": Thing()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError) as caught:
        read_state(tmp_path / "w.pth")
    text = str(caught.value)
    assert "it holds an object of tests.runs.test_foreign_weights.Thing, which is code" in text
    assert "torch.save(model.state_dict(), FILE)" in text and "\x1b" not in text and "weights_only" not in text
    (tmp_path / "t.pth").write_bytes(b"text")
    with pytest.raises(CheckpointError, match="no PyTorch file, or damaged"):
        read_state(tmp_path / "t.pth")
