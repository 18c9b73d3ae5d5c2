"""A network as ONNX gives what it gives in torch, and says what it is."""

import json
import shutil

import numpy as np
import pytest
import torch

from afactl.errors import AfactlError, DependencyError
from afactl.inference import onnx_export
from afactl.inference.network_outputs import OUTPUTS
from afactl.inference.onnx_export import export_int8, export_onnx
from afactl.inference.segmentation import segment

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
pytest.importorskip("onnxscript", reason="needs the extra [onnx]")


@pytest.fixture(scope="module")
def made(tiny_run, tmp_path_factory):
    """The network of a trained run, and its file."""
    from afactl.inference.trained_run import open_run

    run = open_run(tiny_run, torch.device("cpu"))
    out = tmp_path_factory.mktemp("onnx") / "network.onnx"
    assert export_onnx(run, out) < 1e-4
    return run, onnxruntime.InferenceSession(out), out


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 64, 96), (1, 50, 83), (2, 224, 160)])
def test_the_outputs_are_those_of_torch_at_any_size(made, shape):
    run, session, _ = made
    photos, height, width = shape
    image = torch.randn(photos, 3, height, width)
    segmentation, cam, affinity = session.run(list(OUTPUTS), {"image": image.numpy()})
    with torch.inference_mode():
        encoded = run.model.eval()(image)
        np.testing.assert_allclose(cam, run.model.activate(encoded), atol=1e-4)
        np.testing.assert_allclose(affinity, run.model.affinity(encoded), atol=1e-4)
    assert segmentation.shape == (photos, 7, height, width)


def test_the_metadata_is_all_that_a_photo_needs(made):
    run, session, _ = made
    facts = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    assert (
        facts["classes"] == ["background", *run.architecture.classes] and facts["stride"] == run.model.backbone.stride
    )
    photo = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
    pixels = ((photo - np.array(facts["mean"])) / facts["std"]).astype(np.float32).transpose(2, 0, 1)[None]
    (logits,) = session.run(["segmentation"], {"image": pixels})
    np.testing.assert_allclose(logits[0], segment(run.model, photo, run.device), atol=1e-4)


def test_a_file_that_differs_is_not_written(made, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "largest_difference", lambda *given: float("nan"))
    monkeypatch.setattr(onnx_export, "_session", lambda *given: None)
    monkeypatch.setattr(onnx_export, "_translate", lambda *given: pytest.importorskip("onnx").ModelProto())
    with pytest.raises(AfactlError, match="differ by nan from torch's; nothing was written"):
        export_onnx(made[0], tmp_path / "n.onnx")
    assert not (tmp_path / "n.onnx").exists()


def test_a_backbone_that_cannot_be_expressed_is_told(made, tmp_path, monkeypatch):
    def failing(*given, **options):
        raise RuntimeError("no rule\nfor this")

    monkeypatch.setattr(torch.onnx, "export", failing)
    with pytest.raises(AfactlError, match="the backbone mit_demo cannot be expressed .no rule"):
        export_onnx(made[0], tmp_path / "n.onnx")


def test_without_the_extra_it_is_named(made, tmp_path, monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(onnx_export.importlib, "import_module", absent)
    with pytest.raises(DependencyError, match=r"needs onnx: pip install 'afactl\[onnx\]'"):
        export_onnx(made[0], tmp_path / "n.onnx")


def test_8_bit_weights_are_smaller_and_say_what_changed(made, tmp_path, monkeypatch):
    run, session, exact = made
    monkeypatch.setattr(onnx_export, "export_onnx", lambda run, out: shutil.copy(exact, out))  # it takes half a minute
    out = tmp_path / "small.onnx"
    changed = export_int8(run, out)
    assert 0.2 < changed.ratio < 0.8 and 0.8 < changed.same <= 1, "weights of linear layers are a quarter of their size"
    small = onnxruntime.InferenceSession(out)
    assert small.get_modelmeta().custom_metadata_map == session.get_modelmeta().custom_metadata_map
    image = {"image": torch.randn(1, 3, 70, 90).numpy()}
    plain, rounded = session.run(["segmentation"], image)[0], small.run(["segmentation"], image)[0]
    assert 0 < np.abs(plain - rounded).max() < np.abs(plain).max()
