"""One step: which terms there are, and that they equal the step that everybody would write first."""

import pytest
import torch

from afactl.datasets.transforms import normalize
from afactl.method.schedule import Phase
from afactl.network.model import AFA
from afactl.presets import load_preset
from afactl.training import step as training_step
from afactl.training.step import StepLosses, Targets, make_targets, share_weights, supervised_losses, training_losses
from benchmarks import naive
from tests.conftest import TINY
from tests.machine.test_distributed import together


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(0)
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    label, box = torch.tensor([[1.0, 0, 1], [0, 1, 0]]), torch.tensor([[0, 64, 0, 64], [3, 60, 0, 64]])
    return image, label, box


@pytest.fixture
def model():
    torch.manual_seed(0)
    return AFA("mit_demo", 3, decoder_width=16, drop_path=0.0).train()


def test_each_phase_has_its_terms(model, batch):
    preset = load_preset("demo", TINY)
    terms = {phase: set(training_losses(model, *batch, phase, preset)) for phase in Phase}
    assert terms[Phase.CLASSIFICATION] == {"cls"}
    assert terms[Phase.REFINED] == terms[Phase.PROPAGATED] == {"cls", "seg", "aff"}
    with_reg = load_preset("demo", [*TINY, "loss.reg=0.01"])
    assert set(training_losses(model, *batch, Phase.REFINED, with_reg)) == {"cls", "seg", "aff", "reg"}
    without = load_preset("demo", [*TINY, "affinity.enabled=false"])
    assert set(training_losses(model, *batch, Phase.REFINED, without)) == {"cls", "seg"}


def test_padding_gets_no_regularisation(model, batch):
    image, label, _ = batch
    preset, nowhere = load_preset("demo", [*TINY, "loss.reg=1"]), torch.zeros(2, 4, dtype=torch.int64)
    assert training_losses(model, image, label, nowhere, Phase.REFINED, preset)["reg"].item() == 0
    assert training_losses(model, *batch, Phase.REFINED, preset)["reg"].item() < 0


@pytest.mark.parametrize("refiner", ["par", "pamr", "crf", "none"])
def test_every_refiner_can_make_the_labels(model, batch, refiner):
    losses = training_losses(model, *batch, Phase.PROPAGATED, load_preset("demo", [*TINY, f"cam.refiner={refiner}"]))
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_full_supervision_is_plain_cross_entropy(model, batch):
    mask = torch.randint(0, 4, (2, 64, 64), dtype=torch.uint8)
    mask[0, :9] = 255
    model.eval()
    logits = model.segment(model(normalize(batch[0])))
    logits = torch.nn.functional.interpolate(logits, size=(64, 64), mode="bilinear")
    expected = torch.nn.functional.cross_entropy(logits, mask.long(), ignore_index=255)
    torch.testing.assert_close(supervised_losses(model, batch[0], mask, load_preset("demo"))["seg"], expected)
    assert supervised_losses(model, batch[0], torch.full_like(mask, 255), load_preset("demo"))["seg"].item() == 0


def test_the_affinity_loss_teaches_attention_and_only_its_head_and_the_backbone(model, batch):
    training_losses(model, *batch, Phase.REFINED, load_preset("demo", TINY))["aff"].backward()
    taught = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert taught == {"backbone", "affinity_head"}
    assert model.backbone.block4[-1].attn.q.weight.grad.any()


@pytest.mark.parametrize("phase", [Phase.REFINED, Phase.PROPAGATED])
def test_photos_without_any_class_give_finite_losses(model, batch, phase):
    image, label, box = batch
    losses = training_losses(model, image, torch.zeros_like(label), box, phase, load_preset("demo", TINY))
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_bfloat16_is_close_to_float32(model, batch):
    model.decoder.dropout.p = 0.0  # the same network twice
    coarse, fine = (
        training_losses(model, *batch, Phase.REFINED, load_preset("demo", [*TINY, f"train.precision={name}"]))
        for name in ("bfloat16", "float32")
    )
    for name, loss in fine.items():
        assert loss.dtype == coarse[name].dtype == torch.float32
        assert coarse[name].item() == pytest.approx(loss.item(), rel=0.05) and coarse[name].item() != loss.item(), name


