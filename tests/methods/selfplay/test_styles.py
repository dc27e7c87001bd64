"""C in the space of prompts: it finds what U misreads, its drawings join the game, and resume."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.helpers import (
    Records,
    game_of,
    logs,
    make_game,
    make_trainer,
    whole_and_resumed,
)
from unigame.errors import UserError
from unigame.methods.selfplay.styles import (
    StylePolicy,
    Styles,
    prompts_of,
    worth,
)

STYLES = ["faint : {caption}", "a sketch of {caption} in snow"]
STYLED: dict[str, Any] = {
    "styles": STYLES,
    "similarity": "none",
    "guidance_scale": 1.0,
    "buffer_min_size": 1,
}


# ---- the policy ----------------------------------------------------------------------------------
def play(policy: StylePolicy, worths: torch.Tensor, steps: int, seed: int = 0) -> torch.Tensor:
    """So many steps of sixteen drawings that are worth the same each time; the chances after."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        style_E = policy.choose(8, 2, generator).flatten()
        drawn = torch.bincount(style_E, minlength=len(worths))
        policy.see(torch.stack([drawn, drawn * worths]))
    return policy.chances()


def test_chances_maximise_the_expected_worth_and_the_price_of_entropy() -> None:
    worths, price = torch.tensor([0.1, 0.16, 0.14], dtype=torch.float64), 0.03
    policy = StylePolicy(3, price, memory=1e9)
    policy.see(torch.stack([torch.full((3,), 1e9), 1e9 * worths]))
    best = policy.chances()

    def objective(chances: torch.Tensor) -> float:
        return float((chances * worths).sum() - price * (chances * chances.log()).sum())

    assert best.argmax() == 1
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        other = best + 0.02 * torch.randn(3, generator=generator, dtype=torch.float64)
        other = other.clamp(min=1e-6) / other.clamp(min=1e-6).sum()
        assert objective(other) <= objective(best) + 1e-12


@pytest.mark.parametrize(("entropy", "least", "most"), [(0.05, 0.9, 1.0), (5.0, 0.33, 0.45)])
def test_it_finds_the_style_that_is_worth_most_unless_entropy_is_dear(
    entropy: float, least: float, most: float
) -> None:
    chances = play(StylePolicy(3, entropy, memory=20), torch.tensor([0.0, 0.1, 0.9]), steps=30)
    assert chances.argmax() == 2 and least <= chances[2] <= most


def test_it_turns_to_another_style_when_worths_change() -> None:
    policy = StylePolicy(3, 0.05, memory=10)
    assert play(policy, torch.tensor([0.9, 0.0, 0.1]), 30)[0] > 0.9
    assert play(policy, torch.tensor([0.0, 0.0, 0.8]), 200)[2] > 0.5


def test_without_memory_all_styles_stay_equally_likely() -> None:
    chances = play(StylePolicy(3, 0.05, memory=0), torch.tensor([0.0, 0.1, 0.9]), 10)
    assert torch.equal(chances, torch.full((3,), 1 / 3, dtype=torch.float64))


def test_a_drawing_that_is_not_verified_is_worth_nothing() -> None:
    found = worth(torch.tensor([[0.0, 2.0, 50.0]]), torch.tensor([[True, True, False]]))
    assert found.tolist()[0] == pytest.approx([0.0, 1 - 0.135335, 0.0], abs=1e-5)


# ---- controls ------------------------------------------------------------------------------------
def test_controls_draw_meaningless_styles_or_none() -> None:
    assert prompts_of(make_game(**STYLED).settings, 0) == STYLES
    assert prompts_of(make_game(**STYLED, perturbation="none").settings, 0) == ["{caption}"]
    random = make_game(**STYLED, perturbation="random").settings
    found = prompts_of(random, 0)
    assert found == prompts_of(random, 0) != prompts_of(random, 1)
    for prompt, style in zip(found, STYLES, strict=True):
        assert prompt != style and sorted(prompt) == sorted(style)
        assert prompt.index("{caption}") == style.index("{caption}")


# ---- settings ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"styles": ["faint"]}, "caption"),
        ({"styles": [STYLES[0], STYLES[0]]}, "twice"),
        ({"similarity": "cosine"}, "image-text"),
        ({"perturb_space": "tokens"}, "perturb_space"),
    ],
)
def test_styles_that_cannot_be_played_are_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        make_game(**{**STYLED, **change})


