"""The recipe as a recipe: for every key of a preset, what changes, and in which direction, when the key changes.

A row looks at what a training, a test or a label makes of the value, not at the value: a step, a label, a schedule, a
view, a network or a file. A key without a row fails.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from afactl.datasets import demo, preparing
from afactl.datasets.images import read_image
from afactl.errors import DataError
from afactl.evaluation.pseudo_labels import pseudo_labels_of
from afactl.evaluation.segmentation import evaluate_segmentation, validate
from afactl.inference.cams import cam_record
from afactl.inference.refiners import preset_refiner
from afactl.inference.segmentation import multi_scale, segment
from afactl.inference.trained_run import TrainedRun
from afactl.method.schedule import Phase
from afactl.presets import Preset, field_names
from afactl.runs.metrics import read_metrics
from afactl.training import job as job_module
from afactl.training import step as training_step
from afactl.training.events import Noted, Saved, Validated
from afactl.training.job import Job
from afactl.training.launch import Request, start
from afactl.training.observers.metrics_file import MetricsFile
from afactl.training.prepared import Prepared, load_data, prepare
from afactl.training.updater import Taken, Updater
from tests.conftest import make_voc, tiny_preset

CPU = torch.device("cpu")
# The step after so many is of the last phase, and of the phase of classification before it.
LABELS, CLASSIFICATION = 2, 0
# Without these a pass repeats itself.
CALM = ("model.drop_path=0",)


class Ground:
    """What the rows stand on: eight training and four validation pictures, and a folder."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data, self.folder = data, folder

    def preset(self, *changes: str) -> Preset:
        return tiny_preset(self.data, *CALM, *changes)

    def prepared(self, *changes: str) -> Prepared:
        """A training that is about to begin; the affinity says something, and there is no dropout."""
        made = prepare(self.preset(*changes), CPU)
        torch.manual_seed(1)
        torch.nn.init.normal_(made.model.affinity_head.weight, std=0.3)
        made.model.decoder.dropout.p = 0.0
        made.model.train()
        return made

    def job(self, *changes: str, observers: tuple[Any, ...] = ()) -> Job:
        run = self.folder / f"run-{len(list(self.folder.iterdir()))}"
        run.mkdir()
        return Job(self.prepared(*changes), run, (MetricsFile(run), *observers))

    def batch(self, *changes: str, start: int = 0) -> dict[str, Any]:
        """The first photos that a training would see."""
        stream = self.job(*changes).stream
        return default_collate([stream[start + i] for i in range(2)])

    def take(self, step: int, *changes: str) -> tuple[Taken, Updater]:
        """The step with that number, on the first photos, from the same weights."""
        updater = Updater(self.prepared(*changes), threading.Event())
        return updater.take(step, [self.batch(*changes)]), updater

    def targets(self, *changes: str, phase: Phase = Phase.PROPAGATED) -> training_step.Targets:
        """What the first photos learn from; each shows one class."""
        made, batch = self.prepared(*changes), self.batch(*changes)
        return training_step.make_targets(made.model, batch["image"], batch["label"], batch["box"], phase, made.preset)

    def run(self, *changes: str) -> TrainedRun:
        made = self.prepared(*changes)
        made.model.eval()
        return TrainedRun(self.folder, made.preset, made.model, made.architecture, CPU, "", 0)

    def photo(self) -> tuple[np.ndarray, tuple[int, ...]]:
        """The first validation photo, and its classes."""
        sample = load_data(self.preset())[1].samples[0]
        return read_image(sample.image_path), sample.labels

    def scored(self, *changes: str) -> np.ndarray:
        """Labels of Table 3 for that photo: 3 rows x without and with PAR."""
        run, (image, labels) = self.run(*changes), self.photo()
        return pseudo_labels_of(image, cam_record(run, image, labels), run.preset, CPU)

    def logits(self, *changes: str) -> torch.Tensor:
        """The segmentation of that photo at test time."""
        run, (image, _) = self.run(*changes), self.photo()
        return segment(run.model, image, CPU, multi_scale(run.preset.eval))

    def passes(self, work: Callable[[TrainedRun], Any], *changes: str) -> list[tuple[int, ...]]:
        """Shapes of all pictures that pass through the network meanwhile."""
        run, seen = self.run(*changes), []
        run.model.register_forward_hook(lambda model, given, result: seen.append(tuple(given[0].shape)))
        work(run)
        return seen

    def refined(self, refiner: str, *changes: str) -> torch.Tensor:
        """Two planes refined along a drawn photo."""
        image = torch.from_numpy(self.photo()[0]).permute(2, 0, 1)[None].float()
        torch.manual_seed(0)
        planes = torch.rand(1, 2, 64, 64).softmax(dim=1)
        return preset_refiner(self.preset(*changes), refiner)(image, planes)[0]