@pytest.mark.parametrize(
    ("name", "device", "supported", "lower"),
    [
        ("auto", "cuda", True, True),
        ("auto", "cuda", False, False),
        ("auto", "cpu", True, False),
        ("auto", "mps", True, False),
        ("float32", "cuda", True, False),
        ("bfloat16", "cpu", False, True),
    ],
)
def test_the_precision_of_a_device(name, device, supported, lower, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: supported)
    preset = load_preset("voc", [f"train.precision={name}"])
    assert training_step.lower_precision(preset, torch.device(device)) is lower


@pytest.mark.parametrize("phase", [Phase.CLASSIFICATION, Phase.PROPAGATED, "masks"])
def test_bfloat16_is_for_the_network_alone(model, batch, phase, monkeypatch):
    """Every product of the network, and no step on the way from the CAM to the labels, and no loss."""
    seen: dict[str, set[torch.dtype]] = {}

    def note(name, tensors):
        seen.setdefault(name, set()).update(t.dtype for t in tensors if t.is_floating_point())

    products = (torch.nn.Conv2d, torch.nn.Linear)
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: note("network", [output]))
        for module in model.modules()
        if isinstance(module, products)
    ]
    for name in ("refined_label", "propagated_label"):
        original = getattr(training_step, name)

        def labels(photos, cam, *rest, original=original):
            note("labels", [cam, *(part for part in rest if isinstance(part, torch.Tensor))])
            assert not torch.is_autocast_enabled("cpu")
            return original(photos, cam, *rest)

        monkeypatch.setattr(training_step, name, labels)
    for name in ("classification_loss", "segmentation_loss", "affinity_loss", "full_segmentation_loss"):
        original = getattr(training_step, name)
        monkeypatch.setattr(
            training_step, name, lambda x, *rest, original=original: note("losses", [x]) or original(x, *rest)
        )
    preset = load_preset("demo", [*TINY, "train.precision=bfloat16"])
    if phase == "masks":
        supervised_losses(model, batch[0], torch.zeros(2, 64, 64, dtype=torch.uint8), preset)
    else:
        training_losses(model, *batch, phase, preset)
    for hook in hooks:
        hook.remove()
    assert seen.pop("network") == {torch.bfloat16}
    assert set(seen) == ({"labels", "losses"} if phase is Phase.PROPAGATED else {"losses"})
    assert all(kinds == {torch.float32} for kinds in seen.values())


def test_cams_in_bfloat16_are_those_of_float32_but_for_the_passes(model, batch):
    """Made of the same features, they are the same: it is not the maps that are rounded."""
    features = model(normalize(batch[0]))
    with torch.autocast("cpu", torch.bfloat16):
        under = model.activate(features)
    assert torch.equal(under, model.activate(features)) and under.dtype == torch.float32


def test_the_first_step_sees_normalised_photos(model, batch):
    """The loss of a phase is the loss of the network's own outputs on the normalised batch."""
    image, label, box = batch
    expected = torch.nn.functional.multilabel_soft_margin_loss(model.classify(model(normalize(image))), label)
    found = training_losses(model, image, label, box, Phase.CLASSIFICATION, load_preset("demo"))["cls"]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("seed", range(3))
