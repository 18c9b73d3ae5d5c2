"""Scores of a split: segmentation, pseudo labels, and the metrics of both."""
