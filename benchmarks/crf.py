"""The dense CRF on the lattice against pydensecrf: python benchmarks/crf.py"""

import torch
from ratio import compare, machine, picture

from afactl.refinement.crf import dense_crf, dense_crf_pydensecrf

if __name__ == "__main__":
    machine()
    torch.manual_seed(0)
    image = picture(375, 500).to(torch.uint8)
    coarse = torch.randn(1, 21, 16, 21)
    coarse[:, [0, 3, 7]] += 4.0
    scores = torch.nn.functional.interpolate(4 * coarse, size=(375, 500), mode="bilinear").softmax(1)[0]
    for title, drop in (("all classes", 0.0), ("without dead classes", 1e-3)):
        dead = int((scores.flatten(1).amax(1) < drop).sum())
        found = dense_crf(image, scores, drop_below=drop)
        equal = (found.argmax(0) == dense_crf_pydensecrf(image, scores).argmax(0)).float().mean().item()
        compare(
            f"dense CRF 375 x 500, 21 classes ({dead} dead), 10 iterations, {title}",
            lambda: dense_crf(image, scores, drop_below=drop),  # noqa: B023
            lambda: dense_crf_pydensecrf(image, scores), "pydensecrf",
        )  # fmt: skip
        print(f"  {100 * equal:.3f} % of labels equal")