@pytest.fixture(scope="module")
def shared_ground(tiny_data):
    return tiny_data


@pytest.fixture
def ground(shared_ground, tmp_path):
    folder = tmp_path / "ground"
    folder.mkdir()
    return Ground(shared_ground, folder)


ROWS: dict[str, Callable[[Ground], None]] = {}


def row(*keys: str) -> Callable[[Callable[[Ground], None]], Callable[[Ground], None]]:
    """This function shows what these keys do."""

    def noted(shows: Callable[[Ground], None]) -> Callable[[Ground], None]:
        for key in keys:
            assert key not in ROWS, f"{key} has two rows"
            ROWS[key] = shows
        return shows

    return noted


def share(label, value) -> float:
    """How much of a label has a value."""
    return float((np.asarray(label) == value).mean())


# data


@row("data.name")
def data_name_is_the_format(ground):
    with pytest.raises(DataError, match="expected JPEGImages/"):
        ground.prepared("data.name=voc")


@row("data.root")
def data_root_is_the_folder(ground):
    other = demo.generate(ground.folder / "other", train=3, val=1, size=64)
    assert len(prepare(tiny_preset(other), CPU).data.samples) == 3 and len(ground.prepared().data.samples) == 8


@row("data.train_split", "data.val_split")
def data_splits(ground):
    turned = ground.prepared("data.train_split=val", "data.val_split=train")
    assert len(turned.data.samples) == 4 and len(turned.val.samples) == 8


@row("data.long_side")
def data_long_side_reduces_photos_before_their_views(ground):
    """The photos have 64 pixels, as the view: half of it is theirs when they are reduced to 32."""
    for limit, side in (("32", 32), ("null", 64), ("640", 64)):
        box = ground.batch("train.scale_range=[1.0,1.0]", f"data.long_side={limit}")["box"]
        assert ((box[:, 1::2] - box[:, 0::2]) == side).all()


@row("data.labels")
def data_labels_are_those_of_masks_or_xml(ground):
    root = make_voc(ground.folder / "voc", {"train": ["t1"], "val": ["v1"]}, {"t1": [0, 1], "v1": [1, 1]})
    for image_id in ("t1", "v1"):
        Image.fromarray(np.zeros((4, 2, 3), np.uint8)).save(root / "JPEGImages" / f"{image_id}.jpg")
    (root / "Annotations").mkdir()
    (root / "Annotations" / "t1.xml").write_text("<a><filename>t1.jpg</filename><object><name>cat</name></object></a>")
    preparing.prepare_voc(root)
    changes = ("data.name=voc", "data.train_split=train")
    labels = {
        source: load_data(tiny_preset(root, *changes, f"data.labels={source}"))[0].samples[0].labels
        for source in ("masks", "xml")
    }
    assert labels == {"masks": (0,), "xml": (7,)}


# model


@row("model.backbone", "model.decoder_width")
def model_sizes(ground):
    model = ground.prepared("model.backbone=mit_b0", "model.decoder_width=8").model
    assert model.backbone.out_channels == (32, 64, 160, 256) and model.decoder.fuse.out_channels == 8
    assert ground.prepared().model.backbone.out_channels == (32, 64, 120, 160)


@row("model.pooling")
def model_pooling(ground):
    image = torch.randn(1, 3, 64, 64)
    for name, pool in (("gmp", torch.amax), ("gap", torch.mean)):
        model = ground.prepared(f"model.pooling={name}").model.eval()
        with torch.no_grad():
            encoded = model(image)
            expected = pool(encoded.features[-1], dim=(2, 3)) @ model.classifier.T
            torch.testing.assert_close(model.classify(encoded), expected)


