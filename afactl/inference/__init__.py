"""One image at a time through a trained network."""
