"""The synthetic world: small scenes of coloured shapes, drawn exactly and read back exactly.

A scene is a 3 x 3 board of 16 px cells (48 x 48 px in all) holding one to four objects, each in a
cell of its own, no two alike in both colour and shape. Backgrounds are plain and dark, or textured
(a condition that narrow training never sees). Everything is a function of a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SIDE, GRID, CELL_PX = 48, 3, 16

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 45, 45),
    "green": (45, 185, 65),
    "blue": (70, 95, 245),
    "yellow": (240, 220, 55),
    "pink": (240, 95, 215),
    "cyan": (60, 215, 230),
}
SHAPES = ("disc", "square", "triangle", "cross")
PLURALS = {"disc": "discs", "square": "squares", "triangle": "triangles", "cross": "crosses"}
CELLS = (
    *("northwest", "north", "northeast"),
    *("west", "centre", "east"),
    *("southwest", "south", "southeast"),
)
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")
BACKGROUNDS: tuple[tuple[int, int, int], ...] = (
    (18, 18, 24),
    (32, 26, 50),
    (20, 40, 44),
    (48, 28, 28),
    (42, 42, 46),
    (26, 44, 26),
)
TEXTURES = ("striped", "checkered", "dotted", "shaded")
# Combinations that narrow training data never contains: the out-of-distribution "combos" condition.
HELD_OUT = frozenset(
    {("red", "triangle"), ("green", "cross"), ("blue", "disc"), ("yellow", "square")}
)
RADIUS_RANGE, JITTER_PX = (5.3, 6.8), 1.0

Corruption = Literal["none", "noise", "contrast", "occlusion", "blur"]
Severity = Literal["mild", "strong", "broad", "far"]
# Noise sigma, contrast left over, blur sigma in px, brightness of a texture. The image encoder and
# tokenizer of the first bundled model were trained on "mild"; its splits used "strong".
# "broad" spans both, for parts that are trained as widely as web data; "far" is what the 36 px
# model's features hold, its image tokenizer can draw, and a reader of clean pictures misreads.
# "coarse" makes a texture's period longer; "grain" blurs noise of a coloured pixel each (0) into
# grey clouds of that many px: codes for patches of 5 px can hold neither finer.
RANGES: dict[Severity, dict[str, tuple[float, float]]] = {
    "mild": {
        "noise": (0.12, 0.22),
        "contrast": (0.22, 0.4),
        "blur": (1.2, 2.0),
        "texture": (0.16, 0.3),
        "coarse": (1.0, 1.0),
        "grain": (0.0, 0.0),
    },
    "strong": {
        "noise": (0.2, 0.32),
        "contrast": (0.06, 0.15),
        "blur": (2.4, 3.2),
        "texture": (0.16, 0.3),
        "coarse": (1.0, 1.0),
        "grain": (0.0, 0.0),
    },
    "broad": {
        "noise": (0.06, 0.4),
        "contrast": (0.06, 0.5),
        "blur": (0.9, 3.4),
        "texture": (0.12, 0.55),
        "coarse": (1.0, 2.2),
        "grain": (0.0, 3.0),
    },
    "far": {
        "noise": (0.2, 0.35),
        "contrast": (0.1, 0.22),
        "blur": (2.4, 3.2),
        "texture": (0.35, 0.5),
        "coarse": (1.8, 2.2),
        "grain": (3.0, 3.0),
    },
}
FloatImage = NDArray[np.float32]  # (48, 48, 3), in [0, 1]


@dataclass(frozen=True)
class Thing:
    """One object: where it is, what it is, and the pixels' worth of variation (radius, jitter)."""

    cell: int
    colour: str
    shape: str
    radius: float = 6.0
    dx: float = 0.0
    dy: float = 0.0

    @property
    def row(self) -> int:
        """0 at the top."""
        return self.cell // GRID

    @property
    def column(self) -> int:
        """0 at the left."""
        return self.cell % GRID


@dataclass(frozen=True)
class Scene:
    """Objects in reading order on one background, and how the picture of them is degraded."""

    things: tuple[Thing, ...]
    background: int = 0
    texture: str = "plain"
    corruption: Corruption = "none"
    severity: Severity = "mild"
    seed: int = 0  # of the texture's phase and the corruption's noise

    def with_things(self, things: Sequence[Thing]) -> Scene:
        """The same scene with other objects, put in reading order."""
        return replace(self, things=tuple(sorted(things, key=lambda t: t.cell)))


