"""PAR against the textbook form: python benchmarks/par.py"""

import textbook
import torch
from ratio import compare, machine, peak_memory, picture

from afactl.refinement.par import pixel_adaptive_refinement

if __name__ == "__main__":
    machine()
    for height, width, planes in ((375, 500, 5), (256, 256, 3)):
        image, scores = picture(height, width)[None], torch.rand(1, planes, height, width)
        ours, other = (lambda: pixel_adaptive_refinement(image, scores)), (lambda: textbook.par(image, scores))  # noqa: B023
        difference = (ours() - other()).abs().max().item()
        compare(f"PAR {height} x {width}, {planes} planes, 10 iterations", ours, other, "textbook", rounds=3)
        print(f"  largest difference {difference:.1e}")
    setup = "import sys, torch; sys.path.insert(0, 'benchmarks'); import textbook; from afactl.refinement.par import pixel_adaptive_refinement as par\n"
    setup += "image, scores = torch.rand(1, 3, 375, 500) * 255, torch.rand(1, 5, 375, 500)\n"
    ours, other = (peak_memory(setup, job) for job in ("par(image, scores)", "textbook.par(image, scores)"))
    print(f"peak memory 375 x 500, 5 planes: ours {ours:.0f} MiB, textbook {other:.0f} MiB, 1/{other / ours:.1f}")
