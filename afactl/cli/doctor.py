"""What this machine has, and what is missing for which command."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import typer

from afactl import __version__
from afactl.cli.options import JsonOption, OverwriteOption
from afactl.errors import AfactlError, first_line
from afactl.files import nearest_existing, require_free
from afactl.machine.terminal import out, table, write_json

app = typer.Typer(rich_markup_mode=None)


class Finding(NamedTuple):
    """One line of the report.

    Attributes:
        advice: what to do, or "" where nothing is wrong.
        broken: a job cannot run at all.
    """

    what: str
    found: str
    advice: str = ""
    broken: bool = False


REQUIRED = ("numpy", "h5py", "PIL", "pydantic", "safetensors", "matplotlib", "huggingface_hub", "filelock", "jinja2")
OPTIONAL = (
    (
        "pydensecrf.densecrf",
        "pydensecrf2",
        "for --crf-backend pydensecrf: pip install 'afactl[crf]' (needs a C++ compiler)",
    ),
    ("pycocotools.mask", "pycocotools", "for COCO masks: pip install 'afactl[coco]'"),
    ("ijson", "ijson", "for COCO annotations: pip install 'afactl[coco]'"),
    ("scipy.io", "scipy", "for SBD's .mat files: pip install 'afactl[sbd]'"),
)


def examine() -> list[Finding]:
    """Everything worth knowing before a job or in a bug report."""
    findings = [
        Finding("afactl", __version__),
        Finding("python", f"{platform.python_version()} on {platform.platform()}"),
        *_torch(),
    ]
    for module in REQUIRED:
        findings.append(_package(module, module, f"pip install {module}", broken=True))
    for module, distribution, advice in OPTIONAL:
        findings.append(_package(module, distribution, advice, broken=False))
    findings += _added()
    findings += _weights()
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    advice = "" if compiler else "needed to install the extra [crf] only"
    findings.append(Finding("C++ compiler", compiler or "none", advice))
    cache = Path(os.environ.get("AFACTL_CACHE") or Path.home() / ".cache" / "afactl")
    findings.append(_folder("cache folder", cache))
    findings.append(_folder("working folder", Path.cwd()))
    if Path("/dev/shm").is_dir():
        findings.append(_shared_memory(shutil.disk_usage("/dev/shm").free / 1e9))
    return findings


def _shared_memory(free: float) -> Finding:
    """Workers hand their photos over through it; containers often get 64 MB."""
    advice = (
        "" if free > 0.5 else "too little for workers: start the container with --shm-size=2g, or --set train.workers=0"
    )
    return Finding("shared memory", f"{free:.1f} GB free", advice)


def _torch() -> list[Finding]:
    try:
        import torch
    except Exception as error:
        return [Finding("torch", f"cannot be imported: {error}", "pip install --force-reinstall torch", broken=True)]
    from afactl.machine.devices import accelerators, why_not

    there = accelerators()
    cuda = ", ".join(there.pop("cuda", [])) or f"none usable ({why_not('cuda')})"
    # torch may find further kinds of devices, which others bring.
    untried = "known to torch, but those who wrote afactl have not tried one"
    others = [Finding(kind.upper(), ", ".join(names), f"--device {kind}: {untried}") for kind, names in there.items()]
    return [
        Finding("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        Finding("CUDA", cuda),
        *others,
        *_torchvision(torch.__version__),
    ]


def _torchvision(torch_version: str) -> list[Finding]:
    """It is not needed here, but timm and others import it, and fail obscurely where it was built for another torch."""
    try:
        version = importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return []
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        advice = "built for another torch; install both from one place: pip install --force-reinstall torch torchvision"
        return [
            Finding("torchvision", f"{version} does not go with torch {torch_version} ({first_line(error)})", advice)
        ]
    return [Finding("torchvision", version)]


def _package(module: str, distribution: str, advice: str, broken: bool) -> Finding:
    try:
        importlib.import_module(module)
    except Exception as error:
        return Finding(distribution, f"missing ({error})", advice, broken)
    names = _distributions().get(module.partition(".")[0], [distribution])
    return Finding(distribution, importlib.metadata.version(names[0]))


def _added() -> list[Finding]:
    """What installed packages add by entry points, and which of it cannot be used."""
    try:
        from afactl.datasets.registry import FORMATS
        from afactl.inference.refiners import REFINERS
        from afactl.network.backbones import BACKBONES
        from afactl.prediction.registry import WRITERS
    except ImportError:  # of torch or another package that is told about above
        return []
    findings = []
    for registry in (BACKBONES, FORMATS, REFINERS, WRITERS):
        for name in registry.added():
            owners = " and ".join(provider.owner for provider in registry.providers(name))
            try:
                registry.get(name)
                advice = ""
            except AfactlError as error:
                advice = str(error)
            findings.append(Finding(f"{registry.setting} {name}", f"from {owners}", advice))
    return findings


def _weights() -> list[Finding]:
    """What the shipped presets start from, and whether a training with them needs a network."""
    try:
        from afactl.runs.weights_at_hand import needed_weights

        needed = needed_weights()
    except ImportError:  # of a package that is told about above
        return []
    return [
        Finding(
            f"weights {weights.name}",
            f"{'here' if weights.here else 'to be fetched'}; {weights.licence}; for {', '.join(weights.presets)}",
        )
        for weights in needed
    ]


@lru_cache(maxsize=1)
def _distributions() -> Mapping[str, list[str]]:
    """Package -> names under which it is installed; reading them all takes half a second."""
    return importlib.metadata.packages_distributions()


def _folder(what: str, folder: Path) -> Finding:
    existing = nearest_existing(folder)
    free = shutil.disk_usage(existing).free / 1e9
    if not os.access(existing, os.W_OK):
        return Finding(what, f"{folder}, not writable", "give another folder (AFACTL_CACHE, --out)")
    return Finding(
        what, f"{folder}, {free:.1f} GB free", "" if free > 2 else "less than 2 GB free: make room before a long job"
    )


@app.command(
    epilog="Example: afactl doctor --json doctor.json", short_help="Report versions, devices and what is missing."
)
def doctor(json_file: JsonOption = None, overwrite: OverwriteOption = False) -> None:
    """Report versions, devices and what is missing, with the way to mend it."""
    require_free([("--json", json_file)], overwrite)
    findings = examine()
    out.print(table("doctor", ("what", "found"), [(finding.what, finding.found) for finding in findings], texts=2))
    for finding in findings:
        if finding.advice:
            out.print(f"{finding.what}: {finding.advice}")
    if json_file is not None:
        write_json(json_file, [finding._asdict() for finding in findings])
    if any(finding.broken for finding in findings):
        raise typer.Exit(1)
