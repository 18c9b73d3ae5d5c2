"""The loop: what is done when, what is kept, and what a fault leaves behind."""

import json
import shutil

import numpy as np
import pytest
import torch

from afactl.datasets.images import read_image
from afactl.datasets.masks import write_mask
from afactl.errors import AfactlError
from afactl.evaluation.segmentation import Validation
from afactl.runs.checkpoints import find_checkpoint, load_model
from afactl.runs.metrics import read_metrics
from afactl.training import job as job_module
from afactl.training.events import Noted, Saved, Skipped, Stepped, Validated, Validating
from afactl.training.job import MAX_SKIPPED, Job
from afactl.training.launch import resume
from afactl.training.observers.metrics_file import MetricsFile
from afactl.training.prepared import prepare
from tests.conftest import tiny_preset, train_tiny

CPU = torch.device("cpu")


def job_of(data, run, *changes, observers=()):
    return Job(prepare(tiny_preset(data, *changes), CPU), run, (MetricsFile(run), *observers))


def iteration(run, which):
    """The step of a checkpoint, None where there is none."""
    return load_model(run / "checkpoints" / which)[2] if (run / "checkpoints" / which).is_dir() else None


def scored(monkeypatch, *scores):
    """Validations with these scores in turn; None: the network gave NaN."""
    turns = iter(scores)

    def validate(*given):
        score = next(turns)
        return Validation({}, [], ["a"]) if score is None else Validation({"val_seg_miou": score}, [], [])

    monkeypatch.setattr(job_module, "validate", validate)


