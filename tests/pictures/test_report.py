import html
import json
import re
import shutil
import subprocess
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from afactl.datasets import folder, masks
from afactl.errors import DataError, UsageError
from afactl.evaluation.intervals import difference
from afactl.evaluation.pseudo_labels import score_pseudo_labels
from afactl.evaluation.segmentation import evaluate_segmentation
from afactl.inference import trained_run
from afactl.inference.trained_run import open_run, open_split
from afactl.pictures import figures, report
from afactl.pictures.report import write_report

CPU = torch.device("cpu")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# What a user would do: move every slider to each layer, and see what is shown.
MOVES = """
<script>
const seen = {errors: [], looks: []};
addEventListener("error", event => seen.errors.push(String(event.message)));
addEventListener("securitypolicyviolation", event => seen.errors.push(event.violatedDirective));
addEventListener("load", () => {
  for (const look of document.querySelectorAll(".look")) {
    const slider = look.querySelector("input");
    for (const value of [0, 1, 1.5, 3]) {
      slider.value = value;
      slider.dispatchEvent(new Event("input"));
      const opacity = [...look.querySelectorAll("img")].map(layer => Number(getComputedStyle(layer).opacity));
      seen.looks.push([value, look.querySelector("output").value, opacity]);
    }
  }
  seen.width = document.documentElement.scrollWidth;
  seen.inner = innerWidth;
  seen.broken = [...document.images].filter(image => !image.naturalWidth).length;
  seen.small = [...document.querySelectorAll("p, td, dd, output")].filter(
    one => parseFloat(getComputedStyle(one).fontSize) < 12).length;
  document.body.dataset.seen = JSON.stringify(seen);
});
</script>
"""


@pytest.fixture(scope="module")
def judged(tmp_path_factory, tiny_run):
    """A run with scores, a figure and its page."""
    folder = tmp_path_factory.mktemp("report") / "run"
    shutil.copytree(tiny_run, folder)
    run = open_run(folder, CPU)
    split = open_split(run, "val", None, masks=True)
    table3, segmentation = score_pseudo_labels(run, split), evaluate_segmentation(run, split)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(folder / "figures" / "one.png")
    return run, table3, segmentation, write_report(run, photos=2)


def test_the_page_holds_what_the_commands_found(judged):
    run, table3, segmentation, made = judged
    page = made.file.read_text()
    assert made.missing == [] and made.size == len(page.encode()) and made.file == run.folder / "report.html"
    for name, pair in table3.scores.items():
        cells = "".join(f"<td>{score.text}</td>" for score in pair)
        assert f"<tr><td>{html.escape(name)}</td>{cells}</tr>" in page
    for score in segmentation:
        assert f"<td>{score.name}</td><td>{score.text}</td>" in page
    for text in (
        "losses",
        "learning rate",
        "validation, mIoU %",
        "one.png",
        "Confusion matrix of val",
        "effective_batch",
        "max_iters: 4",
    ):
        assert text in page, text
    assert [f'data-name="{name}"' in page for name in ("photo", "CAM", "pseudo label", "segmentation")] == [True] * 4


def test_differences_stand_below_table_3(judged):
    _, table3, _, made = judged
    page = made.file.read_text()
    for name in ("AFA (w/o prop.)", "AFA (prop. with MHSA)"):
        both = zip(table3.scores["AFA"], table3.scores[name], strict=True)
        cells = "".join(f"<td>{difference(one.tallies, other.tallies).text}</td>" for one, other in both)
        assert f"<td>AFA - {html.escape(name)}</td>{cells}</tr>" in page
    assert page.count("<td>AFA - ") == 2 and "paired over the images" in page


def test_the_worst_photos_are_those_of_the_scores(judged):
    run, _, segmentation, made = judged
    page, split = made.file.read_text(), open_split(run, "val", None, masks=False)
    values = segmentation[1].images
    order = np.argsort(values, kind="stable")
    section = page.split("whose segmentation scored worst, the worst first")[1].split('id="figures"')[0]
    shown = re.findall(r'<span class="soft">(\w+): [^<]*; mIoU ([\d.]+)</span>', section)
    assert shown == [(split.samples[i].image_path.stem, f"{values[i]:.1f}") for i in order] and len(shown) == 4
    for changed in ({"weights": "others"}, {"data": "others"}):
        kept = {name: {**scores, **changed} for name, scores in report.read_scores(run.folder).items()}
        assert report._worst(run, split, 2, kept) == {}, "scores of other weights or photos rank nothing"
    assert report._worst(run, split, 2, report.read_scores(run.folder)).keys() == {int(i) for i in order[:2]}


def test_the_cost_of_the_training_is_told(judged):
    subtitle = judged[3].file.read_text().split('<p class="soft">')[1].split("</p>")[0]
    assert re.search(r"step 4 of 4; trained in \d+:\d\d, [\d.]+ photos/s, at most [\d.]+ GiB$", subtitle)