def test_a_step_equals_the_naive_step(monkeypatch, seed):
    torch.manual_seed(seed)
    preset = load_preset("demo", ["cam.scales=[1.0,0.5,1.5]", "affinity.eps=0.0"])
    model = AFA("mit_demo", 4, decoder_width=16, drop_path=0.0).train()
    model.decoder.dropout.p = 0.0
    torch.nn.init.normal_(model.affinity_head.weight)
    # Soft pictures, so that PAR and CAM find regions.
    image = (
        torch.nn.functional.interpolate(torch.rand(2, 3, 9, 9), size=(96, 96), mode="bicubic")
        .clamp(0, 1)
        .mul(255)
        .to(torch.uint8)
    )
    label = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 0]])
    box = torch.tensor([[0, 96, 0, 96], [4, 90, 0, 80]])
    seen = []
    for name in ("affinity_label", "segmentation_loss"):
        original = getattr(training_step, name)
        monkeypatch.setattr(
            training_step, name, lambda *given, original=original: seen.append(given) or original(*given)
        )
    expected, refined, target = naive.training_step(model, image, label, box, preset)
    losses = training_losses(model, image, label, box, Phase.PROPAGATED, preset)
    assert torch.equal(seen[0][0], refined) and torch.equal(seen[1][1], target)
    assert len(refined.unique()) > 2 and len(target.unique()) > 2
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), abs=1e-6), name
    # The same gradients, too.
    ours = torch.autograd.grad(sum(losses.values()), list(model.parameters()), allow_unused=True)
    theirs = torch.autograd.grad(sum(expected.values()), list(model.parameters()), allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert (one - other).norm() <= 1e-4 * other.norm() + 1e-7


def step_photos():
    """Labels and pairs of eight photos, whose counts differ much; one without foreground, one without background."""
    torch.manual_seed(3)
    label = torch.randint(0, 3, (8, 6, 6), dtype=torch.uint8) * (torch.rand(8, 1, 1) > 0.5)
    label[0], label[1], label[2, :5] = 0, 2, 255
    pairs = torch.tensor([0, 1, 255])[torch.randint(0, 3, (8, 9, 9))]
    pairs[5, :8] = 255
    return label, pairs


def weights_of(rank, processes, batch, part):
    """What a process gets for its photos, every `processes`-th one, in batches of `batch`."""
    label, pairs = (values[rank::processes].split(batch) for values in step_photos())
    preset = load_preset("demo", [f"loss.part_photos={part or 'null'}"])
    return share_weights([Targets(one, two) for one, two in zip(label, pairs, strict=True)], preset)


def one_of_two(batch, part):
    return torch.cat(weights_of(torch.distributed.get_rank(), 2, batch, part))


@pytest.mark.parametrize("part", [None, 2, 3])
def test_the_means_of_a_step_are_the_same_however_it_is_shared_out(tmp_path, part):
    """One process with all eight photos, with batches of two, and two processes with batches of two or four."""
    (whole,) = weights_of(0, 1, 8, part)
    batches = weights_of(0, 1, 2, part)
    assert len(batches) == 4
    # The loss of a step is the mean over its batches.
    torch.testing.assert_close(torch.cat(batches) / 4, whole)
    for batch, mean in ((2, 4), (4, 2)):
        shares = together(tmp_path / f"{batch}", 2, one_of_two, batch, part)
        for rank, share in enumerate(shares):
            torch.testing.assert_close(share / mean, whole[rank::2])


def test_with_true_masks_the_mean_is_over_the_pixels_of_the_step():
    label, _ = step_photos()
    preset = load_preset("demo", ["train.supervision=masks"])
    weights = share_weights([Targets(one) for one in label.split(4)], preset)
    logits = torch.randn(8, 3, 6, 6)
    expected = torch.nn.functional.cross_entropy(logits, label.long(), ignore_index=255)
    shares = [
        training_step.full_segmentation_loss(*one) for one in zip(logits.split(4), label.split(4), weights, strict=True)
    ]
    torch.testing.assert_close(sum(shares) / 2, expected)


def batch_of(image, label, box):
    return {"image": image, "label": label, "box": box}


@pytest.mark.parametrize("part", [None, 1, 2])
@pytest.mark.parametrize("phase", [Phase.REFINED, Phase.PROPAGATED])
def test_two_batches_of_a_step_have_the_gradients_of_one(model, phase, part):
    """But for batch norm, which sees one batch at a time, so that there is none here."""
    torch.manual_seed(1)
    image = torch.nn.functional.interpolate(torch.rand(4, 3, 9, 9), size=(64, 64)).mul(255).to(torch.uint8)
    label = torch.eye(3)[[0, 1, 2, 0]]
    box = torch.tensor([[0, 64, 0, 64], [3, 60, 0, 64], [0, 64, 9, 20], [30, 40, 0, 64]])
    preset = load_preset("demo", [*TINY, f"loss.part_photos={part or 'null'}", "loss.reg=0.01"])
    model.decoder.norm = torch.nn.Identity()
    model.decoder.dropout.p = 0.0
    losses = StepLosses(model, preset)
    whole = sum(losses(batch_of(image, label, box), phase).values())
    batches = [batch_of(image[i : i + 2], label[i : i + 2], box[i : i + 2]) for i in (0, 2)]
    targets = losses.targets(batches, phase)
    parts = sum(sum(losses(*one).values()) / 2 for one in zip(batches, [phase] * 2, targets, strict=True))
    assert parts.item() == pytest.approx(whole.item(), abs=1e-5)
    expected, found = (
        torch.autograd.grad(loss, list(model.parameters()), allow_unused=True) for loss in (whole, parts)
    )
    for one, other in zip(found, expected, strict=True):
        assert one is None or (one - other).norm() <= 1e-4 * other.norm() + 1e-6


@pytest.mark.parametrize("phase", list(Phase))
def test_cam_passes_as_in_training_are_counted_by_the_decoders_batch_norm(model, batch, phase):
    """The photos' own pass first, then one per scale; in evaluation mode their own pass alone, if it has a decoder."""
    own = phase is not Phase.CLASSIFICATION
    for passes, counted in (("evaluation", own), ("training", 1 + 2)):
        before = model.decoder.norm.num_batches_tracked.item()
        training_losses(model, *batch, phase, load_preset("demo", [*TINY, f"train.cam_passes={passes}"]))
        assert model.decoder.norm.num_batches_tracked.item() - before == counted
        assert model.training


def test_cam_passes_as_in_training_have_stochastic_depth(batch):
    torch.manual_seed(0)
    network = AFA("mit_demo", 3, decoder_width=16, drop_path=0.5).train()
    image = normalize(batch[0])
    calm = [network.multi_scale_cam(image, (1.0,), 1.0).cam for _ in range(2)]
    wild = [network.multi_scale_cam(image, (1.0,), 1.0, as_trained=True).cam for _ in range(2)]
    assert torch.equal(*calm) and (wild[0] - wild[1]).abs().mean() > 1e-3
    assert not torch.equal(network.decoder.norm.running_mean, torch.zeros(16))


def test_the_refiner_sees_the_picture_exactly_or_cut_off(model, batch, monkeypatch):
    seen = []
    original = training_step.refined_label
    monkeypatch.setattr(
        training_step, "refined_label", lambda photos, *rest: seen.append(photos.image) or original(photos, *rest)
    )
    for how in ("exact", "truncated"):
        make_targets(model, *batch, Phase.REFINED, load_preset("demo", [*TINY, f"train.refiner_picture={how}"]))
    exact, cut = seen
    assert torch.equal(exact, batch[0]) and cut.dtype == torch.uint8
    lower = exact.int() - cut.int()
    assert set(lower.unique().tolist()) == {0, 1} and 0.005 < lower.float().mean() < 0.02, (
        "one per cent is one level lower"
    )


def test_the_affinity_learns_from_the_refined_or_in_the_last_phase_from_the_propagated_label(model, batch):
    torch.nn.init.normal_(model.affinity_head.weight)
    for phase in (Phase.REFINED, Phase.PROPAGATED):
        refined, propagated = (
            make_targets(model, *batch, phase, load_preset("demo", [*TINY, f"train.affinity_label={source}"]))
            for source in ("refined", "propagated")
        )
        assert torch.equal(refined.segmentation, propagated.segmentation)
        expected = training_step.affinity_label(propagated.segmentation, (4, 4), 2)
        assert torch.equal(propagated.pairs, expected)
        share = (refined.pairs != expected).float().mean()
        assert share > 0.05 if phase is Phase.PROPAGATED else share == 0
