"""A network as TorchScript gives what it gives in torch, without afactl."""

import json
import subprocess
import sys

import pytest
import torch

from afactl.errors import AfactlError
from afactl.inference import torchscript_export
from afactl.inference.network_outputs import NetworkOutputs
from afactl.inference.torchscript_export import METADATA, export_torchscript
from afactl.inference.trained_run import open_run
from afactl.network.model import AFA


@pytest.fixture(scope="module")
def made(tiny_run, tmp_path_factory):
    """The network of a trained run, and its file."""
    run = open_run(tiny_run, torch.device("cpu"))
    out = tmp_path_factory.mktemp("script") / "network.pt"
    assert export_torchscript(run, out) < 1e-4
    return run, out


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 64, 96), (1, 50, 83), (2, 224, 160)])
def test_the_outputs_are_those_of_torch_at_any_size(made, shape):
    run, out = made
    image = torch.randn(shape[0], 3, *shape[1:])
    with torch.inference_mode():
        expected = NetworkOutputs(run.model).eval()(image)
        found = torch.jit.load(out)(image)
    assert found[0].shape == (shape[0], 7, *shape[1:])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_another_process_needs_torch_alone(made):
    run, out = made
    code = (
        "import sys, torch\n"
        f"extra = {{{METADATA!r}: ''}}\n"
        "network = torch.jit.load(sys.argv[1], _extra_files=extra)\n"
        "logits, cam, affinity = network(torch.zeros(1, 3, 96, 64))\n"
        "assert 'afactl' not in sys.modules and logits.shape[2:] == (96, 64)\n"
        f"print(extra[{METADATA!r}].decode())"
    )
    told = subprocess.run([sys.executable, "-I", "-c", code, str(out)], capture_output=True, text=True, check=True)
    facts = json.loads(told.stdout)
    assert facts["classes"] == ["background", *run.architecture.classes] and len(facts["mean"]) == 3


def test_what_cannot_be_traced_or_differs_is_not_written(made, tmp_path, monkeypatch):
    run, _ = made
    vit = run._replace(
        model=AFA("vit_tiny_patch16_224", 6).eval(), architecture=run.architecture._replace(backbone="vit_tiny")
    )
    with pytest.raises(AfactlError, match="the backbone vit_tiny cannot be expressed"):
        export_torchscript(vit, tmp_path / "n.pt")
    monkeypatch.setattr(torchscript_export, "largest_difference", lambda *given: 0.5)
    with pytest.raises(AfactlError, match="mit_demo differ by 0.5 from torch's; nothing was written"):
        export_torchscript(run, tmp_path / "n.pt")
    assert not list(tmp_path.iterdir())
