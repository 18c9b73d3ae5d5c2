"""What of a backbone stays as it is while the rest learns."""

import copy

import pytest
import torch

from afactl.errors import PresetError
from afactl.network.backbones import build_backbone
from afactl.network.freezing import freeze

NAMES = ("mit_demo", "pvt_v2_b0", "vit_tiny_patch16_224", "hybrid:tf_efficientnet_lite0", "hybrid:convnext_atto")


def changed(backbone):
    """Names of the parameters and statistics that a step changes."""
    before = copy.deepcopy(backbone.state_dict())
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    output = backbone.train()(torch.randn(2, 3, 64, 64))
    loss = sum(features.square().mean() for features in output.features)
    (loss + (output.queries * output.keys).mean()).backward()
    optimizer.step()
    return {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}


def is_of(name, parts):
    return any(name.startswith(f"{part}.") for part in parts)


@pytest.fixture(scope="module", params=NAMES)
def backbone(request):
    torch.manual_seed(0)
    return build_backbone(request.param, drop_path=0.0)


def test_the_blocks_are_parts_in_order_and_most_of_the_backbone(backbone):
    names = [name for names in backbone.block_names() for name in names]
    assert len(names) == len(set(names)) and not set(names) & set(backbone.fresh)
    for name in names:
        backbone.get_submodule(name)
    own = {name: p.numel() for name, p in backbone.named_parameters() if not is_of(name, backbone.fresh)}
    assert sum(count for name, count in own.items() if is_of(name, names)) > 0.9 * sum(own.values())


def test_all_but_the_last_blocks(backbone):
    mine = copy.deepcopy(backbone)
    freeze(mine, 1)
    last = (*mine.block_names()[-1], *mine.fresh)
    moved = changed(mine)
    assert moved and all(is_of(name, last) for name in moved)
    assert any(is_of(name, mine.block_names()[-1]) for name in moved)


def test_the_whole_backbone_but_what_is_fresh(backbone):
    mine = copy.deepcopy(backbone)
    freeze(mine, "backbone")
    if not mine.fresh:
        assert not any(p.requires_grad for p in mine.parameters()) and not any(m.training for m in mine.children())
        return
    moved = changed(mine)
    assert moved and all(is_of(name, mine.fresh) for name in moved)


def test_norms_alone(backbone):
    mine = copy.deepcopy(backbone)
    freeze(mine, "norms")
    moved = changed(mine)
    norms = {name for name, _ in mine.named_parameters() if "norm" in name or ".bn" in name}
    assert moved and not {name for name in moved & norms if not is_of(name, mine.fresh)}
    assert not {name for name in moved if "running" in name}


def test_statistics_stay_in_frozen_parts_and_move_in_others(backbone):
    mine = copy.deepcopy(backbone)
    freeze(mine, 2)
    learning = [name for names in mine.block_names()[-2:] for name in names]
    statistics = {name for name in mine.state_dict() if name.endswith("running_mean")}
    assert changed(mine) & statistics == {name for name in statistics if is_of(name, learning)}
    mine.eval()
    mine.train()  # the modes of a training come and go
    assert not any(module.training for module in mine.frozen)


def test_nothing_takes_all_of_it_back(backbone):
    mine = copy.deepcopy(backbone)
    freeze(mine, "backbone")
    freeze(mine, "nothing")
    assert all(p.requires_grad for p in mine.parameters()) and all(m.training for m in mine.train().modules())


def test_more_blocks_than_there_are(backbone):
    count = len(backbone.block_names())
    with pytest.raises(PresetError, match=f"optim.freeze: expected fewer than its {count} blocks"):
        freeze(copy.deepcopy(backbone), count)
