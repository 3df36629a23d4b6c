"""The models that come with this package."""

from pathlib import Path

BUNDLED = {"mini": Path(__file__).parent / "assets" / "mini"}