def random_scene(
    rng: np.random.Generator,
    *,
    combinations: Literal["seen", "held_out", "all"] = "seen",
    counts: tuple[int, ...] = (1, 2, 3, 4),
    texture: str = "plain",
    corruption: Corruption = "none",
    severity: Severity = "mild",
) -> Scene:
    """One scene. ``held_out`` puts at least one held-out combination among its objects."""
    pairs = [(c, s) for c in COLOURS for s in SHAPES]
    seen = [p for p in pairs if p not in HELD_OUT]
    count = int(rng.choice(counts))
    pool = pairs if combinations == "all" else seen
    chosen = [pool[i] for i in rng.permutation(len(pool))[:count]]
    if combinations == "held_out":
        held = sorted(HELD_OUT)
        chosen[0] = held[int(rng.integers(len(held)))]
    cells = rng.permutation(GRID * GRID)[:count]
    things = [
        Thing(
            cell=int(cell),
            colour=colour,
            shape=shape,
            radius=float(rng.uniform(*RADIUS_RANGE)),
            dx=float(rng.uniform(-JITTER_PX, JITTER_PX)),
            dy=float(rng.uniform(-JITTER_PX, JITTER_PX)),
        )
        for cell, (colour, shape) in zip(cells, chosen, strict=True)
    ]
    scene = Scene(
        (),
        background=int(rng.integers(len(BACKGROUNDS))),
        texture=texture,
        corruption=corruption,
        severity=severity,
        seed=int(rng.integers(2**31)),
    )
    return scene.with_things(things)


# ---- drawing -----------------------------------------------------------------------------------
def shape_mask(shape: str, radius: float, dx: float = 0.0, dy: float = 0.0) -> NDArray[np.float32]:
    """Anti-aliased coverage (16, 16) in [0, 1] of one shape in its cell, by signed distance."""
    axis = np.arange(CELL_PX, dtype=np.float32) + 0.5 - CELL_PX / 2
    x, y = axis[None, :] - dx, axis[:, None] - dy
    if shape == "disc":
        distance = np.hypot(x, y) - radius
    elif shape == "square":  # an outline, so that it is unlike a disc even when blurred
        half, thick = 0.92 * radius, 2.4
        distance = np.abs(np.maximum(np.abs(x), np.abs(y)) - (half - thick / 2)) - thick / 2
    elif shape == "triangle":
        slope = 0.95 * radius / (1.75 * radius)
        sides = (np.abs(x) - slope * (y + radius)) / np.sqrt(1 + slope**2)
        distance = np.maximum(sides, y - 0.75 * radius)
    elif shape == "cross":
        ax, ay, arm = np.abs(x), np.abs(y), 0.3 * radius
        distance = np.minimum(np.maximum(ax - radius, ay - arm), np.maximum(ax - arm, ay - radius))
    else:
        raise ValueError(f"unknown shape {shape!r}; the world has {', '.join(SHAPES)}")
    return np.clip(0.5 - distance, 0, 1).astype(np.float32)


