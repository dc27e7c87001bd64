"""Planted sick runs each get their own diagnosis, and a healthy one gets none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.test_glossary import as_named, named
from tests.tiny import shared_tiny_janus
from tests.training.helpers import GAME, Records, game_of, make_trainer
from unigame.methods.findings import Finding, Log, u_does_not_learn
from unigame.methods.selfplay import SelfPlay
from unigame.methods.selfplay.diagnosis import diagnose
from unigame.methods.selfplay.health import ReplayTally
from unigame.methods.selfplay.objectives import perturber_objective
from unigame.methods.selfplay.perturber import build_perturber

# Similarities of the random model's redrawings lie about .1.
HEALTHY = {"max_steps": 8, "learning_rate": 1e-3, "clip_floor": 0.05, "hard_quantile": 0.5}


@pytest.mark.parametrize(
    ("symptom", "planted"),
    [
        (None, {}),
        ("C dead", {"perturber_learning_rate": 0.0}),
        ("C too strong", {"eps_max": 50.0, "eps_init": 49.0}),
        ("off", {"clip_floor": 1.0}),
        ("buffer frozen", {"buffer_min_size": 50}),
        ("U does not learn", {"learning_rate": 0.0}),
        ("filter inert", {"clip_floor": -0.99, "max_steps": 16}),
    ],
)
def test_a_planted_fault_is_found_and_nothing_else(
    symptom: str | None, planted: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**HEALTHY, "keep_examples": 0, **planted}
    trainer = make_trainer(shared_tiny_janus(), tmp_path, Records(captions=True), **settings)
    trainer.train()
    found = trainer.health()
    assert [finding.symptom for finding in found] == ([symptom] if symptom else [])
    written = json.loads((tmp_path / "about.json").read_text())["findings"]
    assert [entry["symptom"] for entry in written] == [finding.symptom for finding in found]
    of_training = [entry for entry in trainer.state.log_history if "loss" in entry]
    unexplained = {as_named(name) for entry in of_training for name in entry} - set(named())
    assert unexplained == {"step"}
    for finding in found:
        logged = {name for entry in trainer.state.log_history for name in entry}
        assert set(finding.figures) <= logged and finding.figures
        knobs = SelfPlay.rules().keys() | vars(trainer.args).keys()
        assert any(knob in finding.knob for knob in knobs)


# ---- thresholds, by figures alone ----------------------------------------------------------------
FINE = {
    "adversarial_ce": 1.0,
    "attack_codes_changed": 0.1,
    "delta_relative": 0.3,
    "below_floor": 0.2,
    "redrawn_similarity": 0.5,
    "acceptance_rate": 0.2,
    "attack_success_rate": 0.3,
    "redrawn_success_rate": 0.1,
    "replayed": 2.0,
    "buffer_size": 40.0,
    "perturber_learning_rate": 5e-3,
    "perturber_grad_norm": 1.0,
    "learning_rate": 1e-3,
    "grad_norm": 1.0,
    "clean_answer_ce": 0.5,
}


class Game:
    """What ``diagnose`` asks of a game."""

    def __init__(self, **settings: Any) -> None:
        self.settings = SelfPlay(**{**GAME, "clip_floor": 0.3, **settings}).settings
        self.batch_size = 4
        self.tally = ReplayTally(candidates=500, accepted=100, held=10)


def findings(figures: dict[str, float], **settings: Any) -> list[Finding]:
    log = [{"loss": 1.0, "step": n, **FINE, **figures} for n in range(9)]
    return diagnose(Game(**settings), log)  # type: ignore[arg-type]


def found(figures: dict[str, float], **settings: Any) -> list[str]:
    return [finding.symptom for finding in findings(figures, **settings)]


@pytest.mark.parametrize(
    ("figures", "symptom"),
    [
        ({}, None),
        ({"attack_codes_changed": 0.001}, "C dead"),
        ({"perturber_grad_norm": 0.0}, "C dead"),
        ({"attack_success_rate": 0.97}, "C too strong"),
        ({"attack_success_rate": 0.97, "redrawn_success_rate": 0.9}, None),  # not C's doing
        ({"below_floor": 0.8}, "content drifts"),
        ({"below_floor": 0.8, "redrawn_similarity": 0.1}, None),  # not C's doing
        ({"acceptance_rate": 0.001}, "buffer frozen"),
        ({"below_floor": 0.0}, "filter inert"),
        ({"replayed": 0.0, "acceptance_rate": 0.0}, "off"),
        ({"grad_norm": 0.0}, "U does not learn"),
    ],
)
def test_each_threshold(figures: dict[str, float], symptom: str | None) -> None:
    assert found(figures) == ([symptom] if symptom else [])


def test_an_anchor_holds_the_picture_at_any_size() -> None:
    assert found({"delta_relative": 1.3}, anchor=0) == ["C too strong"]
    assert found({"delta_relative": 1.3}, anchor=8.0) == []
    assert found({"delta_relative": 1.3}, anchor=8.0, perturb_space="tokens") == ["C too strong"]
    assert found({"delta_relative": 1.3, "below_floor": 0.8}, anchor=8.0) == ["content drifts"]


FIXED: dict[str, Any] = {"eps_gate": "fixed"}
RANDOM: dict[str, Any] = {"perturbation": "random"}
TOKENS: dict[str, Any] = {"perturb_space": "tokens"}
SEVERAL: dict[str, Any] = {"strengths": [0.5, 1.0]}


@pytest.mark.parametrize(
    ("figures", "settings", "knob"),
    [
        ({"delta_relative": 1.3}, {}, "lower eps_max, or raise lambda_norm"),
        ({"delta_relative": 1.3}, FIXED, "lower eps_init"),
        ({"delta_relative": 1.3}, {**FIXED, **SEVERAL}, "lower eps_init or strengths"),
        ({"attack_success_rate": 0.97}, RANDOM, "lower eps_init"),
        ({"below_floor": 0.8}, {}, "raise label_weight or anchor, or lower eps_max"),
        ({"below_floor": 0.8}, FIXED, "raise label_weight or anchor, or lower eps_init"),
        (
            {"below_floor": 0.8},
            {**RANDOM, **SEVERAL},
            "raise anchor, or lower eps_init or strengths",
        ),
        ({"below_floor": 0.8}, TOKENS, "raise label_weight, or lower eps_max"),
        ({"below_floor": 0.8}, {**RANDOM, **TOKENS}, "lower eps_init"),
        ({"attack_codes_changed": 0.001}, {}, "raise eps_max and eps_init"),
        (
            {"attack_codes_changed": 0.001},
            FIXED,
            "raise eps_init; eps_max must be above eps_init",
        ),
        (
            {"attack_codes_changed": 0.001},
            {**FIXED, **SEVERAL},
            "raise eps_init or strengths; eps_max must be above eps_init",
        ),
    ],
)
def test_only_knobs_that_act_in_this_game_are_named(
    figures: dict[str, float], settings: dict[str, Any], knob: str
) -> None:
    assert [finding.knob for finding in findings(figures, **settings)] == [knob]


def test_under_a_fixed_gate_the_length_is_eps_init_whatever_eps_max_is() -> None:
    learned, fixed = (
        [
            build_perturber("learned", 8, width=8, eps_max=most, eps_init=0.5, fixed=gate)
            for most in (1.0, 9.0)
        ]
        for gate in (False, True)
    )
    states_BNH = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    for c in (*learned, *fixed):
        loss = perturber_objective(torch.zeros(2, 1), c(states_BNH), lambda_norm=1.0).mean()
        loss.backward()
        steepest = max(p.grad.abs().max().item() for p in c.parameters() if p.grad is not None)
        assert c.eps.item() == pytest.approx(0.5)
        assert (steepest < 1e-6) == (c in fixed)


def test_controls_without_c_have_no_symptoms_of_c() -> None:
    assert found({"attack_codes_changed": 0.0}, perturbation="none") == []
    assert found({"below_floor": 0.0}, similarity="none") == []


def test_a_game_that_never_challenged_is_off() -> None:
    log = [{"loss": 1.0, "step": 1}]
    assert [f.symptom for f in diagnose(Game(), log)] == ["off"]  # type: ignore[arg-type]


def test_u_that_gets_worse_does_not_learn() -> None:
    log = [{"loss": 1.0, "learning_rate": 1.0, "clean_answer_ce": 0.5 + 0.1 * n} for n in range(9)]
    (finding,) = u_does_not_learn(Log(log))
    assert finding.symptom == "U does not learn" and "clean_answer_ce" in finding.figures
    assert not u_does_not_learn(Log(log[:3]))  # too few to show a trend


# ---- examples ------------------------------------------------------------------------------------
def test_a_run_keeps_some_of_its_pictures(tmp_path: Path) -> None:
    trainer = make_trainer(
        shared_tiny_janus(), tmp_path, Records(captions=True), keep_examples=6, num_candidates=2
    )
    trainer.train()
    folder = tmp_path / "examples"
    content = json.loads((folder / "examples.json").read_text())
    assert content["format"] == "unigame-examples/1" and len(content["examples"]) == 6
    assert len(list(folder.glob("*.png"))) == 18
    first = content["examples"][0]
    assert first["question"] == "what colour is it" and set(first["said"]) == set(first["pictures"])
    assert -1 <= first["similarity"]["attacked"] <= 1


def test_examples_move_nothing_that_the_run_keeps(tmp_path: Path) -> None:
    states = []
    for number, keep in enumerate((0, 4)):
        folder = tmp_path / str(number)
        trainer = make_trainer(shared_tiny_janus(), folder, keep_examples=keep, num_candidates=2)
        trainer.train()
        states.append(game_of(trainer).challenger.generator.get_state())
        assert (folder / "examples").exists() == bool(keep)
    assert bool((states[0] == states[1]).all())