def test_each_thing_is_read_once(judged, monkeypatch, tmp_path):
    """Four photos of one split: its labels, its photos, its masks and the caches' records are each read once."""
    run = judged[0]
    counts = Counter()

    def counted(holder, name, key):
        original = getattr(holder, name)

        def call(*arguments, **options):
            counts[key(*arguments)] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(holder, name, call)

    counted(folder, "read_tags", lambda root: "labels")
    counted(folder, "read_rows", lambda root: "labels")
    counted(trained_run, "load_split", lambda kind, root, split, *rest: f"split {split}")
    counted(figures, "load_split", lambda kind, root, split, *rest: f"split {split}")
    counted(figures, "read_image", lambda path: path.name)
    counted(masks, "read_mask", lambda path, *rest: f"mask {path.name}")
    counted(report, "read_scores", lambda run: "scores")
    counted(report, "read_metrics", lambda run: "metrics")
    counted(report, "read_manifest", lambda run: "manifest")
    write_report(run, out=tmp_path / "page.html", photos=4)
    assert len([name for name in counts if name.endswith(".png") and not name.startswith("mask")]) == 4
    assert counts["labels"] == counts["split val"] == counts["metrics"] == 1 and set(counts.values()) == {1}, counts


def test_the_page_loads_nothing(judged):
    page = judged[3].file.read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,40})', page)
    assert sources and all(source.startswith(("data:image/", "#")) for source in sources)
    assert "default-src 'none'" in page and "@import" not in page and "url(" not in page


def test_a_run_that_was_never_judged_says_what_to_do(run_copy, tmp_path):
    run = open_run(run_copy, CPU)
    with pytest.raises(DataError, match="nowhere: expected a folder"):
        write_report(run, data=tmp_path / "nowhere", out=tmp_path / "deep" / "page.html")
    settings = run.preset.data.model_copy(update={"root": tmp_path / "nowhere"})  # it was there for the training
    run = run._replace(preset=run.preset.model_copy(update={"data": settings}))
    made = write_report(run, out=tmp_path / "deep" / "page.html")
    page = made.file.read_text()
    assert (
        f"afactl pseudo-eval --split train --run {run_copy}" in page
        and "afactl eval --split val" in page
        and "No photos:" in page
    )
    assert [text.split(":")[0] for text in made.missing] == ["pseudo labels", "segmentation", "No photos"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--out .*cannot be written"):
        write_report(run, out=tmp_path / "file" / "page.html", photos=0)


def test_scores_of_other_weights_are_marked(judged, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(judged[0].folder, folder)
    write_report(judged[0]._replace(folder=folder, weights_hash="others"), photos=0)
    assert (folder / "report.html").read_text().count("other weights than those of this page") == 2


def test_a_row_without_afa_comes_from_the_other_run(judged, tmp_path):
    write_report(judged[0], out=tmp_path / "page.html", without_afa=judged[0].folder, photos=0)
    first = judged[1].scores["AFA (w/o prop.)"]
    assert (
        f"<tr><td>w/o AFA</td><td>{first[0].text}</td><td>{first[1].text}</td></tr>"
        in (tmp_path / "page.html").read_text()
    )


def test_names_are_escaped(judged, tmp_path):
    """A class, a photo and a run named like HTML stay names."""
    folder = tmp_path / "<b>run"
    shutil.copytree(judged[0].folder, folder)
    evil = '<img src=x onerror="alert(1)">'
    scores = json.loads((folder / "scores" / "segmentation-val.json").read_text())
    scores["classes"][0] = evil
    (folder / "scores" / "segmentation-val.json").write_text(json.dumps(scores))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, evil: evil}))
    (folder / "figures" / "one.png").rename(folder / "figures" / "<script>.png")
    write_report(judged[0]._replace(folder=folder), photos=1)
    page = (folder / "report.html").read_text()
    assert evil not in page and html.escape(evil, quote=False).replace('"', "&#34;") in page
    assert "<b>run" not in page and "&lt;script&gt;.png" in page and page.count("<script>") == 1


@pytest.mark.skipif(
    CHROMIUM is None, reason="the page is not opened: no Chromium here (Debian: apt-get install chromium)"
)
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(judged, tmp_path, width):
    """No error, the slider moves, no sideways scrolling on a phone. The page stands in a frame of that width."""
    page = judged[3].file.read_text().replace("</head>", MOVES + "</head>")
    frame = f'<!doctype html><iframe id="f" style="width:{width}px;height:2000px;border:0"'
    frame += f' srcdoc="{html.escape(page)}"></iframe><script>f.onload = () => setTimeout('
    frame += "() => { document.title = f.contentDocument.body.dataset.seen }, 200)</script>"
    (tmp_path / "frame.html").write_text(frame)
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--window-size=1400,2100",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=8000",
            "--dump-dom",
            str(tmp_path / "frame.html"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title, done.stderr[-2000:]
    seen = json.loads(html.unescape(title[1]))
    assert seen["errors"] == [] and "CONSOLE" not in done.stderr, done.stderr[-2000:]
    assert seen["inner"] == width and seen["width"] <= width, "nothing to scroll sideways"
    assert seen["broken"] == 0 and seen["small"] == 0
    assert len(seen["looks"]) == (2 + 4) * 4, "two photos, and the four worst"
    for value, name, opacity in seen["looks"]:
        assert name == {0: "photo", 1: "CAM", 1.5: "pseudo label", 3: "segmentation"}[value]
        assert opacity == [max(0, min(1, value - i + 1)) for i in range(4)]