@row("model.init")
def model_init_gives_the_first_weights(ground):
    told = []

    def trained(*changes):
        preset = ground.preset("train.max_iters=1", "train.eval_iters=9", "optim.lr=1e-12", *changes)
        return start(Request(preset, out=ground.folder / f"{len(told)}", device="cpu", observers=(told.append,))).run

    first = trained("train.seed=1") / "checkpoints/last/weights.safetensors"
    trained(f"model.init={first}", "train.seed=2")
    notes = [event.text for event in told if isinstance(event, Noted) and "weights" in event.text]
    assert "random" in notes[0] and f"all weights from {first}" in notes[1]


@row("model.drop_path")
def model_drop_path_leaves_blocks_out_in_training(ground):
    image = torch.randn(1, 3, 64, 64)
    for rate, repeats in ((0.0, True), (0.9, False)):
        model = ground.prepared(f"model.drop_path={rate}").model
        passes = [model(image).features[-1] for _ in range(6)]
        assert all(torch.equal(passes[0], one) for one in passes) == repeats


@row("model.head_init")
def model_head_init_is_wider_by_kaiming(ground):
    narrow, wide = (prepare(ground.preset(f"model.head_init={how}"), CPU).model for how in ("uniform", "normal"))
    for part in ("affinity_head.weight", "decoder.fuse.weight"):
        assert wide.get_parameter(part).std() > 2 * narrow.get_parameter(part).std()


# train: sizes, views and phases


@row("train.max_iters")
def train_max_iters_is_the_length_of_the_job_and_of_the_decay(ground):
    for steps in (2, 3):
        job = ground.job(f"train.max_iters={steps}")
        job.run_steps()
        assert job.done == steps
    after = ("optim.warmup_iters=0",)
    assert ground.take(2, "train.max_iters=4", *after)[0].rate < ground.take(2, "train.max_iters=8", *after)[0].rate


@row("train.batch_size", "train.effective_batch")
def train_batches(ground):
    shares = ground.prepared("train.batch_size=3", "train.effective_batch=6").shares
    assert (shares.batch, shares.batches) == (3, 2)
    seen = []
    job = ground.job("train.batch_size=1", "train.effective_batch=3", "train.max_iters=1")
    job.updater.losses.register_forward_hook(lambda losses, given, result: seen.append(len(given[0]["image"])))
    assert job.rehearsed({"classification": 0}) and seen == [1, 1, 1] * 2  # as a step, and once more before it
    seen.clear()
    job.rehearsed = lambda starts: dict.fromkeys(starts, 1.0)
    job.run_steps()
    assert seen == [1, 1, 1]


@row("train.supervision")
def train_supervision_by_masks_has_their_cross_entropy_alone(ground):
    changes = ("train.supervision=masks",)
    taken, _ = ground.take(LABELS, *changes)
    made, batch = ground.prepared(*changes), ground.batch(*changes)
    logits = made.model.segment(made.model(training_step.normalize(batch["image"])))
    logits = torch.nn.functional.interpolate(logits, size=(64, 64), mode="bilinear")
    expected = torch.nn.functional.cross_entropy(logits, batch["mask"].long(), ignore_index=255)
    assert taken.losses == {"seg": pytest.approx(expected.item(), abs=1e-5)}
    assert set(ground.take(LABELS)[0].losses) == {"cls", "seg", "aff"}


@row("train.crop_size")
def train_crop_size_is_the_side_of_a_view(ground):
    assert ground.batch("train.crop_size=32")["image"].shape[2:] == (32, 32)


@row("train.scale_range")
def train_scale_range_bounds_the_size_of_the_photo(ground):
    """The photos have 64 pixels, as the view: a fourth of that, or all of the view from a half of the photo."""
    for scale, side in ((0.25, 16), (2.0, 64)):
        box = ground.batch(f"train.scale_range=[{scale},{scale}]")["box"]
        assert ((box[:, 1::2] - box[:, 0::2]) == side).all()


def test_half_of_the_views_are_mirrored(ground):
    """No key, but part of the recipe: at the scale of the photo a view is the photo, or its mirror image."""
    stream = ground.job("train.scale_range=[1.0,1.0]", "train.max_iters=40", "train.eval_iters=99").stream
    mirrored = 0
    for i in range(60):
        item = stream[i]
        photo = torch.from_numpy(read_image(stream.sample_at(i).image_path)).permute(2, 0, 1)
        assert torch.equal(item["image"], photo) or torch.equal(item["image"], photo.flip(-1))
        mirrored += torch.equal(item["image"], photo.flip(-1))
    assert 18 <= mirrored <= 42


