import shutil
import sys

import pytest

from afactl.errors import DependencyError
from afactl.presets import values_by_key
from afactl.runs.folder import run_preset
from afactl.runs.metrics import read_metrics
from afactl.training.launch import resume
from afactl.training.observers.mlflow import MlflowLog
from tests.conftest import train_tiny


@pytest.fixture(scope="module")
def runs():
    """What MLflow itself finds in a run folder, the newest first."""
    mlflow = pytest.importorskip("mlflow", reason="MLflow needs the extra [mlflow]")

    def read(run):
        client = mlflow.MlflowClient(f"sqlite:///{run / 'mlflow' / 'mlflow.db'}")
        (experiment,) = [one for one in client.search_experiments() if one.name == "afactl"]
        return client, client.search_runs([experiment.experiment_id])

    return read


def test_preset_curves_and_pictures_of_a_training(tmp_path, tiny_data, runs):
    run = train_tiny(tiny_data, tmp_path / "run", observers=(MlflowLog(),)).run
    client, (made,) = runs(run)
    assert made.info.run_name == "run" and made.info.status == "FINISHED" and made.data.tags["from_step"] == "0"
    assert made.data.params == {key: str(value) for key, value in values_by_key(run_preset(run)).items()}
    lines = read_metrics(run)
    for name in ("loss", "loss_cls", "lr", "val_seg_miou"):
        found = client.get_metric_history(made.info.run_id, name)
        expected = [(line["step"], pytest.approx(line[name])) for line in lines if name in line]
        assert [(one.step, one.value) for one in found] == expected and found
    pictures = [one.path for one in client.list_artifacts(made.info.run_id, "images") if one.path.endswith(".png")]
    assert len(pictures) == 4 * 4 and any("pseudo label" in path for path in pictures)


def test_a_resumed_training_is_a_run_of_its_own(tmp_path, tiny_data, runs):
    run = train_tiny(tiny_data, tmp_path / "run", observers=(MlflowLog(),)).run
    shutil.rmtree(run / "checkpoints" / "last")  # step 2 is the older one
    resume(run, device="cpu", observers=(MlflowLog(),))
    client, both = runs(run)
    steps = {
        made.data.tags["from_step"]: [one.step for one in client.get_metric_history(made.info.run_id, "loss")]
        for made in both
    }
    assert steps == {"0": [1, 2, 3, 4], "2": [3, 4]}


@pytest.mark.parametrize("package", ["mlflow", "sqlalchemy"])
def test_what_is_missing_is_said(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DependencyError, match="pip install 'afactl\\[mlflow\\]'"):
        MlflowLog()
