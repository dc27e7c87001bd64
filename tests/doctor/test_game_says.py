"""What is said of the figures of a game: verdicts that know their errors."""

from __future__ import annotations

import math

import pytest

from unigame.doctor import game_says


def gap(of: float, error: float = 0.005) -> dict[str, float]:
    return {"gap": of, "error": error}


def auc(of: float, error: float = 0.01) -> dict[str, float]:
    return {"auc": of, "error": error}


def share(right: float | None, verified: float) -> dict:
    return {
        "clean": 0.9,
        "all": 0.8,
        "verified": verified,
        "verified_error": 0.03,
        "on_verified": right,
        "on_verified_error": 0.04,
        "missed_and_verified": 0.1,
        "missed_and_verified_error": 0.02,
        "lost": gap(0.1),
    }


def figures(
    *,
    drawable: dict[str, float] | None = None,
    drawable_error: float = 0.005,
    verifier: dict[str, float] | None = None,
    kept: tuple[float, float] = (0.9, 0.1),
    learned: float = 0.4,
    verified: float = 0.5,
    error: float = 0.01,
    lost: dict[str, float] | None = None,
    re_rendered: float = 0.0,
    lost_error: float = 0.005,
) -> dict:
    redrawn = {"clean": 0.0, "blur": 0.0, **(drawable or {})}
    by_style = {"blur": 0.0, **(lost or {})}
    of_verifier = verifier or auc(0.97)
    found = {
        "pictures": 96,
        "asked": 96,
        "drawable": {
            style: {
                "real": 0.6,
                "redrawn": 0.6 + by,
                "difference": by,
                "error": drawable_error,
            }
            for style, by in redrawn.items()
        },
        "verifier": {
            "similarity": "cosine",
            "worst": of_verifier,
            "by_style": {"blur": of_verifier},
            "clip_floor": 0.98,
            "same_kept": kept[0],
            "others_kept": kept[1],
            "best_floor": 0.75,
        },
        "found": {
            "steps": 1,
            "pictures": 48,
            "learned": share(learned, verified),
            "random": share(0.8, 0.9),
            "none": share(0.85, 0.95),
            "against_random": gap(0.8 - learned, error),
        },
        "missed": {
            "clean": 0.9,
            "clean_error": 0.03,
            "re_rendered": 0.9 - re_rendered,
            "corrupted": 0.9,
            "lost": {
                "re_rendered": gap(re_rendered, lost_error),
                "corrupted": gap(sum(by_style.values()) / len(by_style), lost_error),
                "by_redrawing": gap(0.05),
            },
            "lost_by_style": {style: gap(by, lost_error) for style, by in by_style.items()},
        },
    }
    return {**found, "says": game_says.says(found)}


def said(line: int, **given) -> str:
    return figures(**given)["says"][line]


def test_what_the_decoder_draws():
    assert "every one" in said(0) and "within 1.0 points" in said(0)
    lost = said(0, drawable={"blur": -0.2, "noise": 0.015, "contrast": 0.3})
    assert "blur, contrast is something else" in lost and "it can for clean, noise" in lost
    assert "--pictures" in said(0, drawable_error=0.08)
    # With as many pictures as it advises the interval leaves BLUNT out.
    assert "--pictures 200" in said(0, drawable={"noise": 0.04}, drawable_error=0.04)


def test_the_verifier():
    assert "can be taught" in said(1)
    assert "similarity=clip" in said(1, verifier=auc(0.6))
    assert "clip_floor=0.75" in said(1, kept=(0.2, 0.0))
    unclear = said(1, verifier=auc(0.88, 0.03))
    assert "cannot be told on 96 pictures" in unclear and "blur" in unclear


def test_a_verifier_that_could_not_be_measured_has_no_verdict():
    found = figures()
    found["verifier"].update(worst=None, by_style={"blur": None}, others_kept=None, best_floor=None)
    found["says"] = game_says.says(found)
    assert "not measured" in found["says"][1] and "knows content" in found["says"][1]
    assert "content: not measured" in "\n".join(game_says.lines(found))


def test_what_c_finds():
    assert "40 ± 4 % right" in said(2) and "can win" in said(2)
    assert "augmentation by noise" in said(2, learned=0.8, error=0.005)
    assert "changing what is shown" in said(2, verified=0.02)


def test_a_gap_of_c_within_noise_is_no_verdict():
    """Four points on 48 pictures: with no gap at all two of five runs show more than 2 points."""
    noise = said(2, learned=0.76, error=0.049)
    assert "can win" not in noise and "+4.0 ± 4.9" in noise
    assert "cannot be told on 48 pictures; take --pictures 600" in noise
    assert "cannot be told" in said(2, learned=0.8, error=0.05), "no gap is as unsure"


def test_where_the_data_have_no_more_pictures_none_are_advised():
    found = figures(learned=0.76, error=0.05)
    found["asked"] = 200
    text = game_says.says(found)[2]
    assert "the data have no more" in text and "--pictures" not in text


def test_nothing_certified_of_random_directions_is_no_win():
    found = figures()
    found["found"]["random"] = share(None, 0.0)
    found["found"]["against_random"] = gap(math.nan, math.nan)
    assert "nothing to compare" in game_says.says(found)[2]
    assert "none certified" in "\n".join(game_says.lines(found))


def test_what_u_misses():
    assert "room in noise (+30.0 ± 0.5 points)" in said(3, lost={"noise": 0.3})
    assert "new content" in said(3)
    assert "cannot win" in said(3, drawable={"blur": -0.3}, lost={"blur": 0.3})
    assert "cannot win" in said(3, drawable={"clean": -0.3}, re_rendered=0.3)


@pytest.mark.parametrize("lost", [0.0, 0.05])
def test_what_u_misses_within_noise_is_no_verdict(lost: float):
    unsure = said(3, lost={"blur": lost}, lost_error=0.03)
    assert "cannot be told on 96 pictures; take --pictures" in unsure


def in_fog(verified: float, right: float | None, lost: float, error: float) -> str:
    found = figures()
    found["styles"] = {"a {caption} in fog": {**share(right, verified), "lost": gap(lost, error)}}
    found["says"] = game_says.says(found)
    assert f"{100 * verified:.0f} ± 3 % that are certified" in "\n".join(game_says.lines(found))
    return found["says"][4]


def test_styles_are_judged_by_what_u_misses_of_verified_drawings():
    assert "can teach" in in_fog(0.5, 0.7, 0.2, 0.03)
    assert "nothing to win" in in_fog(0.5, 0.88, 0.01, 0.01)
    assert "cannot be told" in in_fog(0.5, 0.82, 0.07, 0.04)
    assert "Hardly any" in in_fog(0.01, None, math.nan, math.nan)


def test_what_is_printed_has_every_figure_with_its_error():
    text = "\n".join(game_says.lines(figures(drawable={"blur": -0.2})))
    for part in (
        "60.0% real",
        "40.0% redrawn",
        "-20.0 ± 0.5",
        "worst of three 0.970 ± 0.010",
        "clip_floor 0.98 keeps 90%",
        "40 ± 4 % right on the 50 ± 3 % that are certified; 10 ± 2 % certified and missed",
        "U on training pictures 90 ± 3 %",
        "by the game's own redrawing +5.0 ± 0.5",
    ):
        assert part in text
