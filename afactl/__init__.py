"""afactl: from image-level labels to segmentation masks with AFA (Ru et al., CVPR 2022)."""

__version__ = "0.1.0"
