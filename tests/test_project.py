"""What stands around the package: its metadata, the Makefile, and what runs elsewhere and cannot be tried here."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import afactl

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="pyproject.toml is read by tomllib, of Python 3.11")

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split())
CI = ".github/workflows/ci.yml"


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def steps():
    """Every command that the workflow runs."""
    jobs = yaml.safe_load(read(CI))["jobs"]
    return [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("name", [CI, ".pre-commit-config.yaml", "CITATION.cff"])
def test_files_for_other_programs_parse(name):
    assert isinstance(yaml.safe_load(read(name)), dict)


def test_the_editors_file_parses():
    settings = configparser.ConfigParser()
    settings.read_string("[DEFAULT]\n" + read(".editorconfig"))
    assert settings["*.py"]["max_line_length"] == str(PROJECT["tool"]["ruff"]["line-length"])
    assert settings["Makefile"]["indent_style"] == "tab"


def test_every_target_has_its_rule():
    assert {target for target in TARGETS if re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)} == TARGETS


def test_only_targets_that_exist_are_named():
    hooks = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    entries = [hook["entry"] for repo in hooks for hook in repo["hooks"] if "entry" in hook]
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    shown = [
        line
        for page in pages
        for block in re.findall(r"```\w*\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        for line in block.splitlines()
    ]
    quoted = [text for page in pages for text in re.findall(r"`(make \w+)`", page.read_text(encoding="utf-8"))]
    lines = "\n".join([*steps(), *entries, *read(".ci/run").splitlines(), *shown, *quoted])
    named = re.findall(r"^\s*(?:\$ )?make (?:-\S+ )*(\w+)", lines, re.MULTILINE)
    assert {"check", "test", "wheel", "demo", "coverage"} <= set(named) <= TARGETS


def test_the_workflow_goes_where_users_are():
    """The oldest Python that is promised and a newer one; Linux, macOS and Windows; the checks; the wheel."""
    matrix = yaml.safe_load(read(CI))["jobs"]["test"]["strategy"]["matrix"]["include"]
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    pythons = [one["python"] for one in matrix]
    assert oldest in pythons and min(pythons, key=numbers) == oldest
    promised = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["project"]["classifiers"]))
    assert max(pythons, key=numbers) == max(promised, key=numbers) and min(promised, key=numbers) == oldest
    assert {one["os"].split("-")[0] for one in matrix} == {"ubuntu", "macos", "windows"}
    assert {"make check", "make test", "make wheel"} <= set(steps())


def numbers(version):
    return [int(part) for part in version.split(".")]


def test_extras_that_are_installed_exist():
    extras = set(PROJECT["project"]["optional-dependencies"])
    text = "\n".join([MAKEFILE, read("README.md"), read("CONTRIBUTING.md"), *steps()])
    named = {extra for group in re.findall(r"(?:\.|afactl)\[([\w,]+)\]", text) for extra in group.split(",")}
    assert {"check", "test", "all"} <= named <= extras


def test_checks_come_before_tests():
    script = read(".ci/run")
    assert 0 < script.index("make check") < script.index("make test")


def test_clean_leaves_the_runs_alone():
    """Trained models lie there."""
    clean = subprocess.run(["make", "--dry-run", "clean"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    words = [word.strip("/") for word in clean.split()]
    assert ".venv" in words and "runs" not in words and "." not in words


def test_the_citation_is_of_this_version_and_of_the_paper():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == afactl.__version__ and citation["license"] == PROJECT["project"]["license"]
    paper = citation["preferred-citation"]
    assert [one["family-names"] for one in paper["authors"]] == ["Ru", "Zhan", "Yu", "Du"]
    assert paper["title"].startswith("Learning Affinity from Attention: End-to-End") and paper["year"] == 2022


def test_types_are_shipped():
    """PEP 561: the marker lies in the package that the wheel takes whole."""
    assert (ROOT / "afactl" / "py.typed").is_file()
    assert PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["afactl"]
    assert "Typing :: Typed" in PROJECT["project"]["classifiers"] and PROJECT["tool"]["mypy"]["strict"]


def test_what_the_source_package_takes_is_there():
    assert [
        name for name in PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"] if not (ROOT / name).exists()
    ] == []


def test_nothing_is_ignored_wholesale():
    """Every silenced finding names its code and its reason."""
    mypy = PROJECT["tool"]["mypy"]
    assert not {"ignore_errors", "disable_error_code"} & set(mypy)
    for override in mypy["overrides"]:
        assert set(override) == {"module", "ignore_missing_imports"} and "*" not in override["module"]
    rooms = ("afactl", "tests", "benchmarks", "docs")
    for path in {path for room in rooms for path in (ROOT / room).rglob("*.py")} - {Path(__file__).resolve()}:
        for line in path.read_text(encoding="utf-8").splitlines():
            for marker in re.findall(r"# (?:noqa|type: ignore|fmt: |pragma:|ruff:|mypy:).*", line):
                assert re.fullmatch(r"# (noqa: \w+  \(.+\)|type: ignore\[[\w, -]+\]  # .+)", marker), f"{path}: {line}"


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_a_dockerfile_names_what_there_is(name):
    """No engine runs here: its sources, what the build may see of them, extras, and that it is not root."""
    text = read(f"docker/{name}.Dockerfile")
    sources = [
        part
        for line in text.splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for part in line.split()[1:-1]
    ]
    assert {"pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]} <= set(sources)
    assert set(sources) >= {"afactl", *PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]}
    seen = {line[1:] for line in read(".dockerignore").splitlines() if line.startswith("!")}
    assert set(sources) == seen and all((ROOT / source).exists() for source in sources)
    for extras in re.findall(r"whl\)\[([\w,]+)\]", text):
        assert set(extras.split(",")) <= set(PROJECT["project"]["optional-dependencies"])
    assert re.search(r"^USER [1-9]\d*$", text, re.MULTILINE) and 'ENTRYPOINT ["afactl"]' in text


def test_the_extra_all_has_every_one_that_users_may_want():
    extras = PROJECT["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    wanted = set(re.search(r"\[(.*)\]", everything)[1].split(","))
    assert wanted == set(extras) - {"all", "docs", "test", "check"}
    page = read("docs/install.md")
    assert all(f"`{name}`" in page for name in extras)
