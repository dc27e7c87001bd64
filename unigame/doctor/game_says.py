"""What the figures of ``unigame doctor --game`` mean: a sentence on each, and what is printed.

A verdict stands on its error. Where an interval of two standard errors holds both answers, the
sentence says so, and how many pictures would tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from unigame.doctor.game_figures import KINDS
from unigame.doctor.gaps import ENOUGH, judged, needed
from unigame.methods.selfplay.verifier_check import OTHERS

GOOD_AUC = 0.9
RARE = 0.1  # share of candidates below which hardly anything is verified
BLUNT = 0.1  # of accuracy: an error that would hide a loss of so much is no assurance
WORST = "worst of three"
"""The copies that the verifier's AUC of a run is taken of."""
Figures = dict[str, Any]


def says(found: Figures) -> list[str]:
    """A sentence on each figure: what the game can win there, and what to change."""
    said = [_of_drawable(found), _of_verifier(found), _of_attacks(found), _of_missed(found)]
    if found.get("styles"):
        said.append(_of_styles(found))
    return said


def _untold(
    found: Figures, gap: float, error: float, enough: float = ENOUGH, of: int | None = None
) -> str:
    """That the pictures do not tell, and how many would; ``of``: those that were measured."""
    said = f"cannot be told on {of or found['pictures']} pictures"
    many = needed(found["pictures"], gap, error, enough)
    if found["pictures"] < found["asked"]:
        return f"{said}, and the data have no more of them: it takes about {many}"
    return f"{said}; take --pictures {many}"


def cannot_draw(drawable: Figures) -> list[str]:
    """Styles that redrawing changes, in either direction, by more than chance and 2 points."""
    return [
        style
        for style, one in drawable.items()
        if judged(abs(one["difference"]), one["error"]) == "yes"
    ]


def _of_drawable(found: Figures) -> str:
    drawable = found["drawable"]
    lost = cannot_draw(drawable)
    drawn = {style: one for style, one in drawable.items() if style not in lost}
    if lost:
        return (
            f"Redrawn, {', '.join(lost)} is something else to U: no drawing of this decoder can "
            f"teach it there; it can for {', '.join(drawn) or 'none of the others'}. Change: an "
            "image tokenizer that is faithful to such pictures, or real augmentation of these "
            "styles."
        )
    hidden = {s: abs(one["difference"]) + 2 * one["error"] for s, one in drawn.items()}
    worst = max(hidden, key=lambda style: hidden[style])
    if not hidden[worst] <= BLUNT:
        one = drawn[worst]
        untold = _untold(found, abs(one["difference"]), one["error"], BLUNT)
        return f"Whether the decoder draws these styles as U sees them {untold}."
    return (
        "The decoder draws every one of these styles as U sees it, to within "
        f"{100 * hidden[worst]:.1f} points: the game can reach them."
    )


def _of_verifier(found: Figures) -> str:
    verifier = found["verifier"]
    if verifier["worst"] is None:
        return (
            "Whether the similarity knows content from style was not measured: no two pictures "
            "have different texts. Change: captions, or data with more than one content."
        )
    measured = _by_copies(verifier)
    mistaken = [name for name, one in measured.items() if _below(one) == "yes"]
    if mistaken:
        shown = ", ".join(f"{name} {measured[name]['auc']:.2f}" for name in mistaken)
        return (
            f"This similarity ({verifier['similarity']}) punishes style more than content (the "
            f"verifier's AUC: {shown}), so there it certifies the wrong candidates. Change: "
            "similarity=clip with an image-text checkpoint, or a reader of your own."
        )
    unclear = [name for name, one in measured.items() if _below(one) == "unknown"]
    if unclear:
        one = max((measured[name] for name in unclear), key=lambda one: one["error"])
        untold = _untold(found, one["auc"] - GOOD_AUC, one["error"], 0.0)
        return f"Whether the similarity knows content from style ({', '.join(unclear)}) {untold}."
    if verifier["same_kept"] - verifier["others_kept"] < 0.5:
        return (
            f"The similarity knows content from style, but clip_floor={verifier['clip_floor']:g} "
            f"keeps {verifier['same_kept']:.0%} of the same pictures and "
            f"{verifier['others_kept']:.0%} of others. Change: "
            f"clip_floor={verifier['best_floor']:.3g}."
        )
    return "The similarity knows content from style: what it certifies can be taught."


