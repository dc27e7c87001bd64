from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from tests.imports import PACKAGE
from tests.training.helpers import (
    Records,
    game_of,
    lora_weights,
    make_config,
    make_game,
    make_trainer,
)
from unigame.errors import UserError
from unigame.methods.selfplay import SelfPlay, SelfPlaySettings
from unigame.methods.selfplay.settings import SCHEDULES
from unigame.settings.rules import INF, Number
from unigame.training.config import UniGameConfig, training_rules
from unigame.training.recipe import load_recipe
from unigame.training.settings import RULES, TRACKERS

RECIPES = sorted(file.stem for file in (PACKAGE / "recipes").glob("*.yaml"))
# Older ones have settings that are gone since; they are read by their declared types.
TABLE_IS_OF_THIS = Version(transformers.__version__) >= Version("5.23")


def test_defaults_are_the_papers(tmp_path: Path) -> None:
    args, game = UniGameConfig(output_dir=str(tmp_path), use_cpu=True), SelfPlaySettings()
    assert (game.beta, args.learning_rate, game.perturber_learning_rate) == (0.5, 2e-5, 5e-3)
    assert (game.eps_max, game.eps_init, game.perturber_depth) == (0.02, 0.01, 3)
    assert (game.clip_weight, game.clip_floor, game.hard_quantile) == (0.2, 0.3, 0.6)
    assert (game.buffer_capacity, args.max_grad_norm, game.perturber_max_grad_norm) == (50, 1, 1)
    assert args.remove_unused_columns is False
    assert args.report_to == []
    assert args.data_seed == args.seed
    assert game.hard_rows(8) == 4  # one for two clean ones


def test_every_setting_is_in_the_table_and_every_own_one_explained() -> None:
    """A new setting, or a new one of transformers, needs a line in ``training/settings.py``."""
    inherited = {item.name for item in fields(TrainingArguments)}
    for item in fields(UniGameConfig):
        if item.name not in inherited:
            assert len(item.metadata["help"]) > 10, item.name
            assert item.name in RULES
        elif item.init and TABLE_IS_OF_THIS:
            assert item.name in RULES
    for item in fields(SelfPlaySettings):
        assert len(item.metadata["help"]) > 10 and "rule" in item.metadata, item.name


def test_every_number_has_a_range() -> None:
    hints = get_type_hints(UniGameConfig)
    known = training_rules(UniGameConfig)
    numbers = [name for name in known if {int, float} & kinds(hints[name])]
    assert len(numbers) > 30
    for name, rule in SelfPlay.rules().items():
        if isinstance(rule, Number):
            assert rule.low > -INF or rule.high < INF, name
    for name in numbers:
        rule = RULES[name] if TABLE_IS_OF_THIS else RULES.get(name, Number(low=0))
        assert isinstance(rule, Number) and (rule.low > -INF or rule.high < INF), name


def kinds(annotation: Any) -> set[Any]:
    return {annotation, *get_args(annotation)}