@row("train.cam_passes")
def train_cam_passes_of_training_are_counted_by_batch_norm(ground):
    for mode, passes in (("evaluation", 1), ("training", 1 + 2)):
        _, updater = ground.take(LABELS, f"train.cam_passes={mode}")
        assert updater.model.decoder.norm.num_batches_tracked == passes


@row("train.refiner_picture")
def train_refiner_picture_is_a_little_darker_where_it_is_truncated(ground):
    seen = []
    original = training_step.refined_label
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            training_step, "refined_label", lambda photos, *rest: seen.append(photos.image) or original(photos, *rest)
        )
        for how in ("exact", "truncated"):
            ground.targets(f"train.refiner_picture={how}")
    lower = seen[0].float() - seen[1].float()
    assert set(lower.unique().tolist()) == {0.0, 1.0}


@row("train.affinity_label")
def train_affinity_label_is_the_one_named(ground):
    refined, propagated = (ground.targets(f"train.affinity_label={name}") for name in ("refined", "propagated"))
    expected = training_step.affinity_label(propagated.segmentation, (4, 4), 2)
    assert torch.equal(propagated.pairs, expected) and not torch.equal(refined.pairs, expected)


@row("train.cls_warmup_iters", "train.aff_warmup_iters")
def train_warmups_are_the_lengths_of_the_phases(ground):
    changes = ("train.cls_warmup_iters=1", "train.aff_warmup_iters=2", "train.max_iters=9")
    phases = [ground.take(step, *changes)[0].phase for step in (0, 1, 2, 3)]
    assert phases == [Phase.CLASSIFICATION, Phase.REFINED, Phase.REFINED, Phase.PROPAGATED]


# train: the job


@row("train.eval_iters", "train.checkpoint_iters", "train.log_iters")
def train_intervals(ground):
    told = []
    job = ground.job(
        "train.max_iters=6",
        "train.eval_iters=2",
        "train.checkpoint_iters=5",
        "train.log_iters=3",
        observers=(told.append,),
    )
    job.run_steps()
    assert [event.step for event in told if isinstance(event, Validated)] == [2, 4, 6]
    # A validation is preceded by a checkpoint, so that it can be made up for.
    saved = {event.step for event in told if isinstance(event, Saved) and event.which == "last"}
    assert 5 in saved and not saved & {1, 3}
    assert [line["step"] for line in read_metrics(job.run) if "phase" in line] == [3, 6]


@row("train.validation_size")
def train_validation_size_is_the_photos_or_the_tests(ground):
    val = ground.prepared().val
    for size, side in (("photo", 64), ("test", 96)):
        shapes = ground.passes(
            lambda run: validate(run.model, val, run.preset, CPU),
            "eval.long_side=96",
            "cam.scales=[1.0]",
            "affinity.scale=1.0",
            f"train.validation_size={size}",
        )
        assert shapes.count((1, 3, side, side)) == len(val.samples)


@row("train.seed")
def train_seed_is_that_of_weights_order_views_and_noise(ground):
    assert not torch.equal(*(prepare(ground.preset(f"train.seed={s}"), CPU).model.classifier for s in (0, 1)))
    assert ground.batch("train.seed=0")["image_id"] != ground.batch("train.seed=1")["image_id"]
    drawn = []
    for seed, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
        ground.take(step, f"train.seed={seed}")
        drawn.append(torch.initial_seed())
    assert len(set(drawn)) == 3 and drawn[0] == drawn[3], "each step its own, the same again"


@row("train.precision")
def train_precision_is_that_of_the_networks_products(ground):
    fine, coarse = (ground.take(CLASSIFICATION, f"train.precision={name}")[0] for name in ("float32", "bfloat16"))
    assert 0 < abs(fine.loss - coarse.loss) < 0.05 * fine.loss
    assert ground.take(CLASSIFICATION, "train.precision=auto")[0].loss == fine.loss, "on a CPU"


