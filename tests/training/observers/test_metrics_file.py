from pathlib import Path

from afactl.method.schedule import Phase
from afactl.runs.metrics import read_metrics
from afactl.training.events import Ended, Noted, Saved, Skipped, Started, Stepped, Validated, Validating
from afactl.training.observers.metrics_file import MetricsFile


def test_a_line_for_every_logged_step_skipped_step_and_validation(tmp_path):
    observe = MetricsFile(tmp_path)
    terms = {"cls": 0.5, "seg": 0.25}
    for event in (
        Noted(0, "weights: random weights"),
        Started(0, 4, tmp_path),
        Stepped(1, 4, Phase.REFINED, terms, 0.75, 6e-5),
        Stepped(2, 4, Phase.REFINED, terms, 0.75, 6e-5, images_per_second=3.5, peak_memory=2**30),
        Skipped(3, ("a", "b/c")),
        Validating(4, 1, 9),
        Validated(4, {"val_seg_miou": 41.0, "val_cam_miou": 50.0}),
        Saved(4, Path("run"), "last"),
        Ended(4),
    ):
        observe(event)
    assert read_metrics(tmp_path) == [
        {
            "step": 2,
            "phase": "refined labels",
            "loss_cls": 0.5,
            "loss_seg": 0.25,
            "loss": 0.75,
            "lr": 6e-5,
            "images_per_second": 3.5,
        },
        {"step": 3, "skipped": ["a", "b/c"]},
        {"step": 4, "val_seg_miou": 41.0, "val_cam_miou": 50.0},
    ]
