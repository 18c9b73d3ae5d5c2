"""What files of a network are compared by."""

import math

import pytest
import torch

from afactl.errors import AfactlError
from afactl.inference.network_outputs import CHECKED, MADE_WITH, NetworkOutputs, largest_difference, require_equal
from afactl.network.model import AFA


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return NetworkOutputs(AFA("mit_demo", 3, decoder_width=8)).eval()


def test_the_outputs_are_the_networks(network):
    image = torch.randn(2, 3, 50, 70)
    with torch.no_grad():
        logits, cam, affinity = network(image)
        encoded = network.model(image)
    assert logits.shape == (2, 4, 50, 70) and cam.shape == (2, 3, *encoded.grid)
    assert affinity.shape == (2, encoded.grid[0] * encoded.grid[1], encoded.grid[0] * encoded.grid[1])
    assert torch.equal(cam, network.model.activate(encoded)) and affinity.min() > 0 and affinity.max() < 1


@pytest.mark.parametrize(("place", "by"), [(0, 0.5), (1, 0.25), (2, 2.0), (2, math.nan)])
def test_the_largest_difference_of_any_output_counts(network, place, by):
    assert largest_difference(network, network) == 0.0

    def translated(image):
        outputs = [output.contiguous().clone() for output in network(image)]
        if image.shape[2] == CHECKED[-1][1]:  # at the last size alone
            outputs[place].view(-1)[3] += by
        return outputs

    found = largest_difference(translated, network)
    assert math.isnan(found) if math.isnan(by) else found == pytest.approx(by, rel=1e-3)
    with pytest.raises(AfactlError, match="--format onnx: the outputs of mit_demo differ by"):
        require_equal(found, "onnx", "mit_demo")


def test_it_is_compared_at_other_sizes_and_numbers_than_it_was_made_with():
    assert MADE_WITH not in CHECKED and len({shape[0] for shape in CHECKED}) == 2
    assert any(height % 16 and width % 16 for _, height, width in CHECKED)
    require_equal(1e-4, "onnx", "any")
