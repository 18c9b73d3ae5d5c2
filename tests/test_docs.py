"""The documentation says what the code does: every command, option and key; every command line in it runs or parses."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from afactl.cli.main import app, main
from afactl.datasets import demo
from afactl.presets import field_names, load_preset, preset_names
from tests.conftest import TINY, train_tiny
from tests.test_layers import MODULES, WALLS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def every_command(commands, before=""):
    """(full name, command), those of groups too."""
    for name, command in commands.items():
        below = getattr(command, "commands", None)
        yield from every_command(below, f"{before}{name} ") if below else [(f"{before}{name}", command)]


COMMANDS = dict(every_command(typer.main.get_command(app).commands))


BLOCK = re.compile(r"(?:<!-- (needs|file): ([^>]*?) -->\n)?```(\w*)\n(.*?)```", re.DOTALL)
# What a block may need that is not here; every other one is run.
MISSING = {"VOC", "COCO", "GPU", "weights", "installation"}


def blocks(page):
    """(kind of marker, its words, language, text) of a page's code blocks."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def lines_of(text):
    """The commands of a block, without what a shell would take from them."""
    joined = (line.removeprefix("$ ").strip() for line in text.replace("\\\n", " ").splitlines())
    return [shlex.split(line, comments=True) for line in joined if line and not line.startswith("#")]


def command_lines(page):
    """Calls of afactl in a page's console blocks."""
    for _, _, language, text in blocks(page):
        for words in lines_of(text) if language in ("console", "bash", "sh") else ():
            if "afactl" in words and "[OPTIONS]" not in words:
                yield words[words.index("afactl") + 1 :]


CALLS = [
    pytest.param(page, call, id=f"{page.name}: {shlex.join(call)}") for page in PAGES for call in command_lines(page)
]


def test_the_pages_show_commands():
    shown = {call.values[1][0] for call in CALLS}
    assert len(CALLS) > 12 and shown >= {"train", "pseudo-eval", "eval", "ablate", "viz-attn", "predict"}


@pytest.mark.parametrize(("page", "call"), CALLS)
def test_every_command_line_of_the_docs_parses(page, call):
    length = next(n for n in (3, 2, 1) if shlex.join(call[:n]) in COMMANDS)
    name, arguments = " ".join(call[:length]), call[length:]
    context = COMMANDS[name].make_context(name, list(arguments))
    if name == "train" and (preset := context.params["preset"]) in preset_names():
        load_preset(preset, context.params["overrides"] or [])


@pytest.mark.parametrize("name", COMMANDS)
def test_the_reference_holds_every_option(name):
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    section = page.split(f"## `afactl {name}`")[1].split("\n## ")[0]
    for parameter in COMMANDS[name].params:
        if parameter.param_type_name == "option":
            assert f"`{max(parameter.opts, key=len)}" in section, (
                f"run python docs/build_reference.py: {parameter.name}"
            )
            assert not parameter.help or parameter.help in section, (
                f"run python docs/build_reference.py: {parameter.name}"
            )


@pytest.fixture(scope="module")
def reference():
    """The script that writes pages from the code."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        yield importlib.import_module("build_reference")
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize("name", ["presets", "errors", "architecture"])
def test_pages_that_follow_from_the_code_are_current(reference, name):
    written = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert written == getattr(reference, f"{name}_page")(), "run python docs/build_reference.py"


def test_the_reference_is_complete():
    page = (ROOT / "docs" / "presets.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in field_names())
    assert (ROOT / "docs" / "errors.md").read_text(encoding="utf-8").count("<code>") > 120


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_tree_is_that_of_the_package():
    """Every file that git would take and every folder, at its place; and a sentence beside each module."""
    tree = re.search(r"```\n(afactl/ .*?)```", ARCHITECTURE, re.DOTALL)[1]
    shown, folders = set(), {}
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 4
        name, _, sentence = line.strip().partition(" ")
        assert sentence.strip() or not name.endswith((".py", "/")), f"{name} has no docstring"
        folders[depth] = name
        if not name.endswith("/"):
            shown.add("".join(folders[level] for level in range(depth)) + name)
    real = {path.relative_to(ROOT).as_posix() for path in (ROOT / "afactl").rglob("*") if path.is_file()}
    assert shown == {path for path in real if "__pycache__" not in path and not path.endswith("__init__.py")}


def test_the_table_of_rooms_has_every_room_in_its_order():
    rows = [row.split("|")[1] for row in ARCHITECTURE.splitlines() if row.startswith("| `")]
    named = [name.rstrip("/").removesuffix(".py") for row in rows for name in re.findall(r"`([\w./]+)`", row)]
    rooms = [room for room in WALLS if not room.startswith("__")]
    assert [name for name in named if (ROOT / "afactl" / name).is_dir()] == [
        room for room in rooms if (ROOT / "afactl" / room).is_dir()
    ]
    assert set(named) == set(rooms)


FILES = (
    "jpg",
    "png",
    "csv",
    "json",
    "jsonl",
    "txt",
    "xml",
    "html",
    "h5",
    "zip",
    "tar",
    "tgz",
    "pth",
    "safetensors",
    "toml",
)
NAMES = [
    pytest.param(page, name, id=f"{page.name}: {name}")
    for page in PAGES
    for name in sorted(
        set(re.findall(r"`((?:\w+[./])+\w+)`", re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)))
    )
    if name.rpartition(".")[2] not in FILES and "NAME" not in name
]


@pytest.mark.parametrize(("page", "name"), NAMES)
def test_names_in_the_pages_are_where_they_are_said_to_be(page, name):
    """A file from the project's folder on or the package's (or a benchmark), a key, a model, or a dotted name."""
    if "/" in name or name.endswith(".py"):
        places = [ROOT, ROOT / "afactl", *([ROOT / "benchmarks"] if page.name == "performance.md" else [])]
        assert any((place / name).exists() for place in places)
    elif name.startswith("vit_"):
        assert importlib.import_module("timm").is_model(name)  # slow to import, and needed here alone
    elif name not in field_names():
        resolve(name.removeprefix("afactl."))


def resolve(name):
    """What a dotted name below the package stands for."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        module = ROOT.joinpath("afactl", *parts[:length])
        if module.with_suffix(".py").is_file() or (module / "__init__.py").is_file():
            found = importlib.import_module(".".join(["afactl", *parts[:length]]))
            for part in parts[length:]:
                found = getattr(found, part)
            return found
    raise AssertionError(f"{name}: no such module, nor a key of a preset")


