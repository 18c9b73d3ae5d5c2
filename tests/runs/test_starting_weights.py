import pytest
import torch

from afactl.errors import CheckpointError
from afactl.runs.checkpoints import Architecture
from afactl.runs.starting_weights import initialize, load_state

ARCHITECTURE = Architecture("mit_demo", ("cat", "dog"), "gmp", 8, 0.1)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ARCHITECTURE.build()


def test_weights_of_another_architecture_are_explained(model):
    with pytest.raises(CheckpointError, match=r"\d+ of \d+ parameters do not fit \(first: .* expected"):
        load_state(Architecture("mit_b0", ("a", "b"), "gmp", 8, 0.1).build(), model.state_dict(), "file")
    with pytest.raises(CheckpointError, match=r"classifier is \(2, 160\), expected \(3, 160\)"):
        load_state(Architecture("mit_demo", ("a", "b", "c"), "gmp", 8, 0.1).build(), model.state_dict(), "file")


def test_starting_weights(model, tmp_path):
    torch.save(model.backbone.state_dict() | {"head.weight": torch.zeros(1)}, tmp_path / "mit.pth")
    torch.save(model.state_dict(), tmp_path / "all.pth")
    torch.manual_seed(1)
    fresh = ARCHITECTURE.build()
    head = fresh.classifier.clone()
    assert initialize(fresh, "none") == "random weights"
    assert "heads random" in initialize(fresh, str(tmp_path / "mit.pth"))
    assert torch.equal(fresh.backbone.norm4.weight, model.backbone.norm4.weight) and torch.equal(fresh.classifier, head)
    assert "all weights" in initialize(fresh, str(tmp_path / "all.pth"))
    assert torch.equal(fresh.classifier, model.classifier)
    with pytest.raises(CheckpointError, match="another architecture"):
        initialize(Architecture("mit_b0", ("a",), "gmp", 8, 0.1).build(), str(tmp_path / "mit.pth"))
