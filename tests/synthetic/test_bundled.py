"""The shipped ``janus-nano`` keeps what its gates measured; small samples, so a little slack."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import unigame
from tools.janus_nano_48 import gates
from unigame.backbones import load_backbone
from unigame.backbones.base import Backbone
from unigame.synthetic.world import caption

FOLDER = Path(unigame.__file__).parent / "synthetic" / "janus_nano"


@pytest.fixture(scope="module")
def nano() -> Backbone:
    return load_backbone("janus-nano").eval()


def test_it_is_small_and_in_the_hub_format() -> None:
    assert sum(f.stat().st_size for f in FOLDER.iterdir()) <= 16 * 1024**2
    assert {"config.json", "model.safetensors", "tokenizer.json", "processor_config.json"} <= {
        f.name for f in FOLDER.iterdir()
    }


def test_the_tokenizer_keeps_what_a_picture_shows(nano: Backbone) -> None:
    assert gates.tokenizer(nano, seed=1, scale=0.1)["tokenizer"] >= 0.98


def test_it_draws_captions_with_room_left_and_without_collapse(nano: Backbone) -> None:
    figures = gates.drawing(nano, seed=1, scale=0.4)
    low, high = gates.BANDS["drawing"]
    assert low - 0.08 <= figures["drawing"] <= high + 0.05
    assert figures["anchor"] >= 0.96
    assert figures["distinct_of_40"] == 40


def test_it_answers_every_kind_above_chance(nano: Backbone) -> None:
    figures = gates.understanding(nano, seed=1, scale=0.25)
    low, high = gates.BANDS["understanding"]
    assert low - 0.05 <= figures["understanding"] <= high + 0.05
    for kind, chance in gates.CHANCE.items():
        assert figures[kind] > chance, (kind, figures[kind])
    assert figures["ood"] < figures["understanding"]


def test_at_eps_zero_without_an_anchor_the_drawing_is_its_own(nano: Backbone) -> None:
    """Teacher-forced redrawing differs from the codes: the reason why an anchor exists."""
    scenes = gates.fresh(8, seed=2)
    images = gates._pixels(nano, scenes)
    states = nano.visual_states(images, [caption(s) for s in scenes])
    with torch.no_grad():
        free = nano.draw(states.states_BNH, states.codes).compact
        held = nano.draw(states.states_BNH, states.codes, anchor=gates.ANCHOR).compact
    assert (free != states.codes).float().mean() > 0.1
    assert (held != states.codes).float().mean() < 0.1


def test_it_draws_what_is_named_by_what_one_knows_of_it(nano: Backbone) -> None:
    assert gates.knowing(nano, seed=1, scale=0.5)["knowledge"] > 0.45