def _by_copies(verifier: Figures) -> dict[str, Figures]:
    return {WORST: verifier["worst"], **verifier["by_style"]}


def _below(one: Figures) -> str:
    """Whether an AUC is below ``GOOD_AUC``."""
    low, high = one["auc"] - 2 * one["error"], one["auc"] + 2 * one["error"]
    if high < GOOD_AUC:
        return "yes"
    return "no" if low >= GOOD_AUC else "unknown"


def _of_attacks(found: Figures) -> str:
    attacks = found["found"]
    learned, random = attacks.get("learned"), attacks["random"]
    if learned is None:
        return "The recipe's C does not learn, so there is nothing that it could find."
    if learned["verified"] < RARE:
        return (
            f"C wins by changing what is shown: only {_percent(learned, 'verified')} of its "
            "candidates are certified. Change: a larger anchor or label_weight, or a smaller "
            "eps_max."
        )
    if random["on_verified"] is None:
        return (
            "No candidate of random directions is certified, so there is nothing to compare C "
            "with. Change: a smaller eps_max, or a lower clip_floor."
        )
    gap, error = attacks["against_random"]["gap"], attacks["against_random"]["error"]
    shares = f"{_percent(learned, 'on_verified')} right, random directions "
    shares += f"{_percent(random, 'on_verified')}: {_points(gap, error)} points between them"
    verdict = judged(gap, error)
    if verdict == "yes":
        return (
            f"C finds certified pictures that U misses ({shares}): the game can win what these "
            "show."
        )
    if verdict == "unknown":
        untold = _untold(found, gap, error, of=attacks["pictures"])
        return f"Whether C finds more than random directions of its size ({shares}) {untold}."
    return (
        f"C finds nothing that random directions of its size do not ({shares}): the game would be "
        "augmentation by noise. Change: a larger eps_max or perturber_learning_rate, more "
        "perturber_steps, or another scope of C."
    )


def _of_missed(found: Figures) -> str:
    missed = found["missed"]
    lost_by_style, lost = missed["lost_by_style"], missed["lost"]
    drawn = [style for style in lost_by_style if style not in cannot_draw(found["drawable"])]
    verdicts = {
        style: judged(lost_by_style[style]["gap"], lost_by_style[style]["error"], 2 * ENOUGH)
        for style in drawn
    }
    room = [style for style in drawn if verdicts[style] == "yes"]
    if room:
        shown = ", ".join(f"{style} ({_points(**lost_by_style[style])} points)" for style in room)
        return f"U misses what it knows in another style: there is room in {shown}."
    overall = {name: lost[name] for name in ("re_rendered", "corrupted")}
    if all(judged(**one) == "no" for one in overall.values()):
        return (
            "U answers re-rendered and corrupted training pictures as well as the pictures: there "
            "is no style to win, and what it still lacks is new content. Change: more data, or a "
            "method that draws new captions."
        )
    loses = any(judged(**one) == "yes" for one in overall.values())
    unknown = [lost_by_style[style] for style in drawn if verdicts[style] == "unknown"]
    if loses and not unknown:
        shown = " and ".join(
            f"{_points(**one)} points on {name.replace('_', '-')}" for name, one in overall.items()
        )
        return (
            f"U loses {shown} training pictures, but in no style that the decoder can draw: the "
            "game cannot win them. Change: see the first line."
        )
    if not loses:
        unknown = [one for one in overall.values() if judged(**one) == "unknown"]
    one = max(unknown, key=_error)  # the figure to sharpen
    untold = _untold(found, one["gap"], one["error"], 2 * ENOUGH if loses else ENOUGH)
    return f"Whether there is a style to win {untold}."


