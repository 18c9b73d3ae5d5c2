import shutil

import numpy as np
import pytest

from afactl.errors import DependencyError
from afactl.runs.metrics import read_metrics
from afactl.training.launch import resume
from afactl.training.observers.tensorboard import TensorBoardLog
from tests.conftest import train_tiny


@pytest.fixture(scope="module")
def events():
    pytest.importorskip("tensorboard", reason="TensorBoard needs the extra [tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(run):
        found = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
        found.Reload()
        return found

    return read


def test_curves_and_pictures_of_a_training(tmp_path, tiny_data, tiny_run, events):
    run = train_tiny(tiny_data, tmp_path / "run", observers=(TensorBoardLog(),)).run
    found = events(run)
    lines = read_metrics(run)
    for name in ("loss", "loss_cls", "lr", "val_seg_miou"):
        expected = [(line["step"], line[name]) for line in lines if name in line]
        assert [(one.step, pytest.approx(one.value, rel=1e-5)) for one in found.Scalars(name)] == expected
    names = found.Tags()["images"]
    assert len(names) == 4 * 4 and {name.rsplit("/", 1)[1] for name in names} == {
        "CAM",
        "attention",
        "pseudo label",
        "segmentation",
    }
    (image,) = found.Images(names[0])
    assert image.step == 4 and image.width == image.height == 64
    kept = [
        [{k: v for k, v in line.items() if k != "images_per_second"} for line in read_metrics(one)]
        for one in (run, tiny_run)
    ]
    assert kept[0] == kept[1], "looking changes nothing"


def test_a_resumed_training_hides_the_steps_that_it_does_again(tmp_path, tiny_data, events):
    run = train_tiny(tiny_data, tmp_path / "run", observers=(TensorBoardLog(),)).run
    shutil.rmtree(run / "checkpoints" / "last")  # step 2 is the older one
    resume(run, device="cpu", observers=(TensorBoardLog(),))
    assert [one.step for one in events(run).Scalars("loss")] == [1, 2, 3, 4]
    assert np.isfinite([one.value for one in events(run).Scalars("loss")]).all()


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(DependencyError, match="pip install 'afactl\\[tensorboard\\]'"):
        TensorBoardLog()
