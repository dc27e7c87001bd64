"""Whether it is worth going on: said beside the figures, before the next stage is paid for.

Nothing stops by itself. A line of the log has ``decision``, which begins with STOP where a figure
is outside its limits; stop the command then, and go on by ``--stages``.
"""

from __future__ import annotations

from collections.abc import Mapping

from tools.common.gates import BANDS, CHANCE, Bands

AUTOENCODER: Bands = {
    "match": (0.99, 1.0),
    "seen_noise": (0.0, 0.12),
    "seen_texture": (0.0, 0.12),
    "seen_contrast": (0.0, 0.025),
}
"""What gate "drawable" needs of the autoencoder: latents, flow and all later stages hang on it."""
FLOW_FIRST: Bands = {"drawn": (0.2, 1.0), "drawn_places": (0.5, 1.0)}
"""At the end of the steps of captions alone. Places at random would agree in about .16."""
ABOVE_CHANCE = 0.05
"""How far each kind of question is to be above the gate's limit: a look is of 120 scenes."""
DRAWING = {1000: 0.25, 3000: 0.5}
"""Step of stage drawing -> share of objects that are drawn by then."""


def of_autoencoder(figures: Mapping[str, float]) -> str:
    """After stage vae."""
    return _judged(
        figures,
        AUTOENCODER,
        "set CHANNELS = 3 in tools/bagel_nano/config.py, delete vae.progress, and train vae again",
    )


def of_flow_first(figures: Mapping[str, float]) -> str:
    """Before answers begin in stage together."""
    return _judged(
        figures,
        FLOW_FIRST,
        "no later stage mends what captions mean; raise FIRST in language.py, delete "
        "together.progress, and train it again",
    )


def at_chance(found: Mapping[str, float]) -> list[str]:
    """Kinds of questions that are not learned yet."""
    return [kind for kind, low in CHANCE.items() if found[kind] < low + ABOVE_CHANCE]


def of_answers(found: Mapping[str, float]) -> str:
    """At the end of stage together: answers stay as they are from here on."""
    low, high = BANDS["understanding"]
    missed = [f"{', '.join(kinds)} near chance"] if (kinds := at_chance(found)) else []
    if found["mean"] < low:
        missed.append(f"mean={found['mean']:.3f} is below {low:g}")
    if missed:
        return (
            f"STOP: {'; '.join(missed)}: delete together.progress and give the stage more "
            "(--minutes together=90)"
        )
    if found["mean"] > high:
        return (
            f"STOP: mean={found['mean']:.3f} is above {high:g}, which leaves little to learn: "
            "see what gate room says of it; or lower COOLING in language.py, delete "
            "together.progress, and train it again"
        )
    return "go on"


def of_drawing(step: int, figures: Mapping[str, float]) -> dict[str, str]:
    """In stage drawing, at the steps of ``DRAWING``; nothing at others."""
    if step not in DRAWING:
        return {}
    otherwise = "look at a sheet (--stages sheet) before the rest is paid for"
    return {"decision": _judged(figures, {"drawn": (DRAWING[step], 1.0)}, otherwise)}


def _judged(figures: Mapping[str, float], bands: Bands, otherwise: str) -> str:
    missed = [
        f"{name}={figures[name]:.3f} is not from {low:g} to {high:g}"
        for name, (low, high) in bands.items()
        if not low <= figures[name] <= high
    ]
    return f"STOP: {'; '.join(missed)}: {otherwise}" if missed else "go on"
