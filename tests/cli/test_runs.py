"""`afactl runs` as a user calls it."""

import json

from tests.cli.conftest import SETS, refused


def test_runs(call, run_copy, tiny_data, tmp_path):
    code, _, err = call("train", "demo", "--data", tiny_data, "--out", run_copy.parent / "second", *SETS)
    assert code == 0, err
    code, out, _ = call("runs", run_copy.parent, "--json", tmp_path / "list.json")
    assert code == 0
    rows = {row.split("│")[1].strip(): row for row in out.splitlines() if row.startswith("│")}
    assert "demo" in rows["second"] and "mit_demo" in rows["second"] and " MB" in rows["second"]
    listed = {entry["run"]: entry for entry in json.loads((tmp_path / "list.json").read_text())}
    second = listed[str(run_copy.parent / "second")]
    assert second["preset"] == "demo" and second["step"] == second["max_iters"] and second["data"] == str(tiny_data)
    assert str(run_copy) in listed
    refused(call("runs", run_copy.parent, "--json", tmp_path / "list.json"), 2, "is there already")
    refused(call("runs", tmp_path / "nowhere"), 2, "expected a folder with runs")


def test_a_run_whose_preset_is_broken_is_told_of(call, run_copy):
    (run_copy / "preset.yaml").write_text("train: [")
    code, out, err = call("runs", run_copy.parent)
    assert code == 0 and run_copy.name in out and "its preset cannot be read" in err
