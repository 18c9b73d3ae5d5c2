import io
import socket

import httpx
import numpy as np
import pytest
from PIL import Image

from afactl.errors import UsageError
from afactl.explorer.server import FILES, POLICY, address, listen


@pytest.fixture
def web(served):
    """A client of the page."""
    with httpx.Client(base_url=served, timeout=60) as client:
        yield client


def test_the_page_and_its_files_forbid_everything_from_elsewhere(web):
    for name, kind in FILES.items():
        answer = web.get("/" if name == "page.html" else f"/{name}")
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)
        assert answer.headers["content-security-policy"] == POLICY
        assert "http://" not in answer.text and "https://" not in answer.text
    assert "'unsafe" not in POLICY and "default-src 'none'" in POLICY


def test_other_names_of_this_machine_and_other_pages_are_refused(web):
    assert web.get("/api/run", headers={"host": "evil.example"}).status_code == 400
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        answer = web.post("/api/verdict", params={"verdict": "keep"}, headers={"origin": origin})
        assert answer.status_code == 403 and "error" in answer.json()
    assert web.get("/api/run", headers={"origin": str(web.base_url).rstrip("/")}).status_code == 200


def test_every_question_is_answered_in_its_own_way(web):
    about = web.get("/api/run").json()
    assert about["counts"] == {"keep": 0, "wrong": 0, "unsure": 0} and len(about["palette"]) == 256
    assert about["values"]["cam.beta_low"] == 0.35 and "crf" in about["refiners"]
    photo = web.get("/api/photos", params={"split": "val"}).json()["photos"][0]["id"]
    place = {"split": "val", "photo": photo}
    assert web.get("/api/photo", params=place).json()["width"] == 64
    for name in ("picture", "thumbnail"):
        answer = web.get(f"/api/{name}", params=place)
        assert answer.headers["content-type"] == "image/jpeg" and Image.open(io.BytesIO(answer.content)).width == 64
    maps = web.get("/api/maps", params={**place, "x": 3, "y": 4, "layer": 2, "head": 1}).json()
    assert len(maps["affinity"]["values"]) == 36 and maps["title"] == "MHSA (layer 2, head 1)"
    label = web.get("/api/label", params={**place, "walk": "affinity", "cam.beta_low": 0.1}).json()
    assert set(label) == {"png", "miou", "ignored"}
    assert set(web.get("/api/mask", params={**place, "mask": "truth"}).json()) == {"png", "miou"}
    assert web.post("/api/verdict", params={**place, "verdict": "keep"}).json()["keep"] == 1
    assert f"{photo}.png,val,keep" in web.get("/api/review.csv").text
    figure = web.post("/api/figure", params={**place, "x": 3, "y": 4, "walk": "off"}).json()
    assert figure["file"].endswith(f"explored-{photo.rpartition('/')[2]}-1.png")
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(buffer, "PNG")
    assert web.post("/api/own", params={"name": "a"}, content=buffer.getvalue()).json() == {
        "split": "own",
        "photo": "1",
    }


def test_what_is_wrong_is_one_line_with_its_status(web):
    photo = web.get("/api/photos", params={"split": "val"}).json()["photos"][0]["id"]
    place = {"split": "val", "photo": photo}
    for path, asked, text in (
        ("photos", {"split": "no"}, "split"),
        ("photos", {"split": "val", "start": "much"}, "start: expected a whole number, got 'much'"),
        ("maps", place, "x: expected a whole number"),
        ("maps", {**place, "x": 64, "y": 0}, "outside the photo, which is 64 x 64"),
        ("label", {**place, "walk": "off", "par.iterations": "-1"}, "par.iterations: expected a whole number"),
        ("label", {**place}, "walk: expected affinity, mhsa, off"),
        ("mask", {**place, "mask": "all"}, "mask: expected one of"),
    ):
        answer = web.get(f"/api/{path}", params=asked)
        assert answer.status_code == 400 and text in answer.json()["error"], path
    assert web.get("/api/verdict").status_code == 405


def test_a_file_too_large_to_be_a_photo_is_refused(web, monkeypatch):
    monkeypatch.setattr("afactl.explorer.server.MAX_BYTES", 2**20)
    too_much = web.post("/api/own", content=bytes(2**20 + 1))
    assert too_much.status_code == 400 and too_much.json() == {"error": "expected a photo of at most 1 MiB"}


def test_what_nobody_expected_is_said_too(web, monkeypatch):
    def broken(*_):
        raise ValueError("first line\nsecond line")

    monkeypatch.setattr("afactl.explorer.session.Session.maps", broken)
    answer = web.get("/api/maps", params={"split": "val", "photo": "a", "x": 1, "y": 1})
    assert answer.status_code == 500 and answer.json() == {"error": "ValueError: first line"}


def test_a_port_that_is_taken_is_refused_and_without_one_a_free_one_is_found():
    with listen(None) as taken:
        port = taken.getsockname()[1]
        assert address(taken) == f"http://127.0.0.1:{port}/" and taken.getsockname()[0] == "127.0.0.1"
        with pytest.raises(UsageError, match=f"--port {port}: cannot be used .*leave it out"):
            listen(port)
    assert isinstance(taken, socket.socket)
    with listen(port) as again:
        assert again.getsockname()[1] == port
