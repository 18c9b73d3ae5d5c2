"""`afactl export` as a user calls it."""

from tests.cli.conftest import SETS, refused


def test_export_writes_weights_that_start_another_training(call, run_copy, tmp_path, tiny_data):
    code, out, _ = call("export", "--run", run_copy)
    assert (
        code == 0 and f"weights: {run_copy / 'weights.safetensors'} (" in out and "trained from random weights" in out
    )
    assert (
        call(
            "export",
            "--run",
            run_copy,
            "--format",
            "authors",
            "--out",
            tmp_path / "deep" / "w.pth",
            "--checkpoint",
            "best",
        )[0]
        == 0
    )
    for weights in (run_copy / "weights.safetensors", tmp_path / "deep" / "w.pth"):
        code, _, err = call(
            "train", "demo", "--data", tiny_data, "--init", weights, "--out", tmp_path / weights.stem, *SETS
        )
        assert code == 0 and "all weights from" in err
    assert "w.pth, whose licence holds for these too" in call("export", "--run", tmp_path / "w")[1]
    refused(call("export", "--run", tmp_path), 2, "expected a run folder")
    refused(call("export", "--run", run_copy, "--out", tmp_path / "deep" / "w.pth" / "x"), 2, "cannot be written")