@row("train.compile")
def train_compile_compiles_the_backbone(ground):
    compiled = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("afactl.training.prepared.require_compiler", lambda: None)
        patch.setattr(torch.nn.Module, "compile", lambda module, **options: compiled.append(type(module).__name__))
        ground.prepared("train.compile=false")
        assert not compiled
        ground.prepared("train.compile=true")
    assert compiled == ["MixTransformer"]


@row("train.deterministic")
def train_deterministic_asks_torch_for_it(ground):
    for asked in (True, False):
        ground.prepared(f"train.deterministic={str(asked).lower()}")
        assert torch.are_deterministic_algorithms_enabled() == asked


@row("train.workers")
def train_workers_read_the_photos(ground):
    seen = []

    class Loader(torch.utils.data.DataLoader):
        def __init__(self, *given, num_workers=0, **options):
            seen.append(num_workers)
            super().__init__(*given, num_workers=0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_module, "DataLoader", Loader)
        for workers in (0, 3):
            ground.job("train.max_iters=1", f"train.workers={workers}").run_steps()
    assert seen == [0, 0, 3, 0]  # of the steps, and of the rehearsal before them, which starts no processes


# cam


@row("cam.scales")
def cam_scales_are_passed_with_their_mirror_images(ground):
    shapes = ground.passes(lambda run: cam_record(run, *ground.photo()), "cam.scales=[1.0,0.5,1.5]")
    assert sorted(shapes) == [(2, 3, side, side) for side in (32, 64, 96)]


@row("cam.beta_low", "cam.beta_high")
def cam_betas_take_from_the_ignored_pixels(ground):
    """More is background below a higher beta_low, less an object above a higher beta_high."""

    def shares(low, high):
        label = ground.targets(f"cam.beta_low={low}", f"cam.beta_high={high}", phase=Phase.REFINED).segmentation
        background, ignored = share(label, 0), share(label, 255)
        return background, 1 - background - ignored

    base, higher_low, higher_high = shares(0.3, 0.5), shares(0.45, 0.5), shares(0.3, 0.7)
    assert higher_low[0] > base[0] and higher_low[1] == base[1]
    assert higher_high[1] < base[1] and higher_high[0] == base[0]


@row("cam.background")
def cam_background_cuts_the_cam_that_is_scored(ground):
    low, high = (ground.scored(f"cam.background={value}")[0] for value in (0.2, 0.6))
    assert share(low[0], 0) < share(high[0], 0) and share(low[1], 0) < share(high[1], 0), "without and with PAR"


@row("cam.max_pixels")
def cam_max_pixels_reduces_what_is_larger(ground):
    record = cam_record(ground.run("cam.max_pixels=1024"), *ground.photo())
    assert record.cam.shape[1:] == (32, 32)
    assert cam_record(ground.run("cam.max_pixels=null"), *ground.photo()).cam.shape[1:] == (64, 64)


@row("cam.refiner")
def cam_refiner_makes_the_labels_of_training(ground):
    plain, refined = (
        ground.targets(f"cam.refiner={name}", phase=Phase.REFINED).segmentation for name in ("none", "par")
    )
    assert not torch.equal(plain, refined)


# par


@row("par.iterations", "par.w3")
def par_weights_of_a_pixel_sum_to_1_and_w3_at_each_iteration(ground):
    """Planes that sum to 1 sum to (1 + w3)^iterations afterwards."""
    for iterations, w3 in ((0, 0.5), (1, 0.5), (2, 0.5), (2, 0.0)):
        planes = ground.refined("par", f"par.iterations={iterations}", f"par.w3={w3}")
        torch.testing.assert_close(planes.sum(dim=0), torch.full((64, 64), (1 + w3) ** iterations))


@row("par.dilations")
def par_dilations_are_how_far_it_sees(ground):
    """One spot of one pixel spreads to its neighbours at these distances alone."""
    image, spot = torch.zeros(1, 3, 33, 33), torch.zeros(1, 1, 33, 33)
    spot[..., 16, 16] = 1.0
    for distance in (1, 5):
        preset = ground.preset(f"par.dilations=[{distance}]", "par.iterations=1")
        reached = preset_refiner(preset, "par")(image, spot)[0, 0].nonzero()
        assert {tuple((abs(one - 16)).tolist()) for one in reached} == {
            (0, distance),
            (distance, 0),
            (distance, distance),
        }


