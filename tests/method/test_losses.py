import pytest
import torch

from afactl.errors import ShapeError
from afactl.method.losses import (
    affinity_loss,
    classification_loss,
    energy_loss,
    full_segmentation_loss,
    mean_weights,
    pair_counts,
    pixel_counts,
    segmentation_loss,
)
from afactl.method.refinement.lattice import build_lattice, lattice_filter
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


def six_photos():
    """Logits, a label and pairs of six photos with very different counts; one has no foreground, one no background."""
    torch.manual_seed(0)
    logits, label = torch.randn(6, 4, 5, 6), torch.randint(0, 4, (6, 5, 6))
    label[0], label[1], label[2, :4] = 0, 3, 255
    pairs = torch.tensor([0, 1, 255])[torch.randint(0, 3, (6, 9, 9))]
    pairs[3, :8] = 1
    return logits, label, torch.rand(6, 9, 9), pairs


def kinds(logits, label, affinity, pairs):
    """(loss, values, truth, counts per photo, what is added to the counts of a part)."""
    return (
        (segmentation_loss, logits, label, pixel_counts(label), 0),
        (full_segmentation_loss, logits, label, pixel_counts(label).sum(dim=1, keepdim=True), 0),
        (affinity_loss, affinity, pairs, pair_counts(pairs), 1),
    )


def test_counts_of_each_photo_one_by_one():
    _, label, _, pairs = six_photos()
    for i in range(6):
        pixels, ways = label[i].flatten().tolist(), pairs[i].flatten().tolist()
        assert pixel_counts(label)[i].tolist() == [pixels.count(0), len(pixels) - pixels.count(0) - pixels.count(255)]
        assert pair_counts(pairs)[i].tolist() == [ways.count(1), ways.count(0)]


@pytest.mark.parametrize("part", [None, 1, 2, 3, 4, 6, 9])
@pytest.mark.parametrize("cut", [1, 2, 5])
def test_batches_of_a_step_sum_to_its_loss_and_parts_are_averaged(part, cut):
    """However the photos of the step fall on its batches; the oracle takes the loss of each part by itself."""
    for loss, values, truth, counts, added in kinds(*six_photos()):
        weights = mean_weights(counts, part, added)
        batches = [loss(values[one], truth[one], weights[one]) for one in (slice(0, cut), slice(cut, 6))]
        starts = range(0, 6, part or 6)
        alone = [loss(values[i : i + (part or 6)], truth[i : i + (part or 6)]) for i in starts]
        assert sum(batches).item() == pytest.approx((sum(alone) / len(alone)).item(), abs=1e-6)
        assert all(one > 0 for one in batches)


def test_one_normaliser_is_not_that_of_each_part():
    for loss, values, truth, counts, added in kinds(*six_photos()):
        one, two = (loss(values, truth, mean_weights(counts, part, added)).item() for part in (None, 2))
        assert abs(one - two) > 1e-3, loss.__name__


def test_weights_that_belong_to_other_photos_are_refused():
    logits, label, *_ = six_photos()
    with pytest.raises(ShapeError, match="weights: expected B = 6"):
        segmentation_loss(logits, label, mean_weights(pixel_counts(label[:2])))


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


def test_golden_losses():
    values = golden.load("pseudo")
    label = values["affinity_label"]
    assert int((label == 1).sum()) + 1 == int(values["pos_count"])
    assert int((label == 0).sum()) + 1 == int(values["neg_count"])
    close = {"atol": 1e-4, "rtol": 0}
    torch.testing.assert_close(affinity_loss(values["affinity_pred"], label), values["aff_loss"], **close)
    found = segmentation_loss(values["seg_logits"].float(), values["seg_label"])
    torch.testing.assert_close(found, values["seg_loss_f16"], **close)
    found = classification_loss(values["cls_logits"], values["class_label"])
    torch.testing.assert_close(found, values["cls_loss"], **close)


