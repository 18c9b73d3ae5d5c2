"""A training job: its steps, its loop, and what watches it."""
