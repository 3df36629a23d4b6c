"""The checks of `vlm check`."""
