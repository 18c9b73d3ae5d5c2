"""Masks for any photos, and the forms in which they are handed over."""
