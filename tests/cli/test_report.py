"""`afactl report` as a user calls it."""

from tests.cli.conftest import refused


def test_report_writes_the_page_and_says_what_is_missing(call, run_copy, tmp_path):
    code, out, err = call("report", run_copy)
    assert code == 0 and (run_copy / "report.html").is_file() and str(run_copy / "report.html") in out
    assert "pseudo labels: afactl pseudo-eval" in out + err and "segmentation: afactl eval" in out + err
    refused(call("report", tmp_path / "no"), 2, "expected a run folder")
