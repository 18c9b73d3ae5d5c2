import shutil

import numpy as np
import pytest

from afactl.errors import DependencyError
from afactl.runs.folder import read_metrics
from afactl.training.job import train
from afactl.training.tensorboard import TensorBoardLog
from tests.conftest import TINY


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
    run = train("demo", data=tiny_data, out=tmp_path / "run", overrides=TINY, device_name="cpu", tensorboard=True).run
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
    run = train("demo", data=tiny_data, out=tmp_path / "run", overrides=TINY, device_name="cpu", tensorboard=True).run
    shutil.rmtree(run / "checkpoints" / "last")  # step 2 is the older one
    train(None, out=run, resume=True, device_name="cpu", tensorboard=True)
    assert [one.step for one in events(run).Scalars("loss")] == [1, 2, 3, 4]
    assert np.isfinite([one.value for one in events(run).Scalars("loss")]).all()


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(DependencyError, match="pip install 'afactl\\[tensorboard\\]'"):
        TensorBoardLog(tmp_path, 0)
