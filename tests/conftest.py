"""Fixtures for all tests: the shared material, and a cache folder that is not the user's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared test material (`$AFACTL_SHARED`, default `../shared`); the test is skipped without it."""
    folder = Path(os.environ.get("AFACTL_SHARED", ROOT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"shared test material not found at {folder}; set AFACTL_SHARED")
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Keep generated data out of the user's cache folder."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("AFACTL_CACHE")
    os.environ["AFACTL_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["AFACTL_CACHE"]
    else:
        os.environ["AFACTL_CACHE"] = before
