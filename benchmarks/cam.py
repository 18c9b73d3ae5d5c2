"""Multi-scale CAM of one photo against one encoder pass: python benchmarks/cam.py"""

import torch
from naive import multi_scale_cam
from ratio import compare, machine, picture

from afactl.datasets.transforms import normalize
from afactl.machine.allocator import keep_freed_memory
from afactl.network.model import AFA

if __name__ == "__main__":
    machine()
    keep_freed_memory()  # as the command line does
    model = AFA("mit_b1", 20).eval()
    pixels = normalize(picture(375, 500)[None])
    with torch.inference_mode():
        print("MiT-B1, 375 x 500, scales 1, 0.5, 1.5 with flip; the arithmetic alone is 7x")
        compare(
            "  CAM",
            lambda: model.backbone(pixels),
            lambda: model.multi_scale_cam(pixels, (1.0, 0.5, 1.5), 1.0),
            "multi-scale CAM",
        )
        fused = model.multi_scale_cam(pixels, (1.0, 0.5, 1.5), 1.0).cam
        plain = multi_scale_cam(model, pixels, (1.0, 0.5, 1.5))
        print(f"  largest difference from the naive form {(fused - plain).abs().max().item():.1e}")