def test_the_trackers_are_those_of_transformers() -> None:
    assert set(INTEGRATION_TO_CALLBACK) <= set(TRACKERS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"challenge_every": -1}, "challenge_every=-1"),
        ({"challenge_every": 0}, r"methods: \[sft\]"),
        ({"challenge_every": 1.5}, "whole number"),
        ({"beta": -0.1}, "beta=-0.1"),
        ({"beta": float("nan")}, "beta=nan"),
        ({"beta": "high"}, "beta='high'"),
        ({"perturb_space": "pixels"}, "decoder, tokens"),
        ({"similarity": "dino"}, "cosine, clip, none"),
        ({"similarity": "clip"}, "similarity_model"),
        ({"label_weight": 1.0, "label_similarity": "clip"}, "similarity_model"),
        (
            {"label_weight": 0.5, "label_similarity": "none"},
            "label_similarity=none with label_weight=0.5.* set label_similarity=cosine",
        ),
        ({"content_weight": 6.0, "label_similarity": "none"}, "content_weight=6.0: .* to 0"),
        ({"eps_init": 0.5, "eps_max": 0.1}, "below eps_max"),
        ({"temperature": 0.0}, "above 0"),
        ({"hard_quantile": 1.2}, "at most 1"),
        ({"num_candidates": 0}, "at least 1"),
        ({"perturb_space": "tokens", "num_candidates": 2}, "num_candidates=1"),
        ({"buffer_capacity": 2, "buffer_min_size": 3}, "raise the capacity"),
        ({"similarity": "clip", "similarity_model": "x", "perturb_space": "tokens"}, "cosine"),
        ({"perturber_lr_scheduler_type": "zigzag"}, "zigzag"),
        ({"perturber_lr_scheduler_type": "reduce_lr_on_plateau"}, "cosine_with_restarts"),
        ({"fp16": True}, "use bf16"),
        ({"fsdp": "full_shard"}, "shard_frozen=language"),
        ({"shard_frozen": "all"}, "none, language"),
        ({"remove_unused_columns": True}, "leave it False"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size=0"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"eval_strategy": "sometimes"}, "sometimes"),
        ({"logging_steps": 0}, "logging_steps"),
        ({"include_num_input_tokens_seen": "all"}, "no batch of token ids"),
        ({"include_for_metrics": ["inputs"]}, "which no metric takes"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches=true is not"),
    ],
)
def test_impossible_values(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make_game(**settings).check(make_config(tmp_path, **settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "idle"),
    [
        ({}, []),
        ({"similarity_model": "x"}, ["similarity_model=x (similarity=cosine)"]),
        ({"perturber_heads": 8}, ["perturber_heads=8 (perturber_scope=token)"]),
        ({"accept": "missed", "hard_quantile": 0.9}, ["hard_quantile=0.9 (accept=missed)"]),
        ({"similarity_model": "x", "similarity": "clip"}, []),
        ({"strengths": [0.5]}, ["strengths=[0.5] (a single one, without heads)"]),
        ({"strengths": [1.0], "styles": []}, []),  # lists, though the defaults are tuples
    ],
)
def test_settings_of_the_game_that_cannot_act_are_named(
    settings: dict[str, Any], idle: list[str]
) -> None:
    assert SelfPlaySettings(**settings).inert() == idle


FIXED: dict[str, Any] = {"eps_gate": "fixed"}
SHARED: dict[str, Any] = {"perturber_scope": "shared"}
HEADS: dict[str, Any] = {"perturber_scope": "heads"}
NONE: dict[str, Any] = {"perturbation": "none"}
RANDOM: dict[str, Any] = {"perturbation": "random"}
TOKENS: dict[str, Any] = {"perturb_space": "tokens"}
UNJUDGED: dict[str, Any] = {"similarity": "none"}
UNBUFFERED: dict[str, Any] = {"buffer": False}
STYLED: dict[str, Any] = {"styles": ["a {caption}", "b {caption}"], "similarity": "none"}
OF_LEARNING: dict[str, Any] = {
    **{"label_weight": 0.5, "label_floor": 0.9, "content_weight": 1.0, "verified_target": 0.5},
    **{"lambda_norm": 1.0, "l2": 1.0, "tv": 1.0, "ce_cap": 2.0, "perturber_loss": "log_odds"},
    **{"perturber_width": 8, "perturber_depth": 2, "perturber_learning_rate": 1.0},
    **{"perturber_weight_decay": 0.1, "perturber_lr_scheduler_type": "cosine"},
    **{"perturber_warmup_steps": 3, "perturber_max_grad_norm": 0.5, "perturber_steps": 2},
    **{"eps_gate": "fixed", "temperature": 0.5},
}
OF_LENGTH: dict[str, Any] = {"eps_max": 2.0, "eps_init": 1.0, "eps_mode": "relative"}
IDLE = [
    (FIXED, {"lambda_norm": 1.0, "l2": 1.0, "eps_max": 0.5}),
    (SHARED, {"tv": 1.0, "perturber_heads": 3, "restart_window": 9}),
    (HEADS, {"tv": 1.0}),
    ({"perturber_depth": 1}, {"perturber_width": 8}),
    ({**SHARED, "perturber_depth": 0}, {"perturber_width": 8}),
    ({}, {"label_floor": 0.5, "similarity_mode": "image-image", "anchor_width": 2.0}),
    ({}, {"styled_share": 0.2, "style_temperature": 0.5, "guidance_scale": 1.0}),
    ({}, {"style_memory": 3.0, "style_entropy": 0.1}),
    ({}, {"gradient_candidates": 2}),
    ({"num_candidates": 2}, {"gradient_candidates": 4, "sample_candidates": True}),
    (NONE, {**OF_LEARNING, **OF_LENGTH, **SHARED, "strengths": [0.5, 1.0]}),
    ({**NONE, "num_candidates": 4}, {**HEADS, "perturber_heads": 8, "gradient_candidates": 2}),
    (RANDOM, OF_LEARNING),
    (RANDOM, {"eps_max": 0.5}),
    ({**RANDOM, **HEADS}, {"perturber_heads": 8, "diversity_weight": 1.0, "restart_below": 0.5}),
    (TOKENS, {"anchor": 2.0, "anchor_mode": "near", "anchor_width": 2.0, "temperature": 0.5}),
    (TOKENS, {"sample_candidates": True, "missing_captions": "error", "redrawn_every": 2}),
    (TOKENS, {"verifier_check": 0.5, "keep_examples": 3, "examples_every": 5}),
    (TOKENS, {"keep_tokens_mb": 8}),
    (UNJUDGED, {"clip_floor": 0.5, "clip_weight": 1.0, "verifier_check": 0.5}),
    ({**UNJUDGED, "content_weight": 1.0}, {"verified_target": 0.5}),
    ({**UNJUDGED, **SHARED}, {"restart_below": 0.5, "restart_window": 9}),
    ({"accept": "missed"}, {"hard_quantile": 0.1, "hardness_window": 9, "clip_weight": 1.0}),
    ({"hard_quantile": 0.0}, {"hardness_window": 9, "clip_weight": 1.0}),
    (UNBUFFERED, {"buffer_min_size": 2, "buffer_capacity": 9, "max_replays": 1}),
    (UNBUFFERED, {"drop_learned": False}),
    ({"max_replays": 1}, {"drop_learned": False}),
    ({"keep_examples": 0}, {"examples_every": 5}),
    ({**STYLED, **RANDOM}, {"style_memory": 3.0, "style_entropy": 0.1}),
    ({**STYLED, "styles": ["a {caption}"]}, {"style_memory": 3.0, "style_entropy": 0.1}),
    ({**STYLED, "style_memory": 0.0}, {"style_entropy": 0.1}),
]


@pytest.mark.parametrize(("game", "set_to"), IDLE)
def test_every_setting_that_a_game_leaves_idle_is_said_once(
    game: dict[str, Any], set_to: dict[str, Any]
) -> None:
    assert SelfPlaySettings(**game).inert() == []
    said = SelfPlaySettings(**{**game, **set_to}).inert()
    assert sorted(text.partition("=")[0] for text in said) == sorted(set_to)
    assert all(text.endswith(")") and " (" in text for text in said)


@pytest.mark.parametrize(
    "game",
    [
        {"lambda_norm": 1.0, "l2": 1.0, "tv": 1.0, "eps_max": 0.5},
        {**FIXED, "tv": 1.0, "eps_max": 2.0, "eps_init": 1.0},  # that needs this eps_max
        {**RANDOM, "eps_max": 2.0, "eps_init": 1.0, "strengths": [0.5, 1.0], **HEADS},
        {**RANDOM, "temperature": 0.5, "num_candidates": 2},
        {**HEADS, "strengths": [0.5], "restart_below": 0.5, "restart_window": 9},
        {**UNBUFFERED, "buffer_per_source": 1, "hard_batch_size": 3, "hardness_window": 9},
        {**UNJUDGED, "clip_floor": -1.0},  # no filter, in both
        {**TOKENS, "redrawn_every": 0, "keep_examples": 0, "verifier_check": 0.0},  # off, and off
        {"num_candidates": 4, "gradient_candidates": None, "temperature": 0.5},
        {"content_weight": 1.0, "label_floor": 0.5, "verified_target": 0.5},
        {"max_replays": 2, "drop_learned": False, "buffer_min_size": 2},
        {**STYLED, "style_memory": 3.0, "style_entropy": 0.1, "guidance_scale": 1.0},
        {"label_weight": 1.0, "label_similarity": "clip", "similarity_model": "x"},
    ],
)
def test_what_acts_or_asks_for_nothing_is_not_said(game: dict[str, Any]) -> None:
    assert SelfPlaySettings(**game).inert() == []


@pytest.mark.parametrize(
    ("game", "idle"),
    [
        (
            {**SHARED, **UNBUFFERED, **UNJUDGED, "perturber_depth": 1, "num_candidates": 2},
            {
                **{"tv": 9.0, "perturber_width": 32, "sample_candidates": True},
                **{"clip_floor": 0.9, "clip_weight": 9.0, "hardness_window": 1, "label_floor": 0.1},
                **{"buffer_capacity": 9, "buffer_min_size": 9, "max_replays": 1},
                **{"drop_learned": False, "restart_window": 1, "style_entropy": 1.0},
            },
        ),
        (
            {**TOKENS, "hard_quantile": 0.5, "accept": "missed", "max_replays": 1},
            {
                **{"anchor": 9.0, "temperature": 0.1, "sample_candidates": True},
                **{"hard_quantile": 0.9, "hardness_window": 1, "clip_weight": 9.0},
                **{"missing_captions": "error", "drop_learned": False, "keep_examples": 2},
            },
        ),
        (RANDOM, {**OF_LEARNING, "perturber_steps": 1}),  # more would draw other noise
        (NONE, {**OF_LENGTH, **SHARED, "ce_cap": 0.1, "label_weight": 1.0}),
    ],
    ids=["shared", "tokens", "random", "none"],
)
def test_what_is_said_to_have_no_effect_has_none(
    tiny_path: Path, tmp_path: Path, game: dict[str, Any], idle: dict[str, Any]
) -> None:
    found, defaults = [], SelfPlaySettings()
    for number, more in enumerate(({}, idle)):
        settings = {**game, "buffer_min_size": 1, "max_steps": 3, **more}
        trainer = make_trainer(
            tiny_path, tmp_path / str(number), Records(captions=True), **settings
        )
        said = game_of(trainer).settings.inert()
        trainer.train()
        assert game_of(trainer).tally.replayed
        found.append(lora_weights(trainer))
    changed = {name for name in idle if idle[name] != getattr(defaults, name)}
    assert changed <= {text.partition("=")[0] for text in said}
    for name, weight in found[0].items():
        assert torch.equal(weight, found[1][name]), name


@pytest.mark.parametrize("name", RECIPES)
def test_no_shipped_recipe_sets_what_cannot_act(name: str) -> None:
    game = load_recipe(name, here=False).settings_of("selfplay")
    assert game is None or game.inert() == []


def test_gradient_checkpointing_under_either_name(tmp_path: Path) -> None:
    args = make_config(tmp_path, gradient_checkpointing=True)
    assert args.gradient_checkpointing
    assert getattr(args, "activation_checkpointing", True)


def test_every_schedule_of_c_runs(tmp_path: Path) -> None:
    for name in SCHEDULES:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        game = make_game(perturber_lr_scheduler_type=name).settings
        kind = game.perturber_lr_scheduler_type
        schedule = get_scheduler(kind, optimizer, num_warmup_steps=2, num_training_steps=5)
        optimizer.step()
        schedule.step()


def test_megabytes_may_have_a_fraction(tmp_path: Path) -> None:
    """Recipes and the command line hand every float over as one, 256 as 256.0."""
    assert make_game(keep_tokens_mb=256.0).settings.keep_tokens_mb == 256.0
    assert make_game(keep_tokens_mb=0.5).settings.keep_tokens_mb == 0.5


def test_a_mac_trains_on_its_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert make_config(tmp_path, use_cpu=False).use_cpu


def test_without_a_buffer_its_sizes_do_not_matter(tmp_path: Path) -> None:
    config = make_config(tmp_path, per_device_train_batch_size=128)
    with pytest.raises(UserError, match="raise the capacity"):
        make_game(buffer_min_size=None).check(config)
    make_game(buffer_min_size=None, buffer=False).check(config)


def test_a_control_says_in_one_phrase_that_it_has_no_c_to_set(
    tiny_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    idle = {"perturber_heads": 4, "perturber_scope": "heads", "strengths": [0.5, 1.0]}
    make_trainer(tiny_path, tmp_path, max_steps=1, perturbation="none", **idle).train()
    assert "settings of C (perturbation=none)" in caplog.text
    assert "strengths=" not in caplog.text
