"""Figures of a run, drawing from arrays, and the report page."""
