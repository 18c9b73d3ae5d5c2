"""The dense CRF on the lattice against pydensecrf: python benchmarks/crf.py"""

import torch
from ratio import compare, machine, picture

from afactl.method.refinement.crf import DenseCrf, dense_crf, dense_crf_pydensecrf


def contest(image: torch.Tensor, scores: torch.Tensor, title: str, drop: float) -> None:
    equal = (
        (dense_crf(image, scores, DenseCrf(drop_below=drop)).argmax(0) == dense_crf_pydensecrf(image, scores).argmax(0))
        .float()
        .mean()
        .item()
    )
    compare(
        f"  {title}",
        lambda: dense_crf(image, scores, DenseCrf(drop_below=drop)),
        lambda: dense_crf_pydensecrf(image, scores),
        "pydensecrf, all classes",
    )
    print(f"    {100 * equal:.3f} % of labels equal")


if __name__ == "__main__":
    machine()
    torch.manual_seed(0)
    image = picture(375, 500).to(torch.uint8)
    coarse = torch.randn(1, 21, 16, 21)
    print("dense CRF 375 x 500, 21 classes, 10 iterations")
    for found in (21, 10, 4):
        # Classes that are not in the picture get next to no probability anywhere.
        logits = 4 * coarse
        logits[:, found:] = -12
        scores = torch.nn.functional.interpolate(logits, size=(375, 500), mode="bilinear").softmax(1)[0]
        if found == 21:
            contest(image, scores, "none dropped", 0.0)
        alive = int((scores.flatten(1).amax(1) >= 1e-3).sum())
        contest(image, scores, f"{alive} of 21 classes alive, the others dropped", 1e-3)