RUN_PAGES = [page for page in PAGES if page.name != "cli.md"]
# These are read first, so nothing is there yet but a home folder. All other pages say that they come after the demo.
DRAWN = {"train": 24, "val": 4, "size": 64}
FIRST_PAGES = ("README.md", "index.md", "install.md")
PLACES = [
    pytest.param(page, after, id=f"{page.name}{' after the demo' if after and page.name in FIRST_PAGES else ''}")
    for page in RUN_PAGES
    for after in ((False, True) if page.name in FIRST_PAGES else (True,))
]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty working folder in a home folder of its own, where the demo draws few small pictures."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    for name, value in {"HOME": home, "USERPROFILE": home, "MPLCONFIGDIR": tmp_path / "fonts"}.items():
        monkeypatch.setenv(name, str(value))
    for name in ("AFACTL_RUN", "AFACTL_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in DRAWN.items():
        monkeypatch.setitem(demo.generate.__kwdefaults__, name, value)
    monkeypatch.chdir(work)
    return home


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    """A tiny run on as many pictures as the demo draws here."""
    data = demo.generate(tmp_path_factory.mktemp("drawn") / "demo", **DRAWN)
    return train_tiny(data, tmp_path_factory.mktemp("runs") / "demo").run


def run_the_demo(run):
    """What `make demo` leaves for the next page: its pictures and its run."""
    demo.generate(demo.default_folder())
    shutil.copytree(run, "runs/demo")


@pytest.mark.parametrize(("page", "after_the_demo"), PLACES)
def test_every_command_of_a_page_runs(page, after_the_demo, home, demo_run, capsys):
    """One after the other, on few pictures, in the folder where a reader stands."""
    if after_the_demo:
        run_the_demo(demo_run)
    done = 0
    for kind, words, language, text in blocks(page):
        if kind == "file":
            assert text.count("\n") < 40, f"{words} is to be under 40 lines"
            Path(words).write_text(text)
        elif kind == "needs":
            assert set(words.split(", ")) <= MISSING, f"{page.name}: {words}"
        elif language in ("console", "bash", "sh"):
            for call in lines_of(text):
                run_line(call, capsys)
                done += 1
    assert done or page.name not in ("README.md", "index.md", "own-data.md", "table3.md", "jobs.md", "extending.md")


def run_line(call, capsys):
    """A line of a page as a shell runs it; a training becomes a tiny one."""
    call = [os.path.expanduser(word) for word in call]
    if call[:2] == ["cp", "-r"]:
        shutil.copytree(*call[2:])
        return
    if call[:2] == ["python", "-c"]:
        subprocess.run([sys.executable, *call[1:]], check=True)
        return
    command = next(call[i + 1] for i, word in enumerate(call) if word == "afactl" or word.endswith(".py"))
    tiny = [part for override in TINY for part in ("--set", override)]
    if command == "train" and "--resume" not in call:
        call = [*call, *tiny]
    if command == "ablate" and "--preset" in call:
        call = [*call, *tiny]
    if call[0] == "afactl":
        with pytest.raises(SystemExit) as stopped:
            main(call[1:])
        assert not stopped.value.code, f"{shlex.join(call)}: {capsys.readouterr().err}"
        return
    # Another process would draw the demo's pictures in their full number and size.
    if command == "train" and "--data" not in call:
        call = [*call, "--data", str(demo.default_folder())]
    if call[1] == "watched.py":
        call = [*call, f"data.root={demo.default_folder()}"]
    programs = {"python": [sys.executable], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}
    finished = subprocess.run([*programs[call[0]], *call[1:]], capture_output=True, text=True)
    assert finished.returncode == 0, f"{shlex.join(call)}: {finished.stderr}"


@pytest.mark.parametrize(
    "page", [page for page in RUN_PAGES if page.name not in FIRST_PAGES], ids=lambda page: page.name
)
def test_a_page_after_the_demo_says_so(page):
    """Where its commands run, before the first of them."""
    before, fence, _ = page.read_text(encoding="utf-8").partition("```console")
    runs = [language for kind, _, language, _ in blocks(page) if kind != "needs" and language == "console"]
    assert not (fence and runs) or "demo" in before


def test_the_area_of_each_class_is_printed(home, demo_run, capsys):
    """The block of docs/masks.md, after the command before it."""
    run_the_demo(demo_run)
    page = blocks(ROOT / "docs" / "masks.md")
    (block,) = [text for _, _, language, text in page if language == "python"]
    for call in lines_of(next(text for _, _, language, text in page if language == "console")):
        run_line(call, capsys)
    capsys.readouterr()
    exec(block, {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[0].startswith("0000, background ")
    assert sum(float(share) for share in re.findall(r"([\d.]+)%", lines[0])) == pytest.approx(100, abs=0.5)


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="the site needs the extra [docs]")
    site = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert site.returncode == 0, site.stderr
    for page in (ROOT / "docs").glob("*.md"):
        assert (tmp_path / ("index.html" if page.stem == "index" else f"{page.stem}/index.html")).is_file()
    assert "cdn" not in (tmp_path / "index.html").read_text()


def test_troubleshooting_speaks_of_messages_that_there_are():
    """The first column of the first table, piece by piece, is found among the messages of the code."""
    source = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "afactl").rglob("*.py"))
    table = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").split("Not an error message of")[0]
    rows = re.findall(r"^\| `(.+?)` ", table, re.MULTILINE)
    assert len(rows) > 14
    for row in rows:
        pieces = [
            piece.strip()
            for piece in re.split(r"`, `|\.\.\.|0\.\.C|W x H|runs/|voc|train_aug|checkpoints/last|last\.old|hf:|#", row)
            if len(piece.strip()) > 6
        ]
        assert pieces and all(piece in source for piece in pieces), row


