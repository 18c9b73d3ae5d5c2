"""`afactl presets` as a user calls it."""

from tests.cli.conftest import refused


def test_presets_are_listed_printed_and_copied(call, tmp_path):
    code, out, _ = call("presets")
    assert code == 0 and all(name in out for name in ("coco", "demo", "photos", "voc"))
    row = {line.split()[1]: line.split()[-2] for line in out.splitlines() if line.startswith("│ ") and line[2] != " "}
    assert row["demo"] == "yes" and row["voc"] == "no" and "--init FILE" in out
    assert "max_iters: 20000" in call("presets", "voc")[1]
    assert call("presets", "voc", "--copy", tmp_path / "mine.yaml")[0] == 0
    refused(call("presets", "voc", "--copy", tmp_path / "mine.yaml"), 2, "mine.yaml is there already")
    refused(call("presets", "vok"), 2, 'did you mean "voc"')
    refused(call("presets", "--copy", tmp_path / "x.yaml"), 2, "which preset?")
