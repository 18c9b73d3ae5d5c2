"""A run opened for inference, and the splits of its dataset."""

import pytest

from afactl.errors import CheckpointError, UsageError
from afactl.inference.trained_run import open_split


def test_a_run_opens_with_its_weights(run):
    assert run.iteration == 4 and not run.model.training and len(run.weights_hash) == 16
    assert run.architecture.classes == ("disc", "square", "triangle", "star", "ring", "cross")


def test_a_dataset_that_does_not_belong_is_refused(run, tmp_path, tiny_data):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels.csv").write_text("image,split,labels\nimages/a.png,val,cat\n")
    with pytest.raises(CheckpointError, match="trained on the classes disc, .* but the dataset has cat"):
        open_split(run, "val", tmp_path, masks=False)


def test_scoring_without_masks_says_what_is_missing(run, tmp_path, tiny_data):
    import shutil

    shutil.copytree(tiny_data, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "masks")
    open_split(run, "val", tmp_path / "data", masks=False)
    with pytest.raises(UsageError, match="scoring needs true masks"):
        open_split(run, "val", tmp_path / "data", masks=True)