def test_links_between_pages_lead_somewhere():
    for page in [*PAGES, ROOT / "tests" / "golden" / "README.md"]:
        for target in re.findall(r"(?:\]\(|^\[[^]\n]+\]: )([^)#\s]+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_make_shows_what_it_would_do():
    """The Makefile parses and its demo goes through the first commands."""
    result = subprocess.run(
        ["make", "--dry-run", "demo", "VENV=/nowhere"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    for part in ("train demo", "pseudo-eval --split train", "viz-attn --query 60,50", "--crf", "report"):
        assert part in result.stdout


def test_the_diagram_names_functions_that_exist():
    """Its boxes are small: a function stands there by its module, or alone where it is the chain's own."""
    drawing = (ROOT / "docs" / "data-way.svg").read_text(encoding="utf-8")
    texts = re.findall(r'monospace">([^<]+)<', drawing)
    functions = [text for text in texts if "." in text]
    assert len(functions) > 8 and len(texts) == drawing.count("<rect x=")
    for text in functions:
        stem, _, name = text.partition(".")
        owners = [
            resolve(".".join(path.relative_to(ROOT / "afactl").with_suffix("").parts))
            for path in MODULES
            if path.stem == stem
        ]
        assert any(hasattr(owner, name) or hasattr(getattr(owner, "AFA", None), name) for owner in owners), text
    for text in texts:
        if text.endswith("_label") and "." not in text:
            resolve(f"method.pseudo_labels.{text}")
        elif "." not in text:
            assert all(
                (ROOT / "afactl" / part).exists() or [path for path in MODULES if path.stem == part]
                for part in text.split(", ")
            )


WORDS = {
    "cam": r"\bCAMs?\b",
    "par": r"\bPAR\b",
    "mhsa": r"\bMHSA\b",
    "crf": r"\bCRF\b",
    "miou": r"\bmIoU\b",
    "pseudo-label": r"\b[Pp]seudo labels?\b",
    "affinity": r"\baffinity\b",
    "preset": r"\bpresets?\b",
    "image-level-labels": r"\bimage-level labels\b",
    "background-threshold": r"\bbackground thresholds?\b",
    "propagation": r"\b[Pp]ropagation\b",
}
WRITTEN = ("cli", "errors", "presets", "glossary", "changelog", "contributing")  # by a script, or of other files


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem not in WRITTEN], ids=lambda page: page.name)
def test_words_of_the_glossary_are_linked(page):
    """Every page that uses one in its text links to it."""
    text = page.read_text(encoding="utf-8")
    running = re.sub(r"(?s)```.*?```|`[^`\n]*`|!\[.*?\]\(.*?\)", "", text)
    running = re.sub(r"(?m)^[#|].*$", "", running)
    used = [word for word, pattern in WORDS.items() if re.search(pattern, running)]
    assert [word for word in used if not re.search(rf"glossary\.md#{word}\b", text)] == []
