import json

import pytest
import torch

from afactl.errors import AfactlError
from afactl.training.events import Skipped
from afactl.training.job import MAX_SKIPPED, Job
from afactl.training.observers.metrics_file import MetricsFile
from afactl.training.prepared import prepare
from tests.conftest import tiny_preset

CPU = torch.device("cpu")


def test_non_finite_losses_are_skipped_then_stop_the_job(tmp_path, tiny_data):
    told = []
    job = Job(prepare(tiny_preset(tiny_data, "train.max_iters=9"), CPU), tmp_path, (MetricsFile(tmp_path), told.append))
    model = job.prepared.model
    shown = [tuple(job.stream[2 * step + i]["image_id"] for i in range(2)) for step in range(MAX_SKIPPED)]
    losses = job.updater.losses.forward
    job.updater.losses.forward = lambda batch, phase: {
        name: loss * float("nan") for name, loss in losses(batch, phase).items()
    }
    before = {name: value.clone() for name, value in model.named_parameters()}
    with pytest.raises(AfactlError, match=f"step 5: non-finite loss.*{', '.join(shown[-1])}; 5 in a row: stopped"):
        job.run_steps()
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters())
    assert [event.image_ids for event in told if isinstance(event, Skipped)] == shown
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [tuple(line["skipped"]) for line in lines if "skipped" in line] == shown
