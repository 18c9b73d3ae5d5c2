"""SegFormer as Hugging Face has it: its names both ways, and the folder that its own library loads."""

import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from afactl.datasets.transforms import normalize
from afactl.errors import CheckpointError, UsageError
from afactl.network.model import AFA
from afactl.runs.checkpoints import Architecture, export_weights, save_checkpoint
from afactl.runs.foreign_weights import translate
from afactl.runs.hugging_face import configuration, fetch_hugging_face, from_hugging_face, to_hugging_face
from afactl.runs.starting_weights import initialize

TO_HUGGING_FACE = [
    (r"^patch_embed(\d)\.norm\.", lambda m: f"patch_embeddings.{int(m[1]) - 1}.layer_norm."),
    (r"^patch_embed(\d)\.", lambda m: f"patch_embeddings.{int(m[1]) - 1}."),
    (r"^norm(\d)\.", lambda m: f"layer_norm.{int(m[1]) - 1}."),
    (r"^block(\d)\.", lambda m: f"block.{int(m[1]) - 1}."),
    (r"attn\.q\.", "attention.self.query."),
    (r"attn\.sr\.", "attention.self.sr."),
    (r"attn\.norm\.", "attention.self.layer_norm."),
    (r"attn\.proj\.", "attention.output.dense."),
    (r"\.norm1\.", ".layer_norm_1."),
    (r"\.norm2\.", ".layer_norm_2."),
    (r"mlp\.fc1\.", "mlp.dense1."),
    (r"mlp\.fc2\.", "mlp.dense2."),
    (r"mlp\.dwconv\.dwconv\.", "mlp.dwconv.dwconv."),
]
ARCHITECTURE = Architecture("mit_demo", ("cat", "dog", "bird"), "gmp", 8, 0.1)


@pytest.fixture(scope="module")
def network():
    """With statistics of the batch norm that are not those of the start."""
    torch.manual_seed(0)
    network = ARCHITECTURE.build()
    with torch.no_grad():
        network.decoder.norm.running_mean.normal_()
        network.decoder.norm.running_var.uniform_(0.5, 2)
    return network.eval()


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    """The network as `export --format hf` writes it."""
    place = tmp_path_factory.mktemp("hf")
    save_checkpoint(place / "last", network, None, 7, ARCHITECTURE)
    export_weights(place / "last", place / "out", "hf")
    return place / "out"


def hugging_face_state(backbone):
    """The backbone's weights under Hugging Face's names, with keys and values apart."""
    state = {"classifier.weight": torch.zeros(10, 160)}
    for name, value in backbone.state_dict().items():
        for pattern, theirs in TO_HUGGING_FACE:
            name = re.sub(pattern, theirs, name)
        name = f"segformer.encoder.{name}"
        if "attn.kv." in name:
            key, val = value.chunk(2)
            state[name.replace("attn.kv.", "attention.self.key.")] = key
            state[name.replace("attn.kv.", "attention.self.value.")] = val
        else:
            state[name] = value
    return state


def test_hugging_face_weights_give_the_same_features(network):
    other = AFA("mit_demo", 3, decoder_width=8)
    mapped = from_hugging_face(hugging_face_state(network.backbone))
    other.backbone.load_state_dict({name.removeprefix("backbone."): value for name, value in mapped.items()})
    image = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(network.eval().backbone(image).features[3], other.eval().backbone(image).features[3])


def test_half_of_a_pair_is_named(network):
    state = hugging_face_state(network.backbone)
    del state["segformer.encoder.block.0.0.attention.self.key.weight"]
    with pytest.raises(CheckpointError, match="block1.0.attn.kv.weight needs both key and value, got value"):
        from_hugging_face(state)


def test_names_come_back(network):
    state = network.state_dict()
    theirs = to_hugging_face(state)
    assert {name for name in theirs if not name.startswith("decode_head.")} == set(
        hugging_face_state(network.backbone)
    ) - {"classifier.weight"}
    back = from_hugging_face(theirs)
    assert set(back) == {name for name in state if name.startswith(("backbone.", "decoder."))}
    assert all(torch.equal(value, state[name]) for name, value in back.items())
    with pytest.raises(CheckpointError, match="decode_head.extra.weight belongs to no part of SegFormer's decoder"):
        translate({**theirs, "decode_head.extra.weight": torch.zeros(1)}, "x")


def test_their_own_library_segments_alike(network, folder):
    """The stock class expresses the last stride of 1; its norms have an eps of 1e-5 where MiT's have 1e-6."""
    transformers = pytest.importorskip("transformers", reason="needs transformers, which make test installs")
    theirs, told = transformers.SegformerForSemanticSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    assert theirs.config.id2label == {0: "background", 1: "cat", 2: "dog", 3: "bird"}
    photo = np.random.default_rng(0).integers(0, 256, (70, 98, 3), np.uint8)
    pixels = transformers.SegformerImageProcessor.from_pretrained(folder)(photo, return_tensors="pt")["pixel_values"]
    ours = normalize(torch.from_numpy(photo).permute(2, 0, 1)[None])
    torch.testing.assert_close(pixels, ours, atol=1e-5, rtol=0)
    with torch.inference_mode():
        found = theirs.eval()(pixels).logits
        expected = network.segment(network(ours))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    masks = [F.interpolate(x, size=(70, 98), mode="bilinear").argmax(1) for x in (found, expected)]
    assert (masks[0] == masks[1]).float().mean() > 0.999


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (3, r"backbone and decoder from .*: \d+ tensors taken; classifier and affinity head random"),
        (
            5,
            r"backbone from .*: \d+ tensors taken, 16 left \(decoder.fuse.weight, .*\); "
            "its decoder is of other classes or width; heads random",
        ),
    ],
)
def test_the_decoder_is_taken_where_its_classes_agree(network, folder, classes, said):
    torch.manual_seed(1)
    model = AFA("mit_demo", classes, decoder_width=8)
    before = model.decoder.predict.bias.clone()
    assert re.fullmatch(said, initialize(model, str(folder / "model.safetensors")))
    assert torch.equal(model.backbone.norm4.weight, network.backbone.norm4.weight)
    if classes == 3:
        state, image = network.decoder.state_dict(), torch.randn(1, 3, 48, 64)
        assert all(torch.equal(value, state[name]) for name, value in model.decoder.state_dict().items())
        with torch.no_grad():
            assert torch.equal(model.eval().segment(model(image)), network.segment(network(image)))
    else:
        assert torch.equal(model.decoder.predict.bias, before)


def test_the_folder_is_whole(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    config = json.loads((folder / "config.json").read_text())
    assert config["strides"] == [4, 2, 2, 1] and config["hidden_sizes"] == [32, 64, 120, 160]
    assert set(load_file(folder / "model.safetensors")) == set(to_hugging_face(ARCHITECTURE.build().state_dict()))


def test_another_backbone_has_no_such_folder():
    with pytest.raises(UsageError, match="a MiT .*, this run's is pvt_v2_b0; take --format onnx or torchscript"):
        configuration("pvt_v2_b0", ("a",), 8, 0.1)


def test_offline_names_the_two_other_ways(monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(UsageError, match=r"could not be fetched \(no network\); give --init FILE .* or --init none"):
        fetch_hugging_face("nvidia/mit-b1")


def test_older_repositories_hold_the_second_file(monkeypatch, tmp_path):
    from huggingface_hub.errors import EntryNotFoundError

    def download(repository, name):
        if name == "model.safetensors":
            raise EntryNotFoundError("404")
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert fetch_hugging_face("nvidia/mit-b1").name == "pytorch_model.bin"
