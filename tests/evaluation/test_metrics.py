import numpy as np
import pytest

from afactl.errors import ShapeError
from afactl.evaluation.metrics import class_iou, confusion_matrix, label_f1, mean_accuracy, mean_iou, pixel_accuracy
from tests import golden


def slow_confusion(truth, prediction, classes):
    """Pixel by pixel."""
    table = np.zeros((classes, classes), np.int64)
    for t, p in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        if t != 255 and p != 255:
            table[t, p] += 1
    return table


@pytest.mark.parametrize("classes", [2, 21, 81])
def test_confusion_equals_the_slow_loop(classes):
    rng = np.random.default_rng(classes)
    truth, prediction = rng.integers(0, classes, (2, 30, 40)).astype(np.uint8)
    truth[:3], prediction[5:7] = 255, 255
    assert np.array_equal(confusion_matrix(truth, prediction, classes), slow_confusion(truth, prediction, classes))


def test_values_outside_the_classes_are_refused():
    with pytest.raises(ShapeError, match="0..2 or 255, got others in 1 pixels"):
        confusion_matrix(np.array([[0, 3]], np.uint8), np.array([[0, 1]], np.uint8), 3)
    with pytest.raises(ShapeError, match="size of the truth"):
        confusion_matrix(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8), 3)


def test_a_class_absent_from_the_truth_does_not_count_but_its_pixels_do():
    confusion = np.array([[6, 0, 2], [0, 2, 0], [0, 0, 0]])
    assert class_iou(confusion)[:2] == pytest.approx([0.75, 1.0])
    assert np.isnan(class_iou(confusion)[2])
    assert mean_iou(confusion) == pytest.approx(0.875)
    assert np.isnan(mean_iou(np.zeros((3, 3), int)))


def test_golden_metrics():
    values = {name: value.numpy() for name, value in golden.load("metrics").items()}
    confusion = sum(confusion_matrix(t, p, 21) for t, p in zip(values["gt"], values["pred"], strict=True))
    assert mean_iou(confusion) == pytest.approx(values["miou"].item(), abs=1e-9)
    assert class_iou(confusion) == pytest.approx(values["iou"], abs=1e-9)
    assert pixel_accuracy(confusion) == pytest.approx(values["pacc"].item(), abs=1e-9)
    assert mean_accuracy(confusion) == pytest.approx(values["macc"].item(), abs=1e-9)
    pairs = zip(values["gt"], values["pred_with_ignore"], strict=True)
    confusion = sum(confusion_matrix(t, p, 21) for t, p in pairs)
    assert mean_iou(confusion) == pytest.approx(values["pseudo_miou"].item(), abs=1e-9)
    assert class_iou(confusion) == pytest.approx(values["pseudo_iou"], abs=1e-9)


def test_label_f1_by_hand():
    # 3 hits, 4 true and 5 predicted labels.
    assert label_f1([(0, 1), (2,), (4,)], [(0, 1, 3), (2,), (5,)]) == pytest.approx(6 / 9)
    assert np.isnan(label_f1([()], [()])) and label_f1([(1,)], [(1,)]) == 1
