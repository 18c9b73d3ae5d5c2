"""Every path that takes a device, on the stand-in for a GPU: nothing is left on the CPU, nothing is asked for there."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from afactl.cli.main import main
from afactl.inference.trained_run import open_run
from afactl.machine.devices import choose_device
from afactl.method.schedule import Phase
from afactl.network.model import AFA
from afactl.pictures.figures import draw_heads
from afactl.presets import load_preset
from afactl.runs.metrics import read_metrics
from afactl.training.events import Saved
from afactl.training.launch import resume
from afactl.training.optimizer import build_optimizer
from afactl.training.prepared import prepare
from afactl.training.step import StepLosses
from afactl.training.updater import Updater
from benchmarks.dispatch import MOST_OPERATIONS, MOST_WAITS, count_step
from tests import stand_in_accelerator
from tests.conftest import TINY, tiny_preset, train_tiny
from tests.stand_in_accelerator import DEVICE, stand_in

pytestmark = pytest.mark.skipif(
    not stand_in_accelerator.available(), reason="this torch has no backends in Python, or a real accelerator"
)
CPU = torch.device("cpu")


@pytest.fixture
def counts():
    with stand_in() as counts:
        yield counts


class TestTheStandIn:
    """It refuses what CUDA refuses, and counts."""

    def test_auto_finds_it_while_it_is_there(self, counts):
        assert choose_device("auto").type == choose_device("standin").type == "standin"

    def test_tensors_of_two_devices_do_not_mix(self, counts):
        here, there = torch.ones(3), torch.ones(3, device=DEVICE)
        for mixed in (
            lambda: here + there,
            lambda: there + here,
            lambda: here.add_(there),
            lambda: torch.cat([here, there]),
            lambda: here[torch.tensor([0], device=DEVICE)],
            lambda: torch.where(there > 0, there, here),
            lambda: torch.nn.functional.conv1d(here.view(1, 1, 3), there.view(1, 1, 3)),
        ):
            with pytest.raises(RuntimeError, match="on the same device"):
                mixed()
        # What CUDA lets pass: a number of the CPU, and indices.
        assert (there + torch.tensor(2.0)).tolist() == [3, 3, 3] and there[torch.tensor([0])].tolist() == [1]
        assert (there * 2).device == DEVICE and there.cpu().device == CPU

    def test_the_host_does_not_read_the_memory_of_the_device(self, counts):
        there = torch.ones(3, device=DEVICE)
        for reading in (there.numpy, lambda: np.asarray(there), lambda: np.stack([there])):
            with pytest.raises(TypeError, match="to numpy"):
                reading()
        assert there.cpu().numpy().sum() == 3

    def test_operations_and_waits_are_counted(self, counts):
        there = torch.arange(4, device=DEVICE)
        counts.operations.clear()
        mask = there > 1
        assert dict(counts.operations) == {"aten.gt.Scalar": 1} and not counts.waits
        there[mask] = 5  # a fill, which CUDA does alone
        there.to(DEVICE)
        torch.full((3,), 2.0, device=DEVICE)
        torch.ones(3).to(DEVICE, non_blocking=True)
        assert not counts.waits
        for waiting in (
            lambda: there[mask],
            lambda: there.sum().item(),
            lambda: bool(mask.any()),
            lambda: there.nonzero(),
            there.tolist,
            there.cpu,
            lambda: torch.tensor([1, 2], device=DEVICE),
            lambda: there.new_tensor([1, 2]),
            lambda: torch.ones(3).to(DEVICE),
        ):
            before = counts.waits.total()
            waiting()
            assert counts.waits.total() > before

    def test_gradients_are_those_of_the_cpu(self, counts):
        def gradient(device):
            x = torch.linspace(-1, 1, 24, device=device).view(1, 2, 3, 4).requires_grad_()
            weight = torch.linspace(0, 1, 18, device=device).view(1, 2, 3, 3)
            torch.nn.functional.conv2d(x, weight).square().sum().backward()
            return x.grad

        assert gradient(DEVICE).device == DEVICE
        torch.testing.assert_close(gradient(DEVICE).cpu(), gradient("cpu"))


def a_step(preset, phase, device, targets=None):
    """Losses and gradients of one step of training, and the weights after it.

    Args:
        targets: of another such step, in place of those that the network makes itself.
    """
    torch.manual_seed(0)
    model = AFA("mit_demo", 4, preset.model.pooling, 16, drop_path=0.0).to(device).train()
    model.decoder.dropout.p = 0.0
    optimizer = build_optimizer(model, preset)
    soft = torch.nn.functional.interpolate(torch.rand(2, 3, 9, 9), size=(64, 64), mode="bicubic")
    batch = {
        "image": soft.clamp(0, 1).mul(255).to(torch.uint8),
        "label": torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 0]]),
        "box": torch.tensor([[0, 64, 0, 64], [4, 60, 0, 50]]),
        "mask": torch.randint(0, 5, (2, 64, 64), dtype=torch.uint8),
    }
    batch = {name: value.to(device) for name, value in batch.items()}
    step = StepLosses(model, preset)
    if targets is not None:
        targets = type(targets)(*(one if one is None else one.to(device) for one in targets))
    losses = step(batch, phase, targets)
    sum(losses.values()).backward()
    gradients = [p.grad.cpu() for p in model.parameters() if p.grad is not None]
    optimizer.step()
    weights = torch.cat([p.detach().cpu().flatten() for p in model.parameters()])
    return {name: loss.detach().cpu() for name, loss in losses.items()}, gradients, weights


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("name", ["voc", "coco", "voc-rrm", "voc-supervised"])
def test_a_step_is_that_of_the_cpu(counts, name, phase):
    preset = load_preset(name, ["par.iterations=3"])
    losses, gradients, weights = a_step(preset, phase, DEVICE)
    expected, true_gradients, true_weights = a_step(preset, phase, CPU)
    assert set(losses) == set(expected)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    for one, other in zip(gradients, true_gradients, strict=True):
        assert (one - other).norm() <= 1e-3 * other.norm() + 1e-6
    torch.testing.assert_close(weights, true_weights, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("refiner", ["par", "pamr", "crf", "none"])
def test_a_step_with_every_refiner(counts, refiner):
    preset = load_preset("voc", [f"cam.refiner={refiner}", "par.iterations=2", "crf.iterations=2"])
    losses, _, _ = a_step(preset, Phase.PROPAGATED, DEVICE)
    expected, _, _ = a_step(preset, Phase.PROPAGATED, CPU)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)


def test_a_step_in_bfloat16(counts):
    losses, _, _ = a_step(load_preset("voc", ["train.precision=bfloat16"]), Phase.PROPAGATED, DEVICE)
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("phase", Phase)
def test_a_step_is_as_many_operations_whatever_the_batch(phase):
    """The bars of benchmarks/dispatch.py, on a small network with as many blocks as MiT-B1."""
    few, many = (count_step("mit_demo", load_preset("voc"), phase, batch, side=64) for batch in (2, 4))
    assert many.forward == few.forward <= MOST_OPERATIONS
    assert few.waits.total() <= MOST_WAITS and many.waits.total() <= MOST_WAITS, many.waits


@pytest.mark.parametrize("effective_batch", [2, 4])
def test_a_step_of_a_job_waits_twice_at_most(counts, tiny_data, effective_batch):
    """Losses of all parts of a batch are fetched together; the energy loss asks for the size of its lattice."""
    preset = tiny_preset(tiny_data, "loss.reg=0.01", f"train.effective_batch={effective_batch}")
    updater = Updater(prepare(preset, DEVICE), threading.Event())
    parts = effective_batch // 2
    batch = {
        "image": torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8),
        "label": torch.eye(updater.model.classes)[:2],
        "box": torch.tensor([[0, 64, 0, 64], [3, 60, 0, 64]]),
    }
    for step in range(3):
        updater.take(step, [batch] * parts)  # what is kept on the device is brought there now
        counts.waits.clear()
        taken = updater.take(step, [batch] * parts)
        lattices = 0 if taken.phase is Phase.CLASSIFICATION else parts
        assert counts.waits.total() <= 1 + lattices, counts.waits


def test_a_job_goes_on_on_another_device(counts, tmp_path, tiny_data):
    """Half of it here, half there, and the other way round, is the job of the CPU."""
    expected = tmp_path / "whole"
    overrides = ["train.workers=0", "loss.reg=0.01"]
    train_tiny(tiny_data, expected, *overrides)
    for first, second in (("standin", "cpu"), ("cpu", "standin")):
        run = tmp_path / f"{first}-{second}"
        stopped = pytest.raises(KeyboardInterrupt)
        with stopped:
            train_tiny(tiny_data, run, *overrides, device=first, observers=(stop_after(2),))
        resume(run, device=second)
        lines = zip(read_metrics(run), read_metrics(expected), strict=True)
        for one, other in lines:
            assert set(one) == set(other)
            for name in [name for name in one if name.startswith(("loss", "val"))]:
                assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4), name


def stop_after(steps):
    def observe(event):
        if isinstance(event, Saved) and event.step == steps:
            raise KeyboardInterrupt

    return observe


def test_the_weights_of_heads_are_drawn(counts, run_copy):
    draw_heads(open_run(run_copy, DEVICE))


def afactl(*arguments, device="standin"):
    """A command on a device; its errors are raised."""
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments), "--device", str(device), "--verbose"])
    assert not stopped.value.code


def test_training_with_pictures(counts, tmp_path, tiny_data):
    pytest.importorskip("tensorboard")
    sets = [part for override in TINY for part in ("--set", override)]
    afactl("train", "demo", "--data", tiny_data, "--out", tmp_path / "run", "--tensorboard", *sets)


def test_scores_are_those_of_the_cpu(counts, run_copy, tmp_path):
    """Table 3, the rows of eval with the CRF, and a table of refiners; the caches are made again for each device."""
    found = {}
    for device in ("standin", "cpu"):
        for name, call in {
            "pseudo": ["pseudo-eval", "--split", "train", "--overwrite"],
            "predicted": ["pseudo-eval", "--split", "val", "--labels", "predicted", "--overwrite"],
            "eval": ["eval", "--split", "val", "--crf", "--worst", "2"],
        }.items():
            out = tmp_path / f"{device}-{name}.json"
            with pytest.raises(SystemExit) as stopped:
                main([*call, "--run", str(run_copy), "--json", str(out), "--device", device, "--verbose"])
            assert not stopped.value.code
            found[device, name] = out.read_text()
    for name in ("pseudo", "predicted", "eval"):
        assert numbers_of(found["standin", name]) == pytest.approx(numbers_of(found["cpu", name]), abs=0.5)


def numbers_of(text):
    import json

    def walk(value):
        if isinstance(value, dict):
            return [number for one in value.values() for number in walk(one)]
        if isinstance(value, list):
            return [number for one in value for number in walk(one)]
        return [value] if isinstance(value, float) else []

    return walk(json.loads(text))


@pytest.mark.parametrize(
    "call",
    [
        ["dump-cams", "--split", "val", "--format", "npy"],
        ["ablate", "table4", "--split", "val"],
        ["viz-attn", "--query", "20,20", "--query", "40,30"],
        ["viz-attn", "--layer", "2", "--head", "1"],
        ["viz-cams"],
        ["viz-par"],
        ["report"],
    ],
    ids=" ".join,
)
def test_commands_on_a_run(counts, run_copy, call):
    afactl(*call, "--run", run_copy)


@pytest.mark.parametrize(
    "form", ["png", "grey", "overlay", "probabilities", "coco-rle", "voc-server", "cvat", "label-studio"]
)
def test_predict_writes_every_form(counts, run_copy, tiny_data, tmp_path, form):
    if form == "coco-rle":
        pytest.importorskip("pycocotools")
    how = ["--overlay"] if form == "overlay" else ["--format", form]
    afactl("predict", tiny_data / "images" / "val", "--out", tmp_path / "out", *how, "--run", run_copy)


@pytest.mark.parametrize("how", [["--crf"], ["--window", "64"], []])
def test_predicted_masks_are_those_of_the_cpu(counts, run_copy, tiny_data, tmp_path, how):
    (tmp_path / "photos").mkdir()
    small = Image.open(tiny_data / "images" / "val" / "0000.png")
    small.save(tmp_path / "photos" / "small.png")
    small.resize((96, 80)).save(tmp_path / "photos" / "large.png")
    for device in ("standin", "cpu"):
        out = tmp_path / device
        afactl("predict", tmp_path / "photos", "--out", out, *how, "--run", run_copy, device=device)
    for path in (tmp_path / "cpu").glob("*.png"):
        one, other = (np.asarray(Image.open(tmp_path / device / path.name)) for device in ("cpu", "standin"))
        assert (one == other).mean() >= 0.999


def test_a_run_of_another_device_is_opened_where_it_is_asked_for(counts, tiny_run):
    assert next(open_run(tiny_run, DEVICE).model.parameters()).device == DEVICE
    assert next(open_run(tiny_run, CPU).model.parameters()).device == CPU
