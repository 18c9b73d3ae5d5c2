"""The same labels, losses and gradients on a real accelerator as on the CPU: make test-gpu.

$AFACTL_TEST_DEVICE names another device than the one that `auto` takes; "standin" tries the tests themselves.
"""

import os
import shutil

import pytest
import torch

from afactl.machine.devices import choose_device
from afactl.method.schedule import Phase
from afactl.presets import load_preset
from afactl.runs.metrics import read_metrics
from afactl.training.launch import Request, resume, start
from afactl.training.step import Targets
from benchmarks.agreement import agreement
from tests import stand_in_accelerator
from tests.stand_in_accelerator import stand_in
from tests.test_accelerator import a_step, afactl

pytestmark = pytest.mark.gpu
NAME = os.environ.get("AFACTL_TEST_DEVICE", "auto")
SHORT = ["train.max_iters=200", "train.cls_warmup_iters=120", "train.aff_warmup_iters=40", "train.eval_iters=200"]
if NAME == "standin" and stand_in_accelerator.available():
    SHORT = ["train.max_iters=6", "train.cls_warmup_iters=2", "train.aff_warmup_iters=2", "train.crop_size=64"]
elif choose_device(NAME).type == "cpu":
    pytest.skip("no accelerator here: the tests marked gpu need one", allow_module_level=True)


@pytest.fixture(scope="module")
def device():
    if NAME == "standin":
        with stand_in():
            yield choose_device(NAME)
    else:
        # The products of both devices in the same precision: TF32 has 10 bits where float32 has 23.
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        yield choose_device(NAME)
        torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def trained(device, tmp_path_factory, own_cache):
    """A run of the demo, trained on the device."""
    run = tmp_path_factory.mktemp("gpu") / "run"
    start(Request(load_preset("demo", SHORT), out=run, device=str(device)))
    return run


@pytest.mark.parametrize(("precision", "least"), [(torch.float32, 0.999), (torch.bfloat16, 0.99)])
def test_labels_are_those_of_the_cpu(device, trained, precision, least):
    shares = agreement(trained, device, precision, 4 if NAME == "standin" else 20)
    print({name: round(share, 5) for name, share in shares.items()})
    assert not {name: share for name, share in shares.items() if share < least}


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("name", ["voc", "coco", "voc-rrm", "voc-supervised"])
def test_a_step_is_that_of_the_cpu(device, name, phase):
    preset = load_preset(name, ["train.precision=float32"])
    losses, gradients, _ = a_step(preset, phase, device)
    expected, true_gradients, _ = a_step(preset, phase, torch.device("cpu"))
    torch.testing.assert_close(losses, expected, rtol=1e-3, atol=1e-4)
    for one, other in zip(gradients, true_gradients, strict=True):
        assert (one - other).norm() <= 1e-2 * other.norm() + 1e-5


def test_a_step_in_bfloat16_is_near_that_of_the_cpu(device):
    """With the same labels: those of a network with random weights turn over at every rounding."""
    torch.manual_seed(0)
    targets = Targets(torch.randint(0, 5, (2, 64, 64), dtype=torch.uint8), torch.randint(0, 2, (2, 16, 16)))
    losses, _, _ = a_step(load_preset("voc", ["train.precision=bfloat16"]), Phase.REFINED, device, targets)
    expected, _, _ = a_step(
        load_preset("voc", ["train.precision=float32"]), Phase.REFINED, torch.device("cpu"), targets
    )
    torch.testing.assert_close(losses, expected, rtol=0.05, atol=0.01)


@pytest.mark.parametrize(
    "call",
    [
        ["pseudo-eval", "--split", "val"],
        ["eval", "--split", "val", "--crf"],
        ["dump-cams", "--split", "val"],
        ["viz-attn", "--query", "20,20"],
        ["viz-cams"],
        ["viz-par"],
        ["report"],
    ],
    ids=" ".join,
)
def test_commands_on_a_run(device, trained, call):
    afactl(*call, "--run", trained, device=device)


@pytest.mark.parametrize("how", [[], ["--crf"], ["--window", "64"], ["--format", "probabilities"]], ids=" ".join)
def test_predict(device, trained, own_cache, tmp_path, how):
    afactl(
        "predict",
        own_cache / "demo" / "images" / "val" / "000[0-7].png",
        "--out",
        tmp_path / "out",
        *how,
        "--run",
        trained,
        device=device,
    )


def test_training_goes_on_where_it_was_on_the_cpu(device, tmp_path, tiny_run):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    longer = load_preset(str(run / "preset.yaml"), ["train.max_iters=6"])
    resume(run, longer, allow_changes=True, device=str(device))
    assert read_metrics(run)[-1]["step"] == 6