# ---- in a run ------------------------------------------------------------------------------------
def test_captions_are_drawn_in_styles_by_the_base_and_enter_the_buffer(
    tiny_path: Path, tmp_path: Path
) -> None:
    game = {**STYLED, "num_candidates": 2, "challenge_share": 0.25, "buffer_per_source": None}
    game["keep_examples"] = 4
    trainer = make_trainer(tiny_path, tmp_path, Records(captions=True), max_steps=2, **game)
    backbone, asked = trainer.backbone, []
    original = backbone.generate_compact

    def watched(prompts: Any, **options: Any) -> torch.Tensor:
        asked.append((list(prompts), options["seeds"]))
        return original(prompts, **options)

    backbone.generate_compact = watched  # type: ignore[method-assign]
    trainer.train()
    first, second, *_ = asked  # and once more for the report
    assert len(first[0]) == 4, "half of the batch of four, two candidates each"
    assert len({*first[1], *second[1]}) == 8, "each drawing has a seed of its own"
    fits = [style.split("{caption}") for style in STYLES]
    for prompt in first[0] + second[0]:
        assert any(prompt.startswith(a + "a ") and prompt.endswith(b) for a, b in fits), prompt
    # The base draws: what it would draw now, without the adapter, is what was kept.
    with backbone.lora_disabled():
        again = original(first[0], seeds=first[1], guidance_scale=1.0, temperature=1.0)
    kept = {tuple(one.compact.tolist()) for one in game_of(trainer).buffer.samples}
    assert {tuple(row) for row in again.tolist()} <= kept
    entry = logs(trainer)[0]
    used = [entry.get(f"style_{style}_used", 0) for style in range(2)]
    assert sum(used) == pytest.approx(1) and entry["styled_verified"] == 1
    assert "8 free drawings" in game_of(trainer).summary()
    shown = json.loads((tmp_path / "examples" / "examples.json").read_text())["examples"]
    assert shown and all(
        entry["style"] in STYLES
        and (tmp_path / "examples" / entry["pictures"]["styled"]).exists()
        and entry["said"].keys() == entry["pictures"].keys()
        for entry in shown
    )


def test_without_styles_nothing_is_drawn_freely(tiny_path: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_path, tmp_path, Records(captions=True), max_steps=1)
    trainer.backbone.generate_compact = None  # type: ignore[method-assign,assignment]
    trainer.train()
    assert not any(name.startswith("style") for name in logs(trainer)[0])


def test_what_has_no_caption_is_not_drawn_in_styles(tiny_path: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_path, tmp_path, Records(), max_steps=1, keep_examples=0, **STYLED)
    trainer.train()
    assert "no row has a caption" in game_of(trainer).summary()


def test_of_pictures_without_a_usable_description_nothing_is_drawn_in_styles(
    tiny_path: Path, tmp_path: Path
) -> None:
    whole = {**STYLED, "styled_share": 1.0, "missing_captions": "model"}
    trainer = make_trainer(tiny_path, tmp_path, Records(4), max_steps=1, **whole)
    game, backbone, asked = game_of(trainer), trainer.backbone, []
    draw = backbone.generate_compact

    def described(images: torch.Tensor, **options: Any) -> list[str]:
        return ["", *["a red circle"] * (len(images) - 1)]

    def drawn(prompts: Any, **options: Any) -> torch.Tensor:
        asked.extend(prompts)
        return draw(prompts, **options)

    backbone.caption, backbone.generate_compact = described, drawn  # type: ignore[method-assign]
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    assert game.styles is not None
    rows = game._styled(game.styles, batch, 0)
    assert rows.captions == ["a red circle"] * 3 and rows.counts
    game.styles.play(rows.pick([]), lambda *_: None)
    assert not asked, "rows that only keep step cost no drawing"
    game.styles.play(rows, lambda *_: None)
    assert asked and all("red circle" in text for text in asked), "and no question is drawn"


def test_it_resumes_bit_exactly(tiny_path: Path, tmp_path: Path) -> None:
    data = Records(8, captions=True)
    whole, resumed = whole_and_resumed(
        tiny_path, tmp_path, data, lambda: [make_game(**STYLED)], steps=3
    )
    one, other = (game_of(trainer).styles for trainer in (whole, resumed))
    assert one.policy.state_dict() == other.policy.state_dict()
    assert one.policy.chances()[0] != one.policy.chances()[1], "C has learned"
    assert one.counts == other.counts and one.drawn == other.drawn == 6


def test_what_it_is_given_is_what_it_plays_by(tiny_path: Path, tmp_path: Path) -> None:
    game, data = make_game(**STYLED), Records(8, captions=True)
    make_trainer(tiny_path, tmp_path, data, methods=[game], max_steps=1).train()
    styles = game.styles
    assert styles is not None
    state = {**styles.state_dict(), "policy": {"logits_M": torch.zeros(2)}}
    with pytest.raises(UserError, match="earlier version"):
        styles.load_state_dict(state)
    game.play_by(replace(game.settings, style_memory=3, style_entropy=0.5))
    assert (styles.policy.memory, styles.policy.entropy_weight) == (3, 0.5)
    game.play_by(replace(game.settings, perturbation="none"))
    assert styles.policy.memory == 0


def test_counts_of_several_processes_are_kept_once(tiny_path: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_path, tmp_path, Records(captions=True), max_steps=1, **STYLED)
    trainer.train()
    styles = game_of(trainer).styles
    assert styles is not None
    state = styles.state_dict()
    dealt = [Styles.regrouped([state, state], state, rank) for rank in range(2)]
    drawn = [sum(part["counts"]["drawn"]) for part in dealt if part]
    assert drawn == [2 * styles.drawn, 0]
