import pytest
import torch

from afactl.errors import ShapeError
from afactl.losses import affinity_loss, classification_loss, segmentation_loss
from tests import golden


def slow_segmentation(logits, label):
    """Two sums pixel by pixel."""
    sums, counts = [0.0, 0.0], [0, 0]
    log_probabilities = logits.log_softmax(dim=1)
    for b in range(label.shape[0]):
        for y in range(label.shape[1]):
            for x in range(label.shape[2]):
                value = int(label[b, y, x])
                if value != 255:
                    sums[value > 0] -= log_probabilities[b, value, y, x].item()
                    counts[value > 0] += 1
    return sum(s / c for s, c in zip(sums, counts, strict=True) if c) / 2


def test_classification_loss_is_equation_11():
    logits, label = torch.randn(3, 5), (torch.rand(3, 5) > 0.5).float()
    p = torch.sigmoid(logits)
    expected = -(label * p.log() + (1 - label) * (1 - p).log()).mean(dim=1).mean()
    torch.testing.assert_close(classification_loss(logits, label), expected)


def test_segmentation_loss_equals_the_slow_loop():
    torch.manual_seed(0)
    logits, label = torch.randn(2, 4, 5, 6), torch.randint(0, 4, (2, 5, 6))
    label[0, :2] = 255
    assert segmentation_loss(logits, label).item() == pytest.approx(slow_segmentation(logits, label), abs=1e-5)


def test_background_and_foreground_weigh_the_same():
    logits = torch.randn(1, 3, 10, 10)
    label = torch.zeros(1, 10, 10, dtype=torch.long)
    label[0, 0, 0] = 1
    entropy = torch.nn.functional.cross_entropy(logits, label, reduction="none")[0]
    expected = (entropy[0, 0] + (entropy.sum() - entropy[0, 0]) / 99) / 2
    torch.testing.assert_close(segmentation_loss(logits, label), expected)


@pytest.mark.parametrize("value", [0, 2, 255])
def test_losses_are_finite_for_a_batch_of_one_kind(value):
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((2, 4, 4), value))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()
    assert (loss == 0) == (value == 255)


@pytest.mark.parametrize("value", [0, 1, 255])
def test_affinity_loss_is_finite_for_pairs_of_one_kind(value):
    affinity = torch.rand(2, 4, 4, requires_grad=True)
    loss = affinity_loss(affinity, torch.full((2, 4, 4), value, dtype=torch.uint8))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(affinity.grad).all()


def test_affinity_loss_pair_by_pair():
    torch.manual_seed(0)
    affinity = torch.rand(2, 6, 6)
    label = torch.tensor([0, 1, 255])[torch.randint(0, 3, (2, 6, 6))]
    pull = [1 - a.item() for a, y in zip(affinity.flatten(), label.flatten(), strict=True) if y == 1]
    push = [a.item() for a, y in zip(affinity.flatten(), label.flatten(), strict=True) if y == 0]
    expected = 0.5 * (sum(pull) / (len(pull) + 1) + sum(push) / (len(push) + 1))
    assert affinity_loss(affinity, label).item() == pytest.approx(expected, abs=1e-6)


def test_labels_of_another_size_are_refused():
    with pytest.raises(ShapeError, match="h = 4"):
        segmentation_loss(torch.randn(1, 3, 4, 4), torch.zeros(1, 5, 4))


def test_golden_losses(shared):
    values = golden.load(shared, "pseudo")
    label = values["affinity_label"]
    assert int((label == 1).sum()) + 1 == int(values["pos_count"])
    assert int((label == 0).sum()) + 1 == int(values["neg_count"])
    close = {"atol": 1e-4, "rtol": 0}
    torch.testing.assert_close(affinity_loss(values["affinity_pred"], label), values["aff_loss"], **close)
    found = segmentation_loss(values["seg_logits"].float(), values["seg_label"])
    torch.testing.assert_close(found, values["seg_loss_f16"], **close)
    found = classification_loss(values["cls_logits"], values["class_label"])
    torch.testing.assert_close(found, values["cls_loss"], **close)
