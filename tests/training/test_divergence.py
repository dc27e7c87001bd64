"""What is not finite ends the run before it reaches a weight, and what was finite is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.helpers import game_of, lora_weights, make_trainer
from unigame.errors import UserError
from unigame.training.guard import Diverged
from unigame.training.trainer import UniGameTrainer


class Bad(UniGameTrainer):
    """Its loss, or the gradient of it, is not finite at the third step."""

    value = float("nan")
    in_gradient = False

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        if self.state.global_step != 2:
            return loss
        bad = sum(p.sum() for p in self.backbone.trainable_parameters()) * self.value
        return loss + (bad - bad.detach() if self.in_gradient else bad)


class BadLoss(Bad):
    """A bad number on its own, without a gradient: the filter of transformers hides it."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super(Bad, self).compute_loss(*args, **kwargs)
        return loss + self.value if self.state.global_step == 2 else loss


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("hides", [True, False])
def test_a_loss_that_is_not_finite_ends_the_run(
    tiny_path: Path, tmp_path: Path, value: float, hides: bool
) -> None:
    settings = {"methods": ["sft"], "max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(
        tiny_path, tmp_path, kind=BadLoss, logging_nan_inf_filter=hides, **settings
    )
    trainer.value = value  # type: ignore[attr-defined]
    with pytest.raises(Diverged, match=rf"{value} at step 3 of 4.*checkpoint-2"):
        trainer.train()
    assert trainer.state.global_step == 2
    kept = load_file(tmp_path / "last_finite" / "adapter_model.safetensors")
    saved = load_file(tmp_path / "checkpoint-2" / "adapter_model.safetensors")
    assert all(torch.equal(kept[name], weight) for name, weight in saved.items())
    assert not (tmp_path / "adapter_model.safetensors").exists()


def test_a_gradient_that_is_not_finite_reaches_no_weight(tiny_path: Path, tmp_path: Path) -> None:
    trainer = make_trainer(
        tiny_path, tmp_path, kind=Bad, max_steps=4, methods=["sft"], max_grad_norm=0.0
    )
    trainer.value, trainer.in_gradient = float("inf"), True  # type: ignore[attr-defined]
    with pytest.raises(Diverged, match="step 3 of 4"):
        trainer.train()
    assert all(bool(torch.isfinite(w).all()) for w in lora_weights(trainer).values())


def test_one_bad_micro_batch_of_several_is_enough(tiny_path: Path, tmp_path: Path) -> None:
    class First(UniGameTrainer):
        calls = 0

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return super().compute_loss(*args, **kwargs) + (
                float("nan") if self.calls == 1 else 0.0
            )

    settings = {"methods": ["sft"], "gradient_accumulation_steps": 2}
    trainer = make_trainer(
        tiny_path, tmp_path, kind=First, per_device_train_batch_size=2, **settings
    )
    with pytest.raises(Diverged, match="step 1 of 2"):
        trainer.train()


def test_weights_that_are_not_finite_are_not_saved(tiny_path: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_path, tmp_path)
    with torch.no_grad():
        trainer.backbone.trainable_parameters()[0][0, 0] = float("nan")
    with pytest.raises(Diverged, match="lora_"):
        trainer.save_model()
    assert not list(tmp_path.rglob("adapter_model.safetensors"))
    other = make_trainer(tiny_path, tmp_path)
    with torch.no_grad():
        next(iter(game_of(other).perturber.parameters())).fill_(float("inf"))
    with pytest.raises(Diverged, match="selfplay's weight .*perturber_learning_rate"):
        other.save_model()


def test_updates_of_c_that_are_left_out_are_said_and_end_the_game(
    tiny_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(tiny_path, tmp_path)
    for _ in range(9):
        game_of(trainer).challenger.note(float("inf"))
    assert "1 so far" in caplog.text and "8 so far" in caplog.text
    game_of(trainer).challenger.note(1.0)
    for _ in range(9):
        game_of(trainer).challenger.note(float("nan"))
    with pytest.raises(Diverged, match="perturber_learning_rate"):
        game_of(trainer).challenger.note(float("nan"))


def test_a_c_that_is_not_finite_is_found_in_the_run(tiny_path: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_path, tmp_path, max_steps=3, perturber_steps=10)
    with torch.no_grad():
        next(iter(game_of(trainer).perturber.parameters())).fill_(float("nan"))
    with pytest.raises(Diverged, match="10th time in a row"):
        trainer.train()


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 1e30, "methods": ["sft"]},
        {"beta": float("inf")},
        {"perturber_learning_rate": 1e30, "perturber_steps": 10},
    ],
)
def test_impossible_settings_leave_no_broken_adapter(
    tiny_path: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match="|".join(settings)):
        make_trainer(
            tiny_path, tmp_path, max_steps=6, save_strategy="steps", save_steps=1, **settings
        ).train()
    for path in tmp_path.rglob("*.safetensors"):
        assert all(bool(torch.isfinite(weight).all()) for weight in load_file(path).values())


@pytest.mark.parametrize("steps", [1, 3])
def test_a_learning_rate_that_breaks_u_leaves_the_adapter_of_before(
    tiny_path: Path, tmp_path: Path, steps: int
) -> None:
    trainer = make_trainer(
        tiny_path, tmp_path, learning_rate=1e30, methods=["sft"], max_steps=steps
    )
    start = lora_weights(trainer)
    with pytest.raises(Diverged, match=r"last_finite \(step 0\)"):
        trainer.train()
    kept = load_file(tmp_path / "last_finite" / "adapter_model.safetensors")
    assert kept and all(float(weight.abs().max()) < 1 for weight in kept.values())
    assert all(torch.equal(w, start[n]) for n, w in lora_weights(trainer).items())
    assert not list(tmp_path.glob("adapter_model.safetensors"))