def _of_styles(found: Figures) -> str:
    drawn = {name: one for name, one in found["styles"].items() if one["verified"] >= RARE}
    if not drawn:
        return (
            "Hardly any free drawing is certified: the model does not draw these captions. Change: "
            "shorter captions, a lower style_temperature, or styles that it knows."
        )
    lost = {name: one["lost"] for name, one in drawn.items()}
    verdicts = {name: judged(one["gap"], one["error"], 2 * ENOUGH) for name, one in lost.items()}
    hard = [name for name in drawn if verdicts[name] == "yes"]
    if hard:
        return f"U misses what it draws itself in {_quoted(hard)}: these styles can teach it."
    unknown = [name for name in drawn if verdicts[name] == "unknown"]
    if unknown:
        one = max((lost[name] for name in unknown), key=_error)
        untold = _untold(found, one["gap"], one["error"], 2 * ENOUGH)
        return f"Whether U misses what it draws itself in {_quoted(unknown)} {untold}."
    return (
        f"U reads its own drawings in {_quoted(list(drawn))} as well as the pictures: there is "
        "nothing to win by them. Change: other styles."
    )


# ---- how figures are written ---------------------------------------------------------------------
def _error(one: Figures) -> float:
    """Of a figure; none at all counts as the largest."""
    return math.inf if math.isnan(one["error"]) else float(one["error"])


def _quoted(styles: Sequence[str]) -> str:
    return ", ".join(f"'{style}'" for style in styles)


def _points(gap: float, error: float) -> str:
    return "not measured" if math.isnan(gap) else f"{100 * gap:+.1f} ± {100 * error:.1f}"


def _percent(one: Figures, name: str) -> str:
    if one[name] is None:
        return "none certified"
    return f"{100 * one[name]:.0f} ± {100 * one[f'{name}_error']:.0f} %"


def lines(found: Figures) -> list[str]:
    """What is printed: the figures of each part with their errors, and its sentence."""
    said = [f"   -> {text}" for text in found["says"]]
    parts = [
        [
            f"1. U on real pictures, and through the image tokenizer ({found['pictures']} pictures;"
            " ±: standard errors)",
            *_drawable_lines(found["drawable"]),
        ],
        _verifier_lines(found["verifier"]),
        _attack_lines(found["found"]),
        _missed_lines(found["missed"]),
    ]
    if found.get("styles"):
        parts.append(_style_lines(found["styles"]))
    return [line for part, text in zip(parts, said, strict=True) for line in (*part, text)]


def _drawable_lines(drawable: Figures) -> list[str]:
    return [
        f"   {style:<10} {one['real']:6.1%} real {one['redrawn']:6.1%} redrawn "
        f"{_points(one['difference'], one['error'])}"
        for style, one in drawable.items()
    ]


def _verifier_lines(verifier: Figures) -> list[str]:
    head = "2. The verifier's AUC: mildly corrupted copies against half of another picture's"
    if verifier["worst"] is None:
        return [f"{head} content: not measured"]
    shown = [
        f"{name} {one['auc']:.3f} ± {one['error']:.3f}"
        for name, one in _by_copies(verifier).items()
    ]
    return [
        f"{head} content ({2 * OTHERS} a picture)",
        f"   {', '.join(shown)}",
        f"   clip_floor {verifier['clip_floor']:g} keeps {verifier['same_kept']:.0%} of the copies "
        f"and {verifier['others_kept']:.0%} of the others",
    ]


def _attack_lines(attacks: Figures) -> list[str]:
    return [
        f"3. U on candidates of {attacks['pictures']} other pictures: C after {attacks['steps']} "
        "steps, random directions, plain redrawing",
        *(
            f"   {kind:<10} {_percent(attacks[kind], 'on_verified'):>14} right on the "
            f"{_percent(attacks[kind], 'verified')} that are certified; "
            f"{_percent(attacks[kind], 'missed_and_verified')} certified and missed"
            for kind in KINDS
            if kind in attacks
        ),
    ]


def _missed_lines(missed: Figures) -> list[str]:
    lost = missed["lost"]
    return [
        f"4. U on training pictures {_percent(missed, 'clean')}; on the same pictures it loses, in "
        "points:",
        f"   re-rendered {_points(**lost['re_rendered'])}, corrupted {_points(**lost['corrupted'])}"
        f", by the game's own redrawing {_points(**lost['by_redrawing'])}",
    ]


def _style_lines(styles: Figures) -> list[str]:
    return [
        "5. U on free drawings of the captions in the recipe's styles, and what it loses against "
        "the same pictures",
        *(
            f"   {prompt:<30} {_percent(one, 'on_verified'):>14} right on the "
            f"{_percent(one, 'verified')} that are certified; {_points(**one['lost'])} points lost"
            for prompt, one in styles.items()
        ),
    ]
