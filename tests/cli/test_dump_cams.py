"""`afactl dump-cams` as a user calls it."""


def test_dump_cams_then_nothing_is_left_to_do(call, run_copy):
    assert "4 images, 4 of them made now" in call("dump-cams", "--split", "val", "--run", run_copy)[1]
    assert "4 images, 0 of them made now" in call("dump-cams", "--split", "val", "--run", run_copy)[1]
    assert "4 images went" not in call("pseudo-eval", "--split", "val", "--run", run_copy)[1]