@row("par.w1")
def par_w1_smooths_the_more_over_edges_of_the_photo(ground):
    """The larger, the less colours count: planes come closer to a plain mean, and vary less."""
    sharp, smooth = (ground.refined("par", f"par.w1={w}", "par.w3=0.0")[0].var() for w in (0.1, 3.0))
    assert smooth < sharp


@row("par.w2")
def par_w2_lets_distant_neighbours_weigh_more(ground):
    near, far = (ground.refined("par", f"par.w2={w}", "par.w3=5.0", "par.dilations=[1,9]")[0].var() for w in (0.1, 9.0))
    assert far < near


# affinity


@row("affinity.enabled")
def affinity_enabled_has_a_loss_and_propagates(ground):
    with_it, without = (ground.take(LABELS, f"affinity.enabled={on}")[0] for on in ("true", "false"))
    assert (with_it.phase, set(with_it.losses)) == (Phase.PROPAGATED, {"cls", "seg", "aff"})
    assert (without.phase, set(without.losses)) == (Phase.REFINED, {"cls", "seg"})


@row("affinity.radius")
def affinity_radius_is_how_far_pairs_are_learned_from(ground):
    used = [(ground.targets(f"affinity.radius={r}").pairs != 255).sum().item() for r in (0, 1, 3)]
    assert used[0] < used[1] < used[2]
    labels = [ground.targets(f"affinity.radius={r}").segmentation for r in (0, 3)]
    assert not torch.equal(*labels), "and how far a label walks"


@row("affinity.alpha", "affinity.eps")
def affinity_alpha_and_eps_change_the_walk_of_training_and_scoring(ground):
    """A small power evens affinities out. With eps a token with little affinity keeps little of any plane."""
    for change in ("affinity.alpha=0.1", "affinity.eps=5.0"):
        assert not torch.equal(ground.targets().segmentation, ground.targets(change).segmentation), change
        base, other = ground.scored(), ground.scored(change)
        assert not np.array_equal(base[2], other[2]) and np.array_equal(base[0], other[0]), change


@row("affinity.scale")
def affinity_scale_is_the_grid_of_the_affinity_that_is_scored(ground):
    grids = [cam_record(ground.run(f"affinity.scale={scale}"), *ground.photo()).grid for scale in (1.0, 1.5)]
    assert grids == [(4, 4), (6, 6)]


@row("affinity.background")
def affinity_background_cuts_the_propagated_maps_that_are_scored(ground):
    low, high = (ground.scored(f"affinity.background={value}") for value in (0.1, 0.9))
    assert share(low[1:], 0) < share(high[1:], 0) and np.array_equal(low[0], high[0])


# loss


@row("loss.cls", "loss.seg", "loss.aff", "loss.reg")
def loss_weights_weigh_the_terms(ground):
    weights = {"cls": 1.0, "seg": 0.5, "aff": 2.0, "reg": 3.0}
    changes = [f"loss.{name}={value}" for name, value in weights.items()]
    taken, updater = ground.take(LABELS, *changes)
    assert set(taken.losses) == set(weights) and all(taken.losses.values())
    assert taken.loss == pytest.approx(sum(weights[name] * loss for name, loss in taken.losses.items()), rel=1e-5)
    assert "reg" not in ground.take(LABELS, "loss.reg=0")[0].losses
    # What is weighed is what is learned: without a weight its own head learns nothing.
    for name, head in (("cls", "classifier"), ("aff", "affinity_head.weight"), ("seg", "decoder.predict.weight")):
        gradient = ground.take(LABELS, *changes, f"loss.{name}=0", "loss.reg=0")[1].model.get_parameter(head).grad
        assert not gradient.any() and updater.model.get_parameter(head).grad.any(), name


@row("loss.part_photos")
def loss_part_photos_averages_the_means_of_parts(ground):
    """With parts of one photo the loss of two photos is the mean of the losses of each."""
    batch = ground.batch()
    losses = {}
    for part in ("null", "1"):
        made = ground.prepared(f"loss.part_photos={part}")
        made.model.decoder.norm = torch.nn.Identity()
        step = training_step.StepLosses(made.model, made.preset)
        losses[part] = step(batch, Phase.REFINED)["seg"].item()
        each = [step({k: v[i : i + 1] for k, v in batch.items()}, Phase.REFINED)["seg"].item() for i in range(2)]
    assert losses["1"] == pytest.approx(sum(each) / 2, abs=1e-5) and abs(losses["1"] - losses["null"]) > 1e-4


