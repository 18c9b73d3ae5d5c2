"""Ours against the naive forms, with the C library's defaults and with freed memory kept on both sides, and what
no form could pass: python benchmarks/allocators.py [THREADS]
"""

import subprocess
import sys
from collections.abc import Callable
from functools import partial

import naive
import torch
from ratio import compare, machine, picture, seconds
from step import backward, inputs
from torch.utils.flop_counter import FlopCounterMode

from afactl.datasets.transforms import normalize
from afactl.machine.allocator import keep_freed_memory
from afactl.method.refinement.crf import DEFAULT, dense_crf, dense_crf_pydensecrf
from afactl.method.refinement.lattice import bilateral_features, build_lattice, lattice_filter, position_features
from afactl.method.refinement.par import pixel_adaptive_refinement
from afactl.method.schedule import Phase
from afactl.network.model import AFA
from afactl.presets import load_preset
from afactl.training.step import training_losses


def best(job: Callable[[], object]) -> float:
    """Seconds, the best of five."""
    return min(seconds(job) for _ in range(5))


def operations(job: Callable[[], object]) -> int:
    """Of matrix products, convolutions and attention. Forward alone: torch counts too many for grouped convolutions
    going backward."""
    with FlopCounterMode(display=False) as counter:
        job()
    return int(counter.get_total_flops())


def arithmetic_floor(count: int, other: Callable[[], object]) -> None:
    """What so many operations would take at the rate of one large matrix product."""
    square = torch.rand(2048, 2048)
    rate = 2 * 2048**3 / best(partial(torch.mm, square, square))
    floor(count / rate, other, f"its arithmetic at the {rate / 1e9:.0f} GFLOP/s of one large product")


def floor(least: float, other: Callable[[], object], what: str) -> None:
    print(f"  {what}: {1000 * least:.1f} ms, so at most {seconds(other) / least:.1f}x")


def step_at_320() -> None:
    """MiT-B1, batch 2, without the energy loss, which the naive has none of."""
    model, preset = inputs(320), load_preset("voc", ["loss.reg=0"])

    def ours() -> None:
        backward(training_losses(*model, Phase.PROPAGATED, preset))

    def other() -> None:
        backward(naive.training_step(*model, preset)[0])

    compare("training step at 320", ours, other, "naive", rounds=3)
    network, image = model[0], normalize(model[1])
    forward = operations(lambda: training_losses(*model, Phase.PROPAGATED, preset))
    # Backward is twice the forward pass that has a gradient.
    arithmetic_floor(forward + 2 * operations(lambda: network.segment(network(image))), other)


@torch.inference_mode()
def cam() -> None:
    """One photo of VOC's size."""
    model, pixels, scales = AFA("mit_b1", 20).eval(), normalize(picture(375, 500)[None]), (1.0, 0.5, 1.5)
    ours = partial(model.multi_scale_cam, pixels, scales, 1.0)
    other = partial(naive.multi_scale_cam, model, pixels, scales)
    compare("multi-scale CAM", ours, other, "naive", rounds=3)
    arithmetic_floor(operations(ours), other)


def par() -> None:
    """Three planes of 256 x 256."""
    image, scores = picture(256, 256)[None], torch.rand(1, 3, 256, 256)
    ours, other = (partial(form, image, scores) for form in (pixel_adaptive_refinement, naive.par))
    compare("PAR 256 x 256", ours, other, "naive")
    total, near, weight = torch.zeros(3, 256 * 304), torch.rand(3, 256 * 304 + 1)[:, 1:], torch.rand(256 * 304)

    def sums() -> None:
        for _ in range(10 * 48):
            total.addcmul_(near, weight)

    floor(best(sums), other, "480 multiply-adds alone")


def crf() -> None:
    """21 classes, none dropped."""
    image = picture(375, 500).to(torch.uint8)
    scores = torch.nn.functional.interpolate(4 * torch.randn(1, 21, 16, 21), size=(375, 500), mode="bilinear")
    ours, other = (partial(form, image, scores.softmax(1)[0]) for form in (dense_crf, dense_crf_pydensecrf))
    compare("dense CRF, 21 classes", ours, other, "pydensecrf")
    bilateral = bilateral_features(image[None], DEFAULT.bilateral_sxy, DEFAULT.bilateral_srgb)[0]
    position = position_features(375, 500, DEFAULT.gaussian_sxy, image.device)
    lattices, values = [build_lattice(features) for features in (bilateral, position)], torch.rand(375 * 500, 21)

    def sums() -> None:
        for _ in range(10):
            for lattice in lattices:
                lattice_filter(values, lattice)
            values.softmax(1)

    floor(best(sums), other, "the sums over the lattices and the softmax alone")


if __name__ == "__main__":
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    torch.set_num_threads(threads)
    if len(sys.argv) > 2:
        torch.manual_seed(0)
        if sys.argv[2] == "kept":
            keep_freed_memory()
        for contest in (step_at_320, cam, par, crf):
            contest()
    else:
        machine()
        for allocator in ("default", "kept"):  # each in a process of its own: what is set stays set
            print(f"memory: {allocator}", flush=True)
            subprocess.run([sys.executable, __file__, str(threads), allocator], check=True)
