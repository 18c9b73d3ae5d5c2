"""Looking at a run in a browser: pointing at a photo, moving sliders, reviewing."""
