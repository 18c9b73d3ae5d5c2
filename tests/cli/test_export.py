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


def test_a_name_of_another_format_is_refused(call, run_copy, tmp_path):
    refused(call("export", "--run", run_copy, "--out", tmp_path / "w.onnx"), 2, ".safetensors, or --format onnx")
    refused(call("export", "--run", run_copy, "--format", "onnx", "--out", tmp_path / "w.pth"), 2, "--format authors")
    assert list(tmp_path.glob("w.*")) == []


def test_the_network_itself_for_torch_and_for_transformers(call, run_copy, tmp_path):
    code, out, err = call("export", "--run", run_copy, "--format", "torchscript", "--out", tmp_path / "n.pt")
    assert code == 0 and "network: " in out and "from torch's at three sizes" in out and "translating" in err
    code, out, _ = call("export", "--run", run_copy, "--format", "hf")
    assert code == 0 and f"weights: {run_copy / 'hf'} (" in out and "(0.0 MB)" not in out
    assert (run_copy / "hf" / "config.json").is_file()
    assert call("export", "--run", run_copy, "--format", "hf")[0] == 0, "what it names itself is its own"
    again = ("export", "--run", run_copy, "--format", "hf", "--out", run_copy / "hf")
    refused(call(*again), 2, "config.json (and 2 more) is there already", "--overwrite")
    assert call(*again, "--overwrite")[0] == 0
    refused(call("export", "--run", run_copy, "--format", "hf", "--int8"), 2, "--int8: belongs to --format onnx")
    refused(call("export", "--run", run_copy, "--format", "torchscript", "--out", tmp_path / "w.pth"), 2, ".pt, or")


def test_a_network_as_onnx_is_no_weights(call, tiny_data, tmp_path):
    (tmp_path / "w.onnx").write_bytes(b"any")
    call_of = ("train", "demo", "--data", tiny_data, "--out", tmp_path / "run", "--init", tmp_path / "w.onnx")
    refused(call(*call_of), 1, "w.onnx: a network as ONNX", ".safetensors or .pth")