# optim


@row("optim.lr", "optim.head_lr_factor")
def optim_rates(ground):
    """AdamW's first step moves a weight by the rate."""
    changes = ("optim.warmup_iters=0", "optim.weight_decay=0", "optim.lr=1e-3", "optim.head_lr_factor=7")
    before = ground.prepared(*changes).model
    taken, updater = ground.take(CLASSIFICATION, *changes)
    assert taken.rate == pytest.approx(1e-3)
    for name, rate in (("backbone.block4.1.mlp.fc2.weight", 1e-3), ("classifier", 7e-3)):
        moved = updater.model.get_parameter(name) - before.get_parameter(name)
        assert moved.abs().max().item() == pytest.approx(rate, rel=1e-2)


@row("optim.weight_decay", "optim.idle_heads")
def optim_weight_decay_shrinks_what_has_a_gradient_also_one_of_zero(ground):
    changes = ("optim.warmup_iters=0", "optim.lr=1e-2", "optim.head_lr_factor=1", "optim.weight_decay=0.5")
    name = "decoder.predict.weight"
    before = ground.prepared(*changes).model.get_parameter(name)
    for idle, factor in (("rest", 1.0), ("count", 1 - 1e-2 * 0.5)):
        _, updater = ground.take(CLASSIFICATION, *changes, f"optim.idle_heads={idle}")
        torch.testing.assert_close(updater.model.get_parameter(name), factor * before)
    plain, decayed = (ground.take(CLASSIFICATION, *changes, f"optim.weight_decay={w}")[1] for w in (0.0, 0.5))
    assert decayed.model.classifier.norm() < plain.model.classifier.norm()


@row("optim.betas")
def optim_betas_are_what_adam_remembers(ground):
    _, updater = ground.take(CLASSIFICATION, "optim.betas=[0.5,0.75]")
    state, gradient = updater.optimizer.state[updater.model.classifier], updater.model.classifier.grad
    torch.testing.assert_close(state["exp_avg"], 0.5 * gradient)
    torch.testing.assert_close(state["exp_avg_sq"], 0.25 * gradient**2)


@row("optim.warmup_iters", "optim.warmup_ratio", "optim.power")
def optim_schedule(ground):
    def rates(*changes):
        settings = ("train.max_iters=8", "optim.lr=1.0", *changes)
        return [ground.take(step, *settings)[0].rate for step in (0, 2, 4)]

    assert rates("optim.warmup_iters=4", "optim.warmup_ratio=0.2", "optim.power=1") == pytest.approx([0.2, 0.6, 0.5])
    assert rates("optim.warmup_iters=0", "optim.power=2") == pytest.approx([1.0, 0.5625, 0.25])


@row("optim.freeze")
def optim_freeze_keeps_parts_of_the_backbone(ground):
    norm, early = "backbone.norm4.weight", "backbone.block1.0.attn.q.weight"
    for what, kept in (("nothing", ()), ("norms", (norm,)), ("2", (early,)), ("backbone", (norm, early))):
        changes = ("optim.warmup_iters=0", f"optim.freeze={what}")
        before, (_, updater) = ground.prepared(*changes).model, ground.take(LABELS, *changes)
        for name in (norm, early):
            assert torch.equal(updater.model.get_parameter(name), before.get_parameter(name)) == (name in kept), what
        assert not torch.equal(updater.model.decoder.norm.weight, before.decoder.norm.weight)


# eval and crf


@row("eval.long_side", "eval.scales")
def eval_sizes_of_the_passes(ground):
    shapes = ground.passes(
        lambda run: segment(run.model, ground.photo()[0], CPU, multi_scale(run.preset.eval)),
        "eval.long_side=96",
        "eval.scales=[1.0,0.5]",
    )
    assert shapes == [(2, 3, 96, 96), (2, 3, 48, 48)]


