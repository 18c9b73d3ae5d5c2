"""Photos per second of the whole training step, and where its time goes: python benchmarks/throughput.py [BATCH] [SIDE]

On a GPU it also asks torch to report every wait of the host for the device inside the maths.
"""

import contextlib
import sys
import time
import warnings

import torch
from ratio import machine, picture

from afactl.machine.allocator import keep_freed_memory
from afactl.method import losses
from afactl.method.affinity import Walk, log_sigmoid, random_walk
from afactl.method.refinement import stacks
from afactl.method.refinement.lattice import bilateral_features, build_lattice, lattice_filter
from afactl.method.refinement.par import pixel_adaptive_refinement
from afactl.method.schedule import Phase
from afactl.network import model
from afactl.presets import load_preset
from afactl.training import step as training_step
from afactl.training.optimizer import build_optimizer

STEPS = 20000
spent: dict[str, float] = {}


@contextlib.contextmanager
def clock(name: str, device: torch.device):
    synchronize(device)
    start = time.perf_counter()
    yield
    synchronize(device)
    spent[name] = spent.get(name, 0.0) + time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def clocked(holder, function: str, name: str, device: torch.device) -> None:
    """Let a function count its time under a name."""
    original = getattr(holder, function)

    def call(*arguments, **options):
        with clock(name, device):
            return original(*arguments, **options)

    setattr(holder, function, call)


def waits(device: torch.device) -> None:
    """Name what makes the host wait for the GPU."""
    image, planes = picture(256, 256)[None].to(device), torch.rand(1, 6, 256, 256, device=device)
    tokens, logits = torch.rand(1, 6, 48, 48, device=device), torch.randn(1, 48, 48, 17 * 17, device=device)
    features, values = bilateral_features(image, 50.0, 15.0)[0], torch.rand(256 * 256, 21, device=device)
    lattice = build_lattice(features)
    jobs = {
        "PAR": lambda: pixel_adaptive_refinement(image, planes),
        "propagation": lambda: random_walk(tokens, log_sigmoid(logits), Walk(8)),
        "lattice filter": lambda: lattice_filter(values, lattice),
        "building the lattice": lambda: build_lattice(features),
    }
    for name, job in jobs.items():
        job()
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            job()
        torch.cuda.set_sync_debug_mode("default")
        print(f"  {name}: the host waits {len(seen)} times")


if __name__ == "__main__":
    machine()
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    side = int(sys.argv[2]) if len(sys.argv) > 2 else 512
    print(torch.cuda.get_device_name() if device.type == "cuda" else "no GPU: on the CPU")
    torch.manual_seed(0)
    network = model.AFA("mit_b1", 20).to(device).train()
    image = torch.stack([picture(side, side, seed) for seed in range(batch)]).to(device, torch.uint8)
    label = torch.zeros(batch, 20, device=device)
    label[:, 3] = label[::2, 7] = 1
    box = torch.tensor([[0, side, 0, side]] * batch)
    preset = load_preset("voc")
    optimizer = build_optimizer(network, preset)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        terms = training_step.training_losses(network, image, label, box, Phase.PROPAGATED, preset)
        total = sum(terms.values())
        with clock("backward", device):
            total.backward()
        optimizer.step()

    rounds = 20 if device.type == "cuda" else 3
    step()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(rounds):
        step()
    synchronize(device)
    seconds = (time.perf_counter() - start) / rounds
    print(
        f"MiT-B1, batch {batch}, {side}: {batch / seconds:.2f} photos/s, {1000 * seconds:.0f} ms per step; "
        f"{STEPS} steps would take {STEPS * seconds / 3600:.1f} h"
    )

    spent.clear()
    clocked(network, "multi_scale_cam", "CAM", device)
    clocked(training_step, "refined_label", "refined labels", device)
    clocked(training_step, "propagated_label", "propagated labels", device)
    clocked(stacks, "pixel_adaptive_refinement", "of both labels: PAR", device)
    clocked(training_step, "energy_loss", "energy loss, forward", device)
    clocked(losses, "build_lattice", "of it: building the lattice", device)
    for _ in range(rounds):
        step()
    for name, value in spent.items():
        print(f"  {name}: {100 * value / rounds / seconds:.0f} %")
    if device.type == "cuda":
        waits(device)
