"""PAR against the naive form: python benchmarks/par.py"""

import naive
import torch
from ratio import compare, machine, peak_memory, picture

from afactl.machine.allocator import keep_freed_memory
from afactl.method.refinement.par import pixel_adaptive_refinement


def contest(height: int, width: int, planes: int) -> None:
    image, scores = picture(height, width)[None], torch.rand(1, planes, height, width)
    ours, other = (lambda: pixel_adaptive_refinement(image, scores)), (lambda: naive.par(image, scores))
    difference = (ours() - other()).abs().max().item()
    compare(f"PAR {height} x {width}, {planes} planes, 10 iterations", ours, other, "naive", rounds=3)
    print(f"  largest difference {difference:.1e}")


if __name__ == "__main__":
    machine()
    contest(375, 500, 5)
    contest(256, 256, 3)
    setup = "import sys, torch; sys.path.insert(0, 'benchmarks'); import naive\n"
    setup += "from afactl.method.refinement.par import pixel_adaptive_refinement as par\n"
    setup += "image, scores = torch.rand(1, 3, 375, 500) * 255, torch.rand(1, 5, 375, 500)\n"
    # A first call on a small picture, so that the code itself is in memory before.
    ours, other = (
        peak_memory(f"{setup}{call}(image[..., :60, :60], scores[..., :60, :60])", f"{call}(image, scores)")
        for call in ("par", "naive.par")
    )
    print(f"peak memory 375 x 500, 5 planes: ours {ours:.0f} MiB, naive {other:.0f} MiB, 1/{other / ours:.1f}")
    keep_freed_memory()
    print("with freed memory kept, as the command line keeps it, for both:")
    contest(375, 500, 5)
    contest(256, 256, 3)
