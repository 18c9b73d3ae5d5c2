"""The paper's ablation tables as jobs."""
