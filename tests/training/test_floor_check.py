"""A similarity floor that rejects nothing, or everything, is told, and its share is logged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.methods.test_semantics import PREPROCESSING, TEXT, VISION, WordTokenizer
from tests.tiny import shared_tiny_janus
from tests.training.helpers import Records, logs, make_game, make_trainer
from unigame.methods.selfplay import ClipSimilarity, SelfPlay, SelfPlaySettings
from unigame.methods.selfplay.floor_check import ENOUGH, FloorCheck
from unigame.methods.semantics import SimilarityScorer
from unigame.training.recipe import load_recipe
from unigame.training.trainer import UniGameTrainer

BIG = ("janus_pro_1b", "janus_pro_7b", "bagel_7b", "chameleon", "emu3", "composed_qwen_sd15")


@pytest.mark.parametrize(("floor", "told"), [(0.1, "none"), (0.5, ""), (0.95, "all")])
def test_a_floor_is_judged_over_the_first_batches(
    floor: float, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    check = FloorCheck(floor, "cosine")
    for start in range(0, ENOUGH, 8):
        assert not caplog.text
        check.see(torch.linspace(0.2, 0.9, ENOUGH)[start : start + 8].view(4, 2))
    # Other pictures, such as free drawings, may still become hard samples.
    said = f"clip_floor={floor} rejects {told} of these candidates"
    assert (said in caplog.text) == bool(told)
    assert bool(caplog.text) == bool(told)
    check.see(torch.zeros(ENOUGH, 1))
    assert caplog.text.count("clip_floor") == bool(told)


@pytest.mark.parametrize(("floor", "share"), [(-0.99, 0.0), (1.0, 1.0)])
def test_training_logs_the_share_below_the_floor_and_warns(
    floor: float, share: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(
        shared_tiny_janus(), tmp_path, Records(8, captions=True), clip_floor=floor
    )
    trainer.train()
    assert [entry["below_floor"] for entry in logs(trainer)] == [share, share]
    assert f"clip_floor={floor:g}" in caplog.text


@pytest.mark.parametrize("settings", [{"clip_floor": -1.0}, {"similarity": "none"}])
def test_no_filter_is_no_fault(
    settings: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = Records(8, captions=True)
    make_trainer(shared_tiny_janus(), tmp_path, data, **{"clip_floor": 0.3, **settings}).train()
    assert "rejects" not in caplog.text  # as the check says of a floor that is of no use


def test_an_image_text_floor_is_shown_beside_what_clean_pictures_score(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12))
    texts: list[str] = []

    class Tokenizer(WordTokenizer):
        def __call__(self, given, **kwargs):  # type: ignore[no-untyped-def]
            texts.extend(given)
            return super().__call__(given, **kwargs)

    scorer = ClipSimilarity(model, "image-text", preprocessing=PREPROCESSING, tokenizer=Tokenizer())
    monkeypatch.setattr("unigame.methods.selfplay.challenger.build_scorer", lambda *a, **k: scorer)
    trainer = make_trainer(
        shared_tiny_janus(),
        tmp_path,
        Records(8, captions=True),
        similarity="clip",
        similarity_model="tiny",
        clip_floor=0.99,
    )
    trainer.train()
    assert "clip image-text" in caplog.text and "of unaltered pictures" in caplog.text
    assert set(texts) == {f"a {colour} circle" for colour in ("red", "green", "blue", "yellow")}


@pytest.mark.parametrize("name", BIG)
def test_the_big_recipes_use_the_papers_floor_in_the_papers_mode(name: str) -> None:
    game = load_recipe(name, ["--use_cpu", "--bf16", "false"]).settings_of("selfplay")
    assert game.similarity == "clip" and game.similarity_mode == "image-text"
    assert 0 < game.clip_floor <= 0.35
    assert game.missing_captions == "model"


def test_the_default_mode_fits_the_default_floor() -> None:
    game = SelfPlaySettings()
    assert (game.similarity_mode, game.clip_floor) == ("image-text", 0.3)


def test_the_floor_of_the_bundled_recipe_rejects_some_candidates_and_not_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from unigame.data import build_dataset

    settings = ["--max_steps", "5", "--logging_steps", "5", "--eval_strategy", "no"]
    recipe = load_recipe("janus_nano", [*settings, "--use_cpu", "--output_dir", str(tmp_path)])
    trainer = UniGameTrainer(
        model="janus-nano",
        args=recipe.training,
        train_dataset=build_dataset(recipe.data, seed=0),
        peft_config=recipe.lora_config(),
        methods=recipe.build_methods(),
    )
    trainer.train()
    assert 0 < logs(trainer)[0]["below_floor"] < 0.5
    assert "rejects" not in caplog.text  # as the check says of a floor that is of no use


def test_a_scorer_that_is_given_is_named_and_checked(tmp_path: Path) -> None:
    class Given(SimilarityScorer):
        def forward(self, images, reference_images, texts, **known):  # type: ignore[no-untyped-def]
            return torch.full((len(images),), 0.5)

    game = make_game(similarity="none", clip_floor=0.3)
    given = SelfPlay(game.settings, scorer=Given())
    make_trainer(shared_tiny_janus(), tmp_path, Records(8, captions=True), methods=[given])
    assert given.floor_check.scorer == "Given"
    assert not given.floor_check._done and not given.verifier_check._done
