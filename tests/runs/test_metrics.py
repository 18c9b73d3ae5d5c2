import math

from afactl.runs.metrics import Progress, append_metrics, forget_metrics_after, progress_at, read_metrics


def test_metrics_survive_a_line_that_a_kill_cut_off(tmp_path):
    append_metrics(tmp_path, step=1, loss=0.5)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]
    assert read_metrics(tmp_path / "nowhere") == []


def test_how_far_a_run_is_follows_from_its_lines(tmp_path):
    """Also where a later step was scored better: a resumed run takes that step again."""
    assert progress_at(tmp_path, 0) == Progress(0, -math.inf, False)
    append_metrics(tmp_path, step=2, loss=1.0)
    append_metrics(tmp_path, step=2, val_seg_miou=30.0)
    append_metrics(tmp_path, step=3, loss=1.0)
    append_metrics(tmp_path, step=4, no_score="the network gives NaN")
    append_metrics(tmp_path, step=6, val_seg_miou=40.0)
    assert [progress_at(tmp_path, step) for step in (2, 3, 4, 6)] == [
        Progress(2, 30.0, True),
        Progress(3, 30.0, False),
        Progress(4, 30.0, True),
        Progress(6, 40.0, True),
    ]
    forget_metrics_after(tmp_path, 4)
    assert [line["step"] for line in read_metrics(tmp_path)] == [2, 2, 3, 4]
