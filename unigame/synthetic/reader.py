"""The analytic reader: objects from pixels, by templates. It judges pictures; it never learns.

For every cell the picture is explained as background + amplitude x mask x (colour - background),
over 108 masks (4 shapes, 3 radii, 9 shifts) and all colours, in closed form by least squares.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .world import CELL_PX, COLOURS, GRID, SHAPES, SIDE, FloatImage, Scene, shape_mask

Triple = tuple[int, str, str]  # cell, colour, shape
SMALLEST_SIDE = 36  # px; every object is still found, and its template fits as well as at 48
MIN_AMPLITUDE = 0.45  # weaker than this is no object: half-drawn ghosts do not count

FAINTEST = 0.15
"""Amplitude of a faint object that counts as drawn, where faintness is a style (``shows``)."""
GHOST = 0.4
"""Amplitude below which what should not be there is taken for a trace of a style (``shows``)."""


@cache
def _templates() -> tuple[NDArray[np.float32], list[str]]:
    masks, names = [], []
    for shape in SHAPES:
        for radius in (5.3, 6.05, 6.8):
            for dx in (-0.8, 0.0, 0.8):
                for dy in (-0.8, 0.0, 0.8):
                    masks.append(shape_mask(shape, radius, dx, dy).ravel())
                    names.append(shape)
    return np.stack(masks), names


@dataclass(frozen=True)
class Sighting:
    """One object that the reader found, and how well its template explains the cell.

    Attributes:
        cell, colour, shape: what it is.
        amplitude: 1 for an object in its full colour, less for a ghost.
        fit: share of the cell's energy above its background that the template explains, in [0, 1].
        mask: coverage (48, 48) in [0, 1] of the matching template, in its place in the picture.
    """

    cell: int
    colour: str
    shape: str
    amplitude: float
    fit: float
    mask: FloatImage

    @property
    def triple(self) -> Triple:
        """Without the measurements."""
        return (self.cell, self.colour, self.shape)


def can_read(width: int, height: int) -> bool:
    """Whether a picture of this size may be one of the world; the bundled model draws 36 px."""
    return width == height and SMALLEST_SIDE <= width <= SIDE


def at_world_size(image: FloatImage) -> FloatImage:
    """The picture at the world's 48 px (bicubic), untouched if it has them."""
    if image.shape[:2] == (SIDE, SIDE):
        return image
    bands = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(image[..., band], np.float32)).resize(
                (SIDE, SIDE), Image.Resampling.BICUBIC
            )
        )
        for band in range(3)
    ]
    return np.clip(np.stack(bands, -1), 0, 1).astype(np.float32)


def look(image: FloatImage, *, min_amplitude: float = MIN_AMPLITUDE) -> list[Sighting]:
    """Objects of one picture in [0, 1], in reading order, with their measurements.

    A picture that is not 48 x 48 is resized first; at 36 px every object is still found.
    """
    image = at_world_size(image)
    masks_TP, names = _templates()
    mask_energy_T = (masks_TP**2).sum(1)
    palette_C3 = np.asarray(list(COLOURS.values()), np.float32) / 255
    colour_names = list(COLOURS)
    found: list[Sighting] = []
    cells = image.reshape(GRID, CELL_PX, GRID, CELL_PX, 3).transpose(0, 2, 1, 3, 4)
    for cell, pixels in enumerate(cells.reshape(-1, CELL_PX, CELL_PX, 3)):
        ring = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
        background = np.median(ring, axis=0)
        offset_P3 = (pixels - background).reshape(-1, 3)
        direction_C3 = palette_C3 - background
        colour_energy_C = (direction_C3**2).sum(1) + 1e-6
        match_CT = (direction_C3 @ offset_P3.T) @ masks_TP.T
        amplitude_CT = np.clip(
            match_CT / (colour_energy_C[:, None] * mask_energy_T[None]), 0.0, 1.15
        )
        # Energy explained at that amplitude; at the unclipped optimum it is match^2 / energy.
        explained_CT = 2 * amplitude_CT * match_CT - amplitude_CT**2 * (
            colour_energy_C[:, None] * mask_energy_T[None]
        )
        best = np.unravel_index(int(explained_CT.argmax()), explained_CT.shape)
        if amplitude_CT[best] >= min_amplitude:
            mask = np.zeros(image.shape[:2], np.float32)
            row, column = (CELL_PX * i for i in divmod(cell, GRID))
            mask[row : row + CELL_PX, column : column + CELL_PX] = masks_TP[best[1]].reshape(
                CELL_PX, CELL_PX
            )
            energy = float((offset_P3**2).sum()) + 1e-6
            found.append(
                Sighting(
                    cell=cell,
                    colour=colour_names[best[0]],
                    shape=names[best[1]],
                    amplitude=float(amplitude_CT[best]),
                    fit=float(np.clip(explained_CT[best] / energy, 0, 1)),
                    mask=mask,
                )
            )
    return found


def read(image: FloatImage, *, min_amplitude: float = MIN_AMPLITUDE) -> set[Triple]:
    """Objects of one picture in [0, 1] as a set of (cell, colour, shape)."""
    return {sighting.triple for sighting in look(image, min_amplitude=min_amplitude)}


def truth(scene: Scene) -> set[Triple]:
    """What the reader should find in a clean picture of the scene."""
    return {(t.cell, t.colour, t.shape) for t in scene.things}


def shows(image: FloatImage, scene: Scene) -> bool:
    """Whether a picture (H, W, 3) shows the scene's objects, faint ones too, and no others."""
    seen = look(image, min_amplitude=FAINTEST)
    wanted = truth(scene)
    others = [one for one in seen if one.triple not in wanted]
    return wanted <= {one.triple for one in seen} and all(one.amplitude < GHOST for one in others)


def object_match(found: Iterable[set[Triple]], expected: Iterable[set[Triple]]) -> float:
    """Share of expected objects that were found, over all pictures."""
    pairs = list(zip(found, expected, strict=True))
    total = sum(len(e) for _, e in pairs)
    return sum(len(f & e) for f, e in pairs) / max(total, 1)


def exact_match(found: Iterable[set[Triple]], expected: Iterable[set[Triple]]) -> float:
    """Share of pictures read exactly right: nothing missing, nothing invented."""
    pairs = list(zip(found, expected, strict=True))
    return sum(f == e for f, e in pairs) / max(len(pairs), 1)
