"""What a game can win, measured before it is played: four figures and what is said of them."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.data.files import png, write_json
from tests.tiny import shared_tiny_janus
from tests.training.helpers import blocks
from unigame import cli
from unigame.doctor import game, game_figures
from unigame.doctor.gaps import USUAL
from unigame.errors import UserError
from unigame.methods.selfplay import SelfPlay
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
    words = ["doctor", "--game", "janus_nano", "--pictures", "16", "--json", str(file)]
    assert cli.main(words) == 0
    found, said = json.loads(file.read_text()), capsys.readouterr().out
    assert found["recipe"] == "janus_nano" and found["pictures"] == 16
    clean = found["drawable"]["clean"]
    assert clean["real"] > 0.7 and abs(clean["difference"]) < 0.15
    assert set(found["drawable"]) == {"clean", *found["verifier"]["by_style"]}
    assert found["verifier"]["by_style"]["contrast"]["auc"] > 0.9
    assert {"learned", "random", "none"} <= set(found["found"])
    assert found["found"]["pictures"] == 8, "C practised on the other half"
    assert found["missed"]["clean"] == clean["real"]
    assert len(found["styles"]) == 7, "those of the recipe"
    assert len(found["says"]) == 5 and all(text in said for text in found["says"])
    assert "unigame train janus_nano" in said
    assert said.index("about ") < said.index("3 of 4"), "the time is told early"


def test_a_random_model_is_measured_and_left_as_it_is(tmp_path):
    model = shared_tiny_janus()
    styles = {"styles": ["{caption} in fog"], "guidance_scale": 1.0}
    plan = recipe(str(model), tmp_path, similarity="none", **styles)
    said: list[str] = []
    found = game.diagnose(plan, pictures=9, steps=2, say=said.append)
    assert "seconds in all" in said[1]
    style = found["styles"]["{caption} in fog"]
    assert style["verified"] == 1 and style["lost"]["error"] >= 1 / 9
    assert found["pictures"] == 9 and found["found"]["pictures"] == 5  # all but the first batch
    assert found["found"]["against_random"]["error"] >= 1 / 5
    assert found["verifier"]["worst"]["auc"] == 0.5  # it says the same of all pictures
    assert found["verifier"]["same_kept"] == found["verifier"]["others_kept"] == 1
    assert not list(tmp_path.iterdir()), "something was left behind"


def own_data(folder: Path, pictures: int) -> Path:
    """A json list of different pictures, and a damaged one."""
    rows = []
    for number in range(pictures + 1):
        file = folder / f"{number}.png"
        file.write_bytes(png((20 * number, 100, 50)) if number else b"no picture")
        text = {"question": "how many objects ?", "answer": "two", "caption": f"a circle {number}"}
        rows.append({"id": f"mine-{number}", "image": file.name, **text})
    return write_json(folder / "my.json", rows)


def test_own_model_and_data_take_the_place_of_the_recipes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(game, "diagnose", partial(game.diagnose, steps=1))
    file, model = tmp_path / "mine.yaml", str(shared_tiny_janus())
    file.write_text(
        "model: no-model-here\ndata: [{type: captions, path: nowhere}]\n"
        "methods: {selfplay: {similarity: none, clip_floor: 0.5}}\n"
        "training: {use_cpu: true, per_device_train_batch_size: 4, eval_strategy: 'no'}\n"
    )
    data, figures = own_data(tmp_path, 10), tmp_path / "figures.json"
    words = ["doctor", "--game", str(file), "--model", model, "--data", str(data)]
    assert cli.main([*words, "--json", str(figures)]) == 0
    found, shown = json.loads(figures.read_text()), capsys.readouterr()
    assert found["model"] == model and found["pictures"] == 10
    assert found["overrides"] == [f"--model={model}", f"--data={data}"]
    assert f"unigame train {file} --model={model} --data={data}" in shown.out
    assert "my.json" in shown.err, "what the data was found to be"


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--game", "janus_nano", "--recipe", "mine.yaml"], ("--recipe mine.yaml", "--game")),
        (["--data", "my.json"], ("--data my.json", "--game")),
        (["--pictures", "20"], ("--pictures 20", "--game")),
        (["--json", "x.json"], ("--json x.json", "--game")),
        (["--game", "janus_nano", "--data", "absent.json"], ("absent.json",)),
    ],
)
def test_options_that_do_not_belong_together_are_refused(words, names, capsys):
    assert cli.main(["doctor", *words]) != 0
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(name in said for name in names)


def test_the_help_says_how_many_pictures_are_usual(capsys):
    assert cli.main(["doctor", "--help"]) == 0
    assert f"default: {USUAL}" in " ".join(capsys.readouterr().out.split())


def test_the_recipes_4_bits_are_loaded(tmp_path, monkeypatch):
    class Loaded(Exception):
        pass

    def load(name, **settings):
        raise Loaded(settings["quantization"])

    monkeypatch.setattr("unigame.backbones.load_backbone", load)
    monkeypatch.setattr(game, "require_quantization", lambda kind: None)
    plan = replace(recipe("no model here", tmp_path), quantization="nf4")
    with pytest.raises(Loaded, match="nf4"):
        game.diagnose(plan, pictures=8)


def test_rows_of_one_are_compared_and_c_plays_with_little_memory(tmp_path, monkeypatch):
    """The verifier sees all pictures joined; C challenges and recomputes as the recipe says."""
    recomputed, practised, rows_at_once = [], [], set()
    play, challenge = SelfPlay.play, game_figures.challenge

    def watched(self, rows, **settings):
        modules = self.run.backbone.modules()
        on = (getattr(m, "gradient_checkpointing", False) and m.training for m in modules)
        recomputed.append(any(on))
        practised.append(len(rows))
        return play(self, rows, **settings)

    def counted(backbone, perturber, rows, *rest, **settings):
        rows_at_once.add(len(rows))
        return challenge(backbone, perturber, rows, *rest, **settings)

    monkeypatch.setattr(SelfPlay, "play", watched)
    monkeypatch.setattr(game_figures, "challenge", counted)
    settings = {"similarity": "cosine", "gradient_checkpointing": True}
    plan = recipe(str(shared_tiny_janus()), tmp_path, per_device_train_batch_size=1, **settings)
    alone = game.diagnose(plan, pictures=8, steps=2)
    assert recomputed == [True, True]
    settings = {"similarity": "cosine", "challenge_share": 0.5, "challenge_micro_batch": 4}
    plan = recipe(str(shared_tiny_janus()), tmp_path, **settings)
    together = game.diagnose(plan, pictures=8, steps=2)
    assert rows_at_once == {1, 2} and recomputed[2:] == [False, False]
    assert practised == [1, 1, 2, 2], "as many as the recipe challenges in a step"
    assert alone["verifier"]["worst"]["auc"] < 1
    worst = (one["verifier"]["by_style"]["blur"]["auc"] for one in (alone, together))
    assert next(worst) == pytest.approx(next(worst), abs=1e-6)


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


def test_the_best_floor_keeps_the_same_and_rejects_others():
    high = torch.tensor([0.5, 0.6, 0.25])
    assert game_figures.best_floor(high, torch.tensor([0.1, 0.2])) == pytest.approx(0.25)
