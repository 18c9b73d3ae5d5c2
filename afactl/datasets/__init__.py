"""Datasets: the sample type, the registry of dataset formats, and what reads their files."""
