"""The page itself in Chromium, as a person uses it: pointing, moving sliders, typing keys."""

import shutil

import numpy as np
import pytest
from PIL import Image

from afactl.datasets.masks import write_mask
from afactl.explorer.session import Session
from afactl.runs.review import read_review
from tests.conftest import until
from tests.explorer.conftest import page_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="the page is not opened: no Chromium here (Debian: apt-get install chromium)"
)
STRANGE = "<img src=x onerror=document.title=1> & co"


@pytest.fixture(scope="module")
def chromium():
    """A browser for all tests of this file."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, served):
    """The page of the tiny run, with its first photo; nothing may go wrong on it, or leave this machine."""
    context = chromium.new_context(viewport={"width": 1300, "height": 900})
    page = context.new_page()
    page.asked, page.wrong = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("console", lambda message: page.wrong.append(message.text) if message.type == "error" else None)
    page.goto(served)
    settled(page)
    yield page
    assert not [url for url in page.asked if not url.startswith((served, "data:", "blob:"))]
    assert not page.wrong
    context.close()


def settled(page):
    """Wait for all that a photo brings."""
    page.wait_for_function(
        "() => state.photo && state.maps.attention && (!state.photo.truth || state.layers.truth)"
        " && ['pseudo label', 'segmentation + CRF'].every(name => state.layers[name])"
    )


def pixels(page, name):
    """What a canvas shows."""
    return page.evaluate("name => [...panels[name].canvas.getContext('2d').getImageData(0, 0, 64, 64).data]", name)


def clicked(page, name, x, y):
    """Click on a pixel of a photo of 64 x 64."""
    box = page.evaluate("name => { const b = panels[name].canvas.getBoundingClientRect(); return b.toJSON() }", name)
    page.locator(f"canvas >> nth={[*page.evaluate('Object.keys(panels)')].index(name)}").click(
        position={"x": (x + 0.5) * box["width"] / 64, "y": (y + 0.5) * box["height"] / 64}
    )


def test_pointing_changes_the_maps_at_once(page):
    before = pixels(page, "attention"), pixels(page, "affinity")
    clicked(page, "photo", 5, 60)
    page.wait_for_timeout(300)
    assert page.evaluate("state.point") == [5, 60]
    assert pixels(page, "attention") != before[0] and pixels(page, "affinity") != before[1]
    with page.expect_response(lambda answer: "/api/maps" in answer.url):
        clicked(page, "segmentation", 50, 20)
    assert until(lambda: page.evaluate("location.hash").endswith("x=50&y=20"))


def test_the_point_moves_by_keys_and_stays_inside(page):
    page.evaluate("panels.photo.canvas.focus()")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    token = 64 / page.evaluate("state.photo.grid[0]")
    assert page.evaluate("state.point") == [round(32 + token), round(32 - token)]
    for _ in range(12):
        page.keyboard.press("ArrowUp")
    assert page.evaluate("state.point[1]") == 0


def slide(page, key, value):
    with page.expect_response(lambda answer: "/api/label" in answer.url and f"{key}={value}" in answer.url):
        page.evaluate(
            "([key, value]) => { const one = document.getElementById(key); one.value = value;"
            " one.dispatchEvent(new Event('input')) }",
            [key, value],
        )
    page.wait_for_timeout(200)


def test_sliders_change_the_label_its_score_and_the_options(page):
    before, score = pixels(page, "pseudo label"), page.inner_text("#score")
    assert page.inner_text("#set") == "" and "mIoU" in score
    slide(page, "cam.beta_high", 0.99)
    changed = pixels(page, "pseudo label")
    assert changed != before and page.inner_text("#score") != score
    assert page.inner_text("#set") == "--set cam.beta_high=0.99"
    slide(page, "par.iterations", 0)
    assert pixels(page, "pseudo label") != changed
    page.select_option("#walk", "off")
    page.select_option("#refiner", "crf")
    assert page.inner_text("#set") == (
        "--set cam.refiner=crf --set cam.beta_high=0.99 --set par.iterations=0 --set affinity.enabled=false"
    )
    with page.expect_response(lambda answer: "/api/label" in answer.url):
        page.click("#reset")
    page.wait_for_timeout(300)
    assert page.inner_text("#set") == "" and pixels(page, "pseudo label") == before


def test_beta_low_takes_beta_high_along(page):
    slide(page, "cam.beta_low", 0.8)
    assert page.evaluate("[document.getElementById('cam.beta_low').value, values()['cam.beta_high']]") == ["0.8", "0.8"]


def test_the_options_are_copied(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    slide(page, "affinity.radius", 1)
    page.click("#copy")
    assert until(lambda: page.evaluate("document.getElementById('status').textContent === 'copied'"))
    assert page.evaluate("navigator.clipboard.readText()") == "--set affinity.radius=1"


def test_under_the_pointer_stand_class_and_probability(page, session):
    photo = session.opened(next(iter(session._opened)))
    classes = ["background", *session.run.architecture.classes]
    mask = photo.mask("segmentation")
    page.evaluate("panels.segmentation.canvas.scrollIntoView({block: 'center'})")
    for x, y in ((3, 3), (40, 30), (63, 63)):
        box = page.evaluate("panels.segmentation.canvas.getBoundingClientRect().toJSON()")
        page.mouse.move(box["x"] + (x + 0.5) * box["width"] / 64, box["y"] + (y + 0.5) * box["height"] / 64)
        told = page.evaluate("panels.segmentation.value.textContent")
        name, probability = told.rsplit(", ", 1)
        assert name == classes[mask.label[y, x]]
        assert float(probability) == pytest.approx(mask.probability[y, x], abs=0.01)
        assert page.evaluate("panels.truth.value.textContent") == classes[photo.truth[y, x]]


def test_verdicts_go_on_by_keys_and_survive_a_reload(page, session):
    file = session.run.folder / "review.csv"
    ids = [entry["id"] for entry in session.photos("val")["photos"]]
    for key, after in zip("kwu", ids[1:], strict=True):
        with page.expect_response(lambda answer: "/api/verdict" in answer.url):
            page.keyboard.press(key)
        page.wait_for_function("after => state.place.photo === after", arg=after)
    settled(page)
    assert [*read_review(file).values()] == ["keep", "wrong", "unsure"]
    assert page.evaluate("state.place.photo") == ids[3]
    page.reload()
    settled(page)
    assert page.evaluate("state.place.photo") == ids[3]
    assert page.inner_text("#counts") == "1 keep, 1 wrong, 1 unsure"
    assert [entry["verdict"] for entry in page.evaluate("state.list")] == ["keep", "wrong", "unsure", ""]
    page.keyboard.press("p")
    page.wait_for_function("before => state.place.photo === before", arg=ids[2])
    settled(page)
    assert page.get_attribute("[data-verdict=unsure]", "aria-pressed") == "true"
    with page.expect_response(lambda answer: "/api/verdict" in answer.url):
        page.click("[data-verdict=unsure]")  # the same again takes it back
    assert until(lambda: page.evaluate("document.getElementById('counts').textContent === '1 keep, 1 wrong, 0 unsure'"))
    assert page.evaluate("state.place.photo") == ids[2]


def test_the_list_is_searched_and_ordered(page):
    page.select_option("#order", "worst")
    assert until(lambda: page.evaluate("state.list[0].miou !== undefined"))
    values = page.evaluate("state.list.map(entry => entry.miou)")
    assert values == sorted(values) and f"mIoU {values[0]:.1f}" in page.inner_text("#photos")
    page.select_option("#order", "doubt")
    assert until(lambda: page.evaluate("state.list.length === 4 && state.list[0].entropy !== undefined"))
    page.fill("#search", "0002")
    assert until(lambda: page.evaluate("state.list.length === 1"))
    page.fill("#search", "nothing is called so")
    assert until(lambda: page.evaluate("state.list.length === 0"))
    assert page.inner_text("#found") == "0 photos"


def test_a_photo_of_ones_own_is_dropped_and_explored(page, tmp_path):
    file = tmp_path / f"{STRANGE.replace('/', '')}.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(file)
    page.set_input_files("#own", file)
    assert until(lambda: page.evaluate("state.place.split === 'own'"))
    settled(page)
    assert page.inner_text("#name") == file.name and "found by the network" in page.inner_text("#tags")
    assert page.is_disabled("[data-verdict=keep]") and "no true mask" in page.inner_text("#tags")
    assert not page.is_visible("canvas >> nth=-1")  # that of the truth


def test_what_is_seen_is_saved_as_a_figure(page, session):
    page.click("#figure")
    assert until(lambda: page.evaluate("document.getElementById('status').textContent.startsWith('saved: ')"))
    assert [*(session.run.folder / "figures").glob("explored-*.png")]


def test_a_run_that_is_removed_is_said_and_the_page_stays(page, session):
    shutil.rmtree(session.run.folder)
    page.keyboard.press("k")
    assert until(lambda: page.evaluate("document.getElementById('status').textContent.includes('the run is gone')"))
    assert page.get_attribute("#status", "class") == "wrong"
    clicked(page, "photo", 1, 1)
    page.wait_for_timeout(300)
    assert page.evaluate("state.point") == [1, 1]
    page.wrong.clear()  # Chromium notes every answer with a status of 400


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen(chromium, served, scheme):
    context = chromium.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme, has_touch=True)
    page = context.new_page()
    page.goto(served)
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator("canvas").nth(0).tap(position={"x": 20, "y": 30})
    assert until(lambda: page.evaluate("state.point[0] < 10"))
    context.close()


def test_names_like_html_stay_text(chromium, run, tmp_path):
    data = tmp_path / "data"
    (data / "images" / "val").mkdir(parents=True)
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(data / "images" / "val" / f"{STRANGE}{number}.png")
        write_mask(data / "masks" / "val" / f"{STRANGE}{number}.png", np.ones((64, 64), np.uint8))
    classes = [STRANGE, *run.architecture.classes[1:]]
    (data / "classes.txt").write_text("\n".join(classes), encoding="utf-8")
    lines = [f'"images/val/{STRANGE}{number}.png","{STRANGE}"' for number in range(2)]
    (data / "labels.csv").write_text("image,labels\n" + "\n".join(lines) + "\n", encoding="utf-8")
    settings = run.preset.data.model_copy(update={"name": "folder"})
    strange = run._replace(
        preset=run.preset.model_copy(update={"data": settings}),
        architecture=run.architecture._replace(classes=tuple(classes)),
    )
    with page_of(Session(strange, data)) as url:
        page = chromium.new_page()
        page.goto(url)
        settled(page)
        assert page.inner_text("#name").endswith(f"{STRANGE}0") and STRANGE in page.inner_text("#tags")
        assert page.evaluate("document.querySelectorAll('img[onerror], img[src=x]').length") == 0
        assert page.title() != "1" and STRANGE in page.inner_text("#legend")
        page.close()
