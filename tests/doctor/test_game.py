"""What a game can win, measured before it is played: four figures and what is said of them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.tiny import shared_tiny_janus
from tests.training.helpers import blocks
from unigame import cli
from unigame.doctor import game
from unigame.errors import UserError
from unigame.training.recipe import Recipe, build_recipe


def recipe(model: str, folder: Path, size: int = 60, **settings) -> Recipe:
    chosen = {
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": 4,
        "max_steps": 7,
        "use_cpu": True,
        **settings,
    }
    return build_recipe(
        {
            "model": model,
            "dtype": "float32",
            "data": [{"type": "synthetic", "split": "train", "size": size}],
            **blocks(chosen),
        }
    )


def test_the_bundled_game_is_measured(tmp_path, capsys, monkeypatch):
    """Its model draws clean pictures well, and its verifier knows a faint copy as the same."""
    monkeypatch.setattr(game, "diagnose", partial(game.diagnose, steps=2))
    file = tmp_path / "new" / "figures.json"
    words = ["doctor", "--game", "janus_nano", "--pictures", "24", "--json", str(file)]
    assert cli.main(words) == 0
    found, said = json.loads(file.read_text()), capsys.readouterr().out
    assert found["recipe"] == "janus_nano" and found["pictures"] == 24
    clean = found["drawable"]["clean"]
    assert clean["real"] > 0.7 and abs(clean["difference"]) < 0.15
    assert set(found["drawable"]) == {"clean", *found["verifier"]["auc_by_style"]}
    assert found["verifier"]["auc_by_style"]["contrast"] > game.GOOD_AUC
    assert {"learned", "random", "none"} <= set(found["found"])
    assert found["missed"]["clean"] == clean["real"]
    assert len(found["styles"]) == 7, "those of the recipe"
    assert len(found["says"]) == 5 and all(text in said for text in found["says"])
    assert "unigame train janus_nano" in said


def test_a_random_model_is_measured_and_left_as_it_is(tmp_path):
    model = shared_tiny_janus()
    styles = {"styles": ["{caption} in fog"], "guidance_scale": 1.0}
    plan = recipe(str(model), tmp_path, similarity="none", **styles)
    found = game.diagnose(plan, pictures=9, steps=2)
    assert found["styles"]["{caption} in fog"]["verified"] == 1
    assert found["pictures"] == 9 and found["found"]["pictures"] == 1  # the last batch of 4
    assert found["verifier"]["auc"] == 0.5  # it says the same of all pictures
    assert found["verifier"]["same_kept"] == found["verifier"]["others_kept"] == 1
    assert not list(tmp_path.iterdir()), "something was left behind"


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"methods": "sft"}, "selfplay"), ({"perturb_space": "tokens"}, "perturb_space=tokens")],
)
def test_recipes_without_a_game_that_draws_are_refused(tmp_path, settings, name):
    with pytest.raises(UserError, match=name):
        game.diagnose(recipe("no model here", tmp_path, **settings))


def test_too_few_pictures_are_refused(tmp_path):
    with pytest.raises(UserError, match="1 pictures with an answer"):
        game.diagnose(recipe(str(shared_tiny_janus()), tmp_path, size=3))


def test_figures_need_a_game(capsys, tmp_path):
    assert cli.main(["doctor", "--json", str(tmp_path / "x.json")]) != 0
    assert "--game" in capsys.readouterr().err


def test_the_best_floor_keeps_the_same_and_rejects_others():
    high = torch.tensor([0.5, 0.6, 0.25])
    assert game.best_floor(high, torch.tensor([0.1, 0.2])) == pytest.approx(0.25)


def drawable(**gaps: float) -> dict[str, dict[str, float]]:
    gaps = {"clean": 0.0, **gaps}
    real = {style: 0.9 if style == "clean" else 0.6 for style in gaps}
    return {
        style: {"real": real[style], "redrawn": real[style] + gap, "difference": gap, "error": 0.02}
        for style, gap in gaps.items()
    }


def figures(learned=0.4, verified=0.5, auc=0.95, kept=(0.9, 0.1), **gaps) -> dict:
    def candidates(right: float | None, share: float) -> dict[str, float | None]:
        return {
            "clean": 0.9,
            "all": 0.8,
            "verified": share,
            "on_verified": right,
            "missed_and_verified": 0.1,
        }

    styles = drawable(**gaps)
    attacks = {
        "steps": 1,
        "learned": candidates(learned, verified),
        "random": candidates(0.8, 0.9),
        "none": candidates(0.85, 0.95),
    }
    return {
        "pictures": 9,
        "drawable": styles,
        "verifier": {
            "similarity": "cosine",
            "auc": auc,
            "auc_by_style": {"blur": auc},
            "clip_floor": 0.98,
            "same_kept": kept[0],
            "others_kept": kept[1],
            "best_floor": 0.75,
        },
        "found": attacks,
        "missed": game._missed(styles, attacks),
    }


def test_each_figure_is_judged():
    def said(line: int, **given) -> str:
        return game.says(figures(**given))[line]

    assert "every one" in said(0, blur=0.01)
    lost = said(0, blur=-0.2, noise=0.03, contrast=0.3)
    assert "blur, contrast is something else" in lost and "it can for clean, noise" in lost
    assert "similarity=clip" in said(1, auc=0.6, blur=0.0)
    assert "clip_floor=0.75" in said(1, kept=(0.2, 0.0), blur=0.0)
    assert "can be taught" in said(1, blur=0.0)
    assert "40% right" in said(2, blur=0.0) and "can win" in said(2, blur=0.0)
    assert "augmentation by noise" in said(2, learned=0.8, blur=0.0)
    assert "changing what is shown" in said(2, verified=0.02, blur=0.0)
    assert "room in blur" in said(3, blur=0.0, noise=-0.3)
    assert "cannot win" in said(3, blur=-0.3)


def test_styles_are_judged_by_what_u_misses_of_verified_drawings():
    def said(verified: float, right: float | None) -> str:
        found = figures(blur=0.0)
        found["styles"] = {"a {caption} in fog": {"verified": verified, "on_verified": right}}
        found["missed"]["clean"] = 0.9
        found["says"] = game.says(found)
        assert f"{verified:.0%} that are certified" in "\n".join(game.lines(found))
        return found["says"][4]

    assert "can teach" in said(0.5, 0.7)
    assert "nothing to win" in said(0.5, 0.88)
    assert "Hardly any" in said(0.01, None)


def test_without_a_gap_content_is_what_is_missing():
    found = figures(blur=0.0)
    found["missed"] = {"clean": 0.9, "re_rendered": 0.9, "corrupted": 0.89}
    assert "new content" in game.says(found)[3]


def test_what_is_printed_has_every_figure():
    found = figures(blur=-0.2)
    text = "\n".join(game.lines({**found, "says": game.says(found)}))
    for part in ("60.0% real", "40.0% redrawn", "-20.0 ± 2.0", "AUC 0.950", "0.98 keeps 90%"):
        assert part in text