@row("eval.max_pixels")
def eval_max_pixels_reduces_what_is_larger(ground):
    val = ground.prepared().val
    for limit, side in (("1024", 32), ("null", 64)):
        changes = (f"eval.max_pixels={limit}", "eval.long_side=null", "eval.scales=[1.0]")
        shapes = ground.passes(lambda run: evaluate_segmentation(run, val), *changes)
        assert (2, 3, side, side) in shapes and len(set(shapes)) == 2


@row("eval.mirror")
def eval_mirror_by_mean_lies_below_the_maximum(ground):
    mean, maximum = (ground.logits("eval.scales=[1.0]", f"eval.mirror={how}") for how in ("mean", "maximum"))
    assert (mean <= maximum + 1e-6).all() and (mean < maximum - 1e-4).any()


@row("eval.fuse_at")
def eval_fusion_on_the_logits_grid_lies_below_that_at_the_photo(ground):
    """A maximum of interpolated maps is nowhere below the interpolated maximum; two scales, no mirror image's share."""
    changes = ("eval.scales=[1.0,2.0]", "eval.mirror=mean")
    grid, photo = (ground.logits(*changes, f"eval.fuse_at={where}") for where in ("logits", "photo"))
    assert not torch.allclose(grid, photo, atol=1e-4)


@row("eval.sizes")
def eval_sizes_are_nearest_or_cut_off(ground):
    for how, rows in (("nearest", 68), ("floor", 67)):
        shapes = ground.passes(
            lambda run: segment(run.model, ground.photo()[0][:45], CPU, multi_scale(run.preset.eval)),
            f"eval.sizes={how}",
            "eval.long_side=96",
            "eval.scales=[1.0]",
        )
        assert shapes == [(2, 3, rows, 96)], "45 rows beside 64 pixels become 67.5"


@row(
    "crf.iterations",
    "crf.gaussian_weight",
    "crf.bilateral_weight",
    "crf.gaussian_sxy",
    "crf.bilateral_sxy",
    "crf.bilateral_srgb",
)
def crf_settings_smooth_the_planes(ground):
    """More iterations and weight leave fewer pixels whose label is not the next one's; reaches change the planes."""

    def planes(**settings):
        plain = {"iterations": 1, "gaussian_weight": 0.2, "bilateral_weight": 0.2, "gaussian_sxy": 1.0}
        plain |= {"bilateral_sxy": 4.0, "bilateral_srgb": 5.0, **settings}
        return ground.refined("crf", *(f"crf.{key}={value}" for key, value in plain.items()))

    def rough(planes):
        label = planes.argmax(dim=0)
        return (label[:, 1:] != label[:, :-1]).sum().item()

    base = planes()
    for key, value in {"iterations": 8, "gaussian_weight": 3.0, "bilateral_weight": 3.0}.items():
        assert rough(planes(**{key: value})) < rough(base), key
    for key, value in {"gaussian_sxy": 3.0, "bilateral_sxy": 32.0, "bilateral_srgb": 60.0}.items():
        assert (planes(**{key: value}) - base).abs().mean() > 1e-3, key


@row("crf.drop_below")
def crf_drop_below_leaves_out_what_is_nowhere_probable(ground):
    """Both planes are above 0.7 somewhere, none above 0.999."""
    image, planes = torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 0.1)
    planes[:, 0] = 0.8
    for limit, alive in ((0.05, True), (0.2, False)):
        preset = ground.preset(f"crf.drop_below={limit}")
        assert bool(preset_refiner(preset, "crf")(image, planes)[0, 1:].any()) == alive


def test_the_refiner_of_a_step_is_the_presets(ground):
    """What PAR and the CRF are set to counts in training, not only where they are called by themselves."""
    base = ground.targets(phase=Phase.REFINED).segmentation
    for change in ("par.iterations=12", "par.w1=3.0", "par.dilations=[9]"):
        assert not torch.equal(base, ground.targets(change, phase=Phase.REFINED).segmentation), change
    crf = [
        ground.targets("cam.refiner=crf", f"crf.bilateral_weight={w}", phase=Phase.REFINED).segmentation
        for w in (0.1, 9.0)
    ]
    assert not torch.equal(*crf)


def test_every_key_has_a_row():
    assert set(ROWS) == set(field_names())


@pytest.mark.parametrize("shows", dict.fromkeys(ROWS.values()), ids=lambda shows: shows.__name__)
def test_a_key_does_what_it_says(ground, shows):
    shows(ground)
