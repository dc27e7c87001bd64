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

from tests.training.helpers import make_config, make_game
from unigame.errors import UserError
from unigame.methods.selfplay import SelfPlay, SelfPlaySettings
from unigame.methods.selfplay.settings import SCHEDULES
from unigame.settings.rules import INF, Number
from unigame.training.config import UniGameConfig, training_rules
from unigame.training.settings import RULES, TRACKERS

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
    ],
)
def test_settings_of_the_game_that_cannot_act_are_named(
    settings: dict[str, Any], idle: list[str]
) -> None:
    assert SelfPlaySettings(**settings).inert() == idle


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