def slow_energy(image, probabilities, ignored, inside, sigma_rgb, sigma_xy):
    """E and its gradient, with the filter as one dense matrix and the sums written out."""
    batch, classes, height, width = probabilities.shape
    energy, gradient = 0.0, torch.zeros_like(probabilities)
    for b in range(batch):
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        features = torch.stack([x / sigma_xy, y / sigma_xy, *(image[b] / sigma_rgb)], dim=-1).reshape(-1, 5)
        n = height * width
        matrix = lattice_filter(torch.eye(n, dtype=torch.float64), build_lattice(features))
        shown = inside[b].flatten().double()
        rows = probabilities[b].reshape(classes, n).double() * shown
        gate = (1 - probabilities[b].amax(0).flatten().double()) * shown
        gate[ignored[b].flatten()] = 1
        gate = gate.clamp(min=0) * shown
        for k in range(classes):
            energy -= sum(rows[k, i] * gate[i] * matrix[i] @ rows[k] for i in range(n)) / batch
            slope = -(gate * (matrix @ rows[k]) + matrix.T @ (gate * rows[k])) / batch
            gradient[b, k] = (slope * shown).view(height, width)
    return energy, gradient


def energy_scene():
    torch.manual_seed(0)
    image = torch.rand(2, 3, 6, 7) * 255
    logits, label = torch.randn(2, 3, 6, 7, requires_grad=True), torch.randint(0, 3, (2, 6, 7))
    label[:, :3] = 255
    inside = torch.ones(2, 6, 7, dtype=torch.bool)
    inside[1, :, 5:] = False
    return image, logits, label, inside


def test_energy_loss_and_its_gradient_equal_the_slow_sums():
    image, logits, label, inside = energy_scene()
    probabilities = logits.softmax(1)
    probabilities.retain_grad()
    loss = energy_loss(image, probabilities.log(), label, inside, sigma_rgb=60.0, sigma_xy=5.0, scale=1.0)
    loss.backward()
    energy, gradient = slow_energy(image, probabilities.detach(), label == 255, inside, 60.0, 5.0)
    assert loss.item() == pytest.approx(1e-7 * energy.item(), rel=1e-4)
    # Through log and softmax back to the probabilities: the part along their sum drops out.
    tangent = gradient - (gradient * probabilities.detach()).sum(1, keepdim=True)
    torch.testing.assert_close(probabilities.grad * 1e7, tangent, atol=1e-4, rtol=1e-3)


def test_energy_is_lower_where_alike_pixels_share_a_class():
    image = torch.full((1, 3, 16, 16), 60.0)
    image[:, :, :, 8:] = 190.0
    left = (torch.arange(16) < 8).expand(1, 16, 16)
    top = (torch.arange(16) < 8)[:, None].expand(1, 16, 16)
    unlabelled = torch.full((1, 16, 16), 255)

    def energy(mask):
        return energy_loss(image, torch.stack([mask * 6.0, ~mask * 6.0], dim=1), unlabelled, scale=1.0).item()

    assert energy(left) < energy(top) < 0


def test_energy_is_computed_at_half_size():
    torch.manual_seed(0)
    image, logits = torch.rand(1, 3, 12, 16) * 255, torch.randn(1, 3, 12, 16)
    label = torch.full((1, 12, 16), 255)
    small, rows = (
        torch.nn.functional.interpolate(t, scale_factor=0.5, mode="bilinear") for t in (image, logits.softmax(1))
    )
    expected = energy_loss(small, rows.log(), label[:, ::2, ::2], sigma_xy=50.0, scale=1.0)
    torch.testing.assert_close(
        energy_loss(image, logits, label, sigma_xy=100.0, scale=0.5), expected, rtol=1e-5, atol=0
    )


def test_what_lies_outside_counts_nothing():
    image, logits, label, inside = energy_scene()
    assert energy_loss(image, logits, label, torch.zeros_like(inside)).item() == 0
    energy_loss(image, logits, label, inside, scale=1.0).backward()
    assert logits.grad[1, :, :, 5:].abs().max() == 0 and logits.grad[1, :, :, :5].abs().max() > 0


@pytest.mark.parametrize("value", [0, 2, 255])
def test_energy_loss_is_finite_for_a_batch_of_one_kind(value):
    image, logits, _, _ = energy_scene()
    loss = energy_loss(image, logits, torch.full((2, 6, 7), value))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def test_energy_loss_refuses_what_does_not_fit():
    image, logits, label, _ = energy_scene()
    with pytest.raises(ShapeError, match="h = 6"):
        energy_loss(image[:, :, :5], logits, label)