def _between(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    """A number between the limits; limits that are equal take nothing from ``rng``."""
    low, high = limits
    return low if low == high else float(rng.uniform(low, high))


def _background(scene: Scene, rng: np.random.Generator) -> FloatImage:
    base = np.asarray(BACKGROUNDS[scene.background], np.float32) / 255
    image: FloatImage = np.tile(base, (SIDE, SIDE, 1)).astype(np.float32)
    if scene.texture == "plain":
        return image
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    coarse = _between(rng, RANGES[scene.severity]["coarse"])
    period, phase = 6 * coarse, float(rng.uniform(0, 8 * coarse))
    if scene.texture == "striped":
        angle = float(rng.uniform(0, np.pi))
        wave = (np.cos(angle) * x + np.sin(angle) * y + phase) % period < period / 2
    elif scene.texture == "checkered":
        wave = ((x + phase) // (4 * coarse) + (y + phase) // (4 * coarse)) % 2 < 1
    elif scene.texture == "dotted":
        u, v = (x + phase) % period - period / 2, (y + phase) % period - period / 2
        wave = u**2 + v**2 < 3.0 * coarse**2
    elif scene.texture == "shaded":
        angle = float(rng.uniform(0, 2 * np.pi))
        wave = 0.5 + (np.cos(angle) * (x - 24) + np.sin(angle) * (y - 24)) / 60
    else:
        raise ValueError(f"unknown texture {scene.texture!r}; there are {', '.join(TEXTURES)}")
    strength = np.float32(rng.uniform(*RANGES[scene.severity]["texture"]))
    textured: FloatImage = image + strength * np.asarray(wave, np.float32)[..., None]
    return textured


def _blur(image: FloatImage, sigma: float) -> FloatImage:
    reach = int(np.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    for axis in (0, 1):
        pad = [(0, 0)] * 3
        pad[axis] = (reach, reach)
        padded = np.pad(image, pad, mode="edge")
        image = sum(
            (w * np.take(padded, range(i, i + SIDE), axis=axis) for i, w in enumerate(kernel)),
            start=np.zeros_like(image),
        )
    return image


def _noise(rng: np.random.Generator, sigma: float, grain: tuple[float, float]) -> FloatImage:
    """Noise of one coloured pixel each or, with a grain, grey clouds; half of each if either."""
    if grain[1] == 0 or (grain[0] == 0 and rng.random() < 0.5):
        return rng.normal(0, sigma, (SIDE, SIDE, 3)).astype(np.float32)
    clouds = _blur(rng.normal(0, 1, (SIDE, SIDE, 1)).astype(np.float32), grain[1])
    return np.float32(sigma / clouds.std()) * clouds


def _corrupt(
    image: FloatImage, kind: Corruption, severity: Severity, rng: np.random.Generator
) -> FloatImage:
    if kind == "none":
        return image
    if kind == "occlusion":
        image = image.copy()
        for _ in range(3):
            width, start = int(rng.integers(3, 6)), int(rng.integers(0, SIDE - 5))
            bar = np.float32(rng.uniform(0.3, 0.6))
            if rng.random() < 0.5:
                image[start : start + width] = bar
            else:
                image[:, start : start + width] = bar
        return image
    if kind not in RANGES[severity]:
        raise ValueError(f"unknown corruption {kind!r}")
    low, high = RANGES[severity][kind]
    if kind == "noise":
        return image + _noise(rng, rng.uniform(low, high), RANGES[severity]["grain"])
    if kind == "contrast":
        grey = np.float32(rng.uniform(0.25, 0.5))
        return grey + np.float32(rng.uniform(low, high)) * (image - grey)
    return _blur(image, float(rng.uniform(low, high)))


def render(scene: Scene) -> FloatImage:
    """The picture of a scene: (48, 48, 3) float32 in [0, 1], the same at every call."""
    rng = np.random.default_rng(scene.seed)
    image = _background(scene, rng)
    for thing in scene.things:
        mask = shape_mask(thing.shape, thing.radius, thing.dx, thing.dy)[..., None]
        rows = slice(thing.row * CELL_PX, (thing.row + 1) * CELL_PX)
        columns = slice(thing.column * CELL_PX, (thing.column + 1) * CELL_PX)
        colour = np.asarray(COLOURS[thing.colour], np.float32) / 255
        image[rows, columns] = (1 - mask) * image[rows, columns] + mask * colour
    return np.clip(_corrupt(image, scene.corruption, scene.severity, rng), 0, 1).astype(np.float32)


# ---- words -------------------------------------------------------------------------------------
def caption(scene: Scene) -> str:
    """``northwest red disc, south blue cross``; textured or degraded pictures say so first."""
    style = {"contrast": "faint", "blur": "blurred", "occlusion": "barred", "noise": "noisy"}.get(
        scene.corruption, "" if scene.texture == "plain" else scene.texture
    )
    objects = ", ".join(f"{CELLS[t.cell]} {t.colour} {t.shape}" for t in scene.things)
    return f"{style}: {objects}" if style else objects


def parse_caption(text: str) -> set[tuple[int, str, str]]:
    """The (cell, colour, shape) triples that a caption names; words it cannot place are skipped."""
    words = text.replace(",", " ").replace(":", " ").split()
    found = set()
    for first, second, third in zip(words, words[1:], words[2:], strict=False):
        if first in CELLS and second in COLOURS and third in SHAPES:
            found.add((CELLS.index(first), second, third))
    return found
