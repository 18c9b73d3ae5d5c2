"""`afactl viz-attn` and its sisters as a user calls them."""

from tests.cli.conftest import refused


def test_viz_attn_writes_a_picture(call, run_copy, tiny_data):
    photo = tiny_data / "images/val/0001.png"
    code, out, _ = call("viz-attn", photo, "--query", "32,40", "--query", "5,60", "--run", run_copy)
    picture = run_copy / "figures" / "attention-0001.png"
    assert code == 0 and f"picture: {picture}" in out and picture.stat().st_size > 10000


def test_every_picture_has_its_place_in_the_run_or_the_file_that_is_named(call, run_copy, tiny_data, tmp_path):
    photo = tiny_data / "images/val/0000.png"
    for command, name in (("viz-heads", "heads.png"), ("viz-cams", "cams.png"), ("viz-par", "par-0000.png")):
        code, out, _ = call(command, "--run", run_copy)
        assert code == 0 and f"picture: {run_copy / 'figures' / name}" in out, out
        assert (run_copy / "figures" / name).read_bytes().startswith(b"\x89PNG")
    target = tmp_path / "deep" / "par.pdf"
    assert call("viz-par", photo, "--run", run_copy, "--out", target, "--gif", tmp_path / "par.gif")[0] == 0
    assert target.read_bytes().startswith(b"%PDF") and (tmp_path / "par.gif").read_bytes().startswith(b"GIF")
    assert "3 photos" in call("viz-cams", "--run", run_copy)[1]


def test_a_head_needs_its_layer_and_both_must_be_there(call, run_copy):
    refused(call("viz-attn", "--head", "1", "--run", run_copy), 2, "give --layer too")
    refused(call("viz-attn", "--layer", "3", "--run", run_copy), 2, "expected 1..2")
    refused(call("viz-attn", "--layer", "1", "--head", "9", "--run", run_copy), 2, "expected 1..8")
    assert call("viz-attn", "--layer", "2", "--head", "8", "--run", run_copy)[0] == 0