def test_skipped_steps_leave_everything_as_it_was_then_stop_the_job(tmp_path, tiny_data):
    """Also the statistics of the batch norm, which counts along in the phases that have a decoder."""
    told = []
    job = job_of(tiny_data, tmp_path, "train.max_iters=9", observers=(told.append,))
    model = job.prepared.model
    shown = [tuple(job.stream[2 * step + i]["image_id"] for i in range(2)) for step in range(MAX_SKIPPED)]
    losses = job.updater.losses.forward
    job.updater.losses.forward = lambda *given: {name: loss * float("nan") for name, loss in losses(*given).items()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(AfactlError, match=f"step 5: non-finite loss.*{', '.join(shown[-1])}; 5 in a row: stopped"):
        job.run_steps()
    assert {event.phase.value for event in told if isinstance(event, Stepped)} >= {"refined labels"}
    after = model.state_dict()
    assert "decoder.norm.num_batches_tracked" in after
    assert [name for name in after if not torch.equal(before[name], after[name])] == []
    assert not job.prepared.optimizer.state and all(p.grad is None for p in model.parameters())
    assert [event.image_ids for event in told if isinstance(event, Skipped)] == shown
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [tuple(line["skipped"]) for line in lines if "skipped" in line] == shown


def test_only_a_better_score_becomes_the_best(tmp_path, tiny_data, monkeypatch):
    scored(monkeypatch, 30.0, 40.0, 20.0, 40.0)
    told = []
    job = job_of(tiny_data, tmp_path, "train.eval_iters=1", observers=(told.append,))
    job.run_steps()
    assert [event.step for event in told if isinstance(event, Saved) and event.which == "best"] == [1, 2]
    assert iteration(tmp_path, "best") == 2 and job.best == 40.0


def test_a_validation_with_non_finite_values_is_no_score(tmp_path, tiny_data, monkeypatch):
    scored(monkeypatch, None, 30.0, None, None)
    told = []
    assert job_of(tiny_data, tmp_path, "train.eval_iters=1", observers=(told.append,)).run_steps() is None
    assert iteration(tmp_path, "best") == 2 and iteration(tmp_path, "last") == 4
    lines = [line for line in read_metrics(tmp_path) if "phase" not in line]
    why = "the network gives non-finite values (NaN) for 1 photo (first: a)"
    assert lines == [
        {"step": step} | ({"val_seg_miou": 30.0} if step == 2 else {"no_score": why}) for step in range(1, 5)
    ]
    (last,) = (event for event in told if isinstance(event, Validated) and event.step == 4)
    assert last.text == f"step 4: validation without a score: {why}"


def test_a_checkpoint_comes_before_what_may_fail(tmp_path, tiny_data, monkeypatch):
    """The step of a validation is saved whether or not a checkpoint is due, and the score is made up for."""
    monkeypatch.setattr(job_module, "validate", lambda *given: 1 / 0)
    changes = ("train.eval_iters=3", "train.checkpoint_iters=100")
    with pytest.raises(ZeroDivisionError):
        train_tiny(tiny_data, tmp_path / "run", *changes)
    monkeypatch.undo()
    assert iteration(tmp_path / "run", "last") == 3
    done = resume(tmp_path / "run", device="cpu")
    assert [line["step"] for line in read_metrics(done.run) if "val_seg_miou" in line] == [3, 4] and done.validation


@pytest.mark.parametrize("step", [2, 4])
def test_a_validation_that_was_stopped_is_made_up_for(tmp_path, tiny_data, step):
    """At the end of the training, too, where no step is left to be done."""

    def stop(event):
        if isinstance(event, Validating) and event.step == step:
            raise KeyboardInterrupt

    straight = train_tiny(tiny_data, tmp_path / "straight", "train.eval_iters=2").run
    with pytest.raises(KeyboardInterrupt):
        train_tiny(tiny_data, tmp_path / "run", "train.eval_iters=2", observers=(stop,))
    resume(tmp_path / "run", device="cpu")
    lines = [
        [{k: v for k, v in line.items() if k != "images_per_second"} for line in read_metrics(run)]
        for run in (straight, tmp_path / "run")
    ]
    assert lines[0] == lines[1]
    for which in ("last", "best"):
        one, other = (load_model(find_checkpoint(run, which).folder)[0] for run in (straight, tmp_path / "run"))
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.fixture
def spoiled(tmp_path, tiny_data):
    """A dataset of which one validation mask has another size, and one cannot be read."""
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    write_mask(data / "masks/val/0001.png", np.zeros((64, 50), np.uint8))
    (data / "masks/val/0002.png").write_bytes(b"cut off")
    return data


def test_photos_that_cannot_be_scored_are_named_and_the_training_goes_on(tmp_path, spoiled):
    told = []
    changes = ("train.eval_iters=2", "train.max_iters=4")
    done = train_tiny(spoiled, tmp_path / "run", *changes, observers=(told.append,))
    notes = [event for event in told if isinstance(event, Noted)]
    (unscored,) = (note for note in notes if "1 of 4 photos will not be scored" in note.text)
    assert "masks/val/0001.png: 50 x 64 pixels, the photo has 64 x 64" in unscored.text
    assert unscored.step == 0 and told.index(unscored) < [type(event).__name__ for event in told].index("Started")
    named = [note.text for note in notes if "photos not scored" in note.text]
    assert len(named) == 2 and all("2 of 4" in text and "0001.png" in text and "0002.png" in text for text in named)
    assert set(done.validation) == {"val_seg_miou", "val_cam_miou"} and iteration(done.run, "best") is not None
    # Whoever goes on with such a run gets on.
    longer = tiny_preset(spoiled, "train.max_iters=6", "train.eval_iters=2")
    assert resume(done.run, longer, allow_changes=True, device="cpu").steps == 6


def test_photos_per_second_are_those_of_the_steps(tmp_path, tiny_data, monkeypatch):
    """Every look at the clock is a second later; a validation takes a thousand."""
    now = [0.0]

    def clock():
        now[0] += 1
        return now[0]

    def validate(*given):
        now[0] += 1000
        return Validation({"val_seg_miou": 1.0}, [], [])

    monkeypatch.setattr(job_module.time, "perf_counter", clock)
    monkeypatch.setattr(job_module, "validate", validate)
    told = []
    job_of(tiny_data, tmp_path, "train.eval_iters=1", "train.log_iters=2", observers=(told.append,)).run_steps()
    rates = [event.images_per_second for event in told if isinstance(event, Stepped)]
    assert rates == [None, 2.0, None, 2.0], "two photos a step, one second each"


def sides(data, run, low, high, count=24):
    """(height, width) of the true image in the first views of a job."""
    job = job_of(data, run, f"train.scale_range=[{low},{high}]", "train.max_iters=20")
    boxes = [job.stream[number]["box"].tolist() for number in range(count)]
    return [(y1 - y0, x1 - x0) for y0, y1, x0, x1 in boxes]


def test_views_have_the_sizes_of_the_scale_range(tmp_path, tiny_data):
    """The pictures and the crop have 64 pixels."""
    assert set(sides(tiny_data, tmp_path, 0.25, 0.25)) == {(16, 16)}
    assert set(sides(tiny_data, tmp_path, 1.0, 2.0)) == {(64, 64)}
    drawn = [height for height, _ in sides(tiny_data, tmp_path, 0.25, 0.75)]
    assert 16 <= min(drawn) < 24 and 40 < max(drawn) <= 48


def test_half_of_the_views_are_mirrored(tmp_path, tiny_data):
    job = job_of(tiny_data, tmp_path, "train.scale_range=[1,1]", "train.max_iters=40")
    paths = {sample.image_id: sample.image_path for sample in job.prepared.data.samples}
    mirrored = 0
    for number in range(80):
        view = job.stream[number]
        photo = torch.from_numpy(read_image(paths[view["image_id"]])).permute(2, 0, 1)
        assert torch.equal(view["image"], photo) != torch.equal(view["image"], photo.flip(-1))
        mirrored += torch.equal(view["image"], photo.flip(-1))
    assert 20 < mirrored < 60
