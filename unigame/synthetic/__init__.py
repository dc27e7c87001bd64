"""The embedded default: a procedural world, a reader that judges pictures, the bundled models."""

from .dataset import SyntheticDataset
from .world import Scene, caption, render

__all__ = ["Scene", "SyntheticDataset", "caption", "render"]
