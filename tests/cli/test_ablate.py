"""`afactl ablate` as a user calls it."""

import json

from rich.console import Console

from tests.cli.conftest import SETS, refused


def test_ablate_prints_our_figures_beside_the_papers(call, run_copy, tmp_path):
    code, out, _ = call("ablate", "table4", "--run", run_copy, "--split", "val", "--json", tmp_path / "a.json")
    assert code == 0 and "52.9" in out and "5 rows measured now, 0 finished before" in out
    assert "val, here" in out and "the paper's, VOC train" in out  # whatever split ours is of
    assert "0 rows measured now, 5 finished before" in call("ablate", "table4", "--run", run_copy, "--split", "val")[1]
    assert json.loads((tmp_path / "a.json").read_text())["rows"][0]["paper"] == [48.2]
    refused(call("ablate", "table12"), 2, "expected one of table1, table2")
    refused(call("ablate", "table2"), 2, "--preset")


def test_in_a_terminal_bars_are_drawn_one_at_a_time(call, tmp_path, tiny_data, monkeypatch):
    monkeypatch.setattr("afactl.machine.terminal.log", Console(stderr=True, force_terminal=True, width=120))
    arguments = ("--data", tiny_data, "--out", tmp_path / "rows", "--set", "par.iterations=1", *SETS)
    code, out, err = call("ablate", "table4", "--preset", "demo", "--split", "val", *arguments)
    assert code == 0 and "5 rows measured now" in out, err
    assert call("eval", "--run", tmp_path / "rows/base", "--split", "val")[0] == 0
