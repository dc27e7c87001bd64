"""The trainer's phases: who moves when, on what, and what is logged about it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import JanusForConditionalGeneration

from tests.training.helpers import (
    Losses,
    Records,
    game_of,
    logs,
    lora_weights,
    make_config,
    make_trainer,
)
from unigame.backbones import load_backbone
from unigame.backbones.janus.load import load_processor
from unigame.errors import UserError
from unigame.methods.answers import ReadAnswers, own_loss
from unigame.methods.base import Method, Run
from unigame.methods.rows import Batch, Rows
from unigame.methods.selfplay import stack_compact
from unigame.training.trainer import UniGameTrainer

GAME_FIGURES = {
    "clean_ce",
    "adversarial_ce",
    "perturber_objective",
    "perturber_grad_norm",
    "eps",
    "delta_relative",
    "codes_changed",
    "similarity",
    "acceptance_rate",
    "buffer_size",
    "hardness_q25",
    "hardness_q50",
    "hardness_q75",
    "seconds_encode",
    "seconds_challenge",
    "seconds_mine",
    "seconds_mix",
    "seconds_understand",
}


def perturber_weights(trainer: UniGameTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in game_of(trainer).perturber.parameters()])


def test_both_players_move_and_everything_is_logged(tiny_path: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_path, tmp_path, max_steps=3)
    before_c, before_u = perturber_weights(trainer), lora_weights(trainer)
    frozen = {n: p.clone() for n, p in trainer.backbone.named_parameters() if n not in before_u}
    trainer.train()
    assert not torch.equal(before_c, perturber_weights(trainer))
    after = lora_weights(trainer)
    assert any(not torch.equal(before_u[name], after[name]) for name in before_u)
    for name, weight in trainer.backbone.named_parameters():
        if name in frozen:
            assert torch.equal(weight, frozen[name]), name
    for entry in logs(trainer):
        assert GAME_FIGURES <= entry.keys()
        # Algorithm 1's order: this step's candidates are in this step's mixed batch.
        assert entry["loss"] == pytest.approx(entry["clean_ce"] + 0.5 * entry["hard_ce"], abs=1e-5)
    assert [entry["buffer_size"] for entry in logs(trainer)] == [4, 8, 12]


def test_update_ratio_of_the_players(tiny_path: Path, tmp_path: Path) -> None:
    trainer = make_trainer(
        tiny_path, tmp_path, max_steps=5, challenge_every=2, perturber_steps=3, mine_every=2
    )
    trainer.train()
    assert game_of(trainer).optimizer is not None
    steps = {int(state["step"]) for state in game_of(trainer).optimizer.state.values()}
    assert steps == {9}  # steps 0, 2, 4, three updates each
    assert ["adversarial_ce" in entry for entry in logs(trainer)] == [True, False] * 2 + [True]
    assert ["acceptance_rate" in entry for entry in logs(trainer)] == [True] + [False] * 3 + [True]


def test_a_share_of_the_batch_can_be_challenged(tiny_path: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_path, tmp_path, max_steps=2, challenge_share=0.4)
    trainer.train()
    assert [entry["buffer_size"] for entry in logs(trainer)] == [2, 4]  # ceil(0.4 * 4) a step


def test_without_a_buffer_only_fresh_candidates_are_used(tiny_path: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_path, tmp_path, max_steps=4, buffer=False, challenge_every=2)
    trainer.train()
    assert [entry["buffer_size"] for entry in logs(trainer)] == [2, 0, 2, 0]
    assert ["hard_ce" in entry for entry in logs(trainer)] == [True, False, True, False]


def test_the_quantile_looks_back_also_without_a_buffer(tiny_path: Path, tmp_path: Path) -> None:
    for lasting in (True, False):
        settings = {"buffer": lasting, "per_device_train_batch_size": 1, "hard_quantile": 0.9}
        trainer = make_trainer(tiny_path, tmp_path, Records(8), max_steps=8, **settings)
        trainer.train()
        assert len(game_of(trainer).buffer.recent) == 8
        rates = [entry["acceptance_rate"] for entry in logs(trainer)]
        assert rates[0] == 1.0 and sum(rates) < 7  # of one candidate alone, all would pass


def test_replays_refresh_the_hardness_in_the_buffer(tiny_path: Path, tmp_path: Path) -> None:
    settings = {"challenge_every": 100, "hard_batch_size": 4, "drop_learned": False}
    trainer = make_trainer(tiny_path, tmp_path, max_steps=3, **settings)
    trainer.train()
    samples = game_of(trainer).buffer.samples
    assert [sample.step for sample in samples] == [0] * 4
    assert [sample.seen for sample in samples] == [2] * 4
    mean = sum(sample.hardness for sample in samples) / 4
    assert mean == pytest.approx(logs(trainer)[-1]["hard_answer_ce"], abs=1e-6)
    assert mean != pytest.approx(logs(trainer)[0]["hard_answer_ce"], abs=1e-3)


@pytest.mark.parametrize("drop", [True, False])
def test_a_sample_that_u_has_learned_leaves(tiny_path: Path, tmp_path: Path, drop: bool) -> None:
    settings = {"challenge_every": 100, "per_device_train_batch_size": 1, "drop_learned": drop}
    trainer = make_trainer(
        tiny_path, tmp_path, Records(1), max_steps=12, lr_scheduler_type="constant", **settings
    )
    trainer.train()
    assert len(game_of(trainer).buffer) == (0 if drop else 1)
    replays = [entry for entry in logs(trainer) if "hard_answer_ce" in entry]
    assert len(replays) < 12 if drop else len(replays) == 12
    right = [entry["hard_answer_ce"] < math.log(2) for entry in replays]
    assert right == [False] * (len(right) - 1) + [True] if drop else right[-1]
    assert [entry["learned_rate"] for entry in replays] == [float(r and drop) for r in right]


def test_fresh_candidates_are_not_written_back(tiny_path: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_path, tmp_path, max_steps=2, buffer=False)
    trainer.train()
    assert game_of(trainer).buffer.samples
    assert all(sample.seen is None for sample in game_of(trainer).buffer.samples)
    assert all("learned_rate" not in entry for entry in logs(trainer))


@pytest.mark.parametrize("kind", ["random", "none"])
def test_controls_have_no_weights_to_move(tiny_path: Path, tmp_path: Path, kind: str) -> None:
    trainer = make_trainer(tiny_path, tmp_path, perturbation=kind, save_strategy="steps")
    trainer.train()
    for entry in logs(trainer):
        assert "perturber_grad_norm" not in entry
        assert entry["eps"] == (0.0 if kind == "none" else 0.5)
        assert "hard_ce" in entry


def test_token_space_draws_nothing(tiny_path: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_path, tmp_path, perturb_space="tokens", max_steps=3)
    for verb in ("draw", "render", "encode_images"):
        setattr(trainer.backbone, verb, _refuse)
    trainer.train()
    entry = logs(trainer)[-1]
    assert "codes_changed" not in entry
    assert entry["loss"] == pytest.approx(entry["clean_ce"] + 0.5 * entry["hard_ce"], abs=1e-5)


def test_plain_fine_tuning_never_plays(tiny_path: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_path, tmp_path, methods=["sft"], max_steps=3)
    for verb in ("draw", "render", "encode_images", "visual_states", "generation_loss"):
        setattr(trainer.backbone, verb, _refuse)
    trainer.train()
    assert set(logs(trainer)[0]) & GAME_FIGURES == {"clean_ce", "seconds_understand"}
    assert logs(trainer)[0]["clean_ce"] == pytest.approx(logs(trainer)[0]["loss"], abs=1e-6)


def _refuse(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("this verb must not be used here")


def test_hard_weight_is_beta_of_the_mean(tiny_path: Path, tmp_path: Path) -> None:
    for beta in (0.0, 2.0):
        trainer = make_trainer(tiny_path, tmp_path, max_steps=1, beta=beta, hard_batch_size=3)
        trainer.train()
        entry = logs(trainer)[0]
        expected = entry["clean_ce"] + beta * entry["hard_ce"]
        assert entry["loss"] == pytest.approx(expected, abs=1e-5)


def test_attack_success_counts_flips_from_right_to_wrong(tiny_path: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_path, tmp_path, max_steps=1)
    game = game_of(trainer)
    wrong = torch.tensor([[False, True], [True, True], [True, True], [False, False]])
    game.challenger.wrong_BK = {"attack_success_rate": wrong}
    own = torch.tensor([0.1, 0.2, 4.0, 0.3])
    clean = ReadAnswers(own, own, own < 1)  # samples 0, 1 and 3 are read right
    game.after_loss(clean, clean[:0], step=0)
    figures = trainer.meter.flush(lambda pairs: pairs)
    assert figures["attack_success_rate"] == pytest.approx(3 / 6)


def test_the_game_judges_without_the_end_mark_that_u_learns(
    tiny_path: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(tiny_path, tmp_path, max_steps=1, learning_rate=0.0)
    data = Records()
    trainer.train()
    backbone, entry = trainer.backbone.eval().requires_grad_(False), logs(trainer)[0]
    played = {sample.source for sample in game_of(trainer).buffer.samples}
    rows = [item for item in data.items if item["id"] in played]
    losses = backbone.answer_token_losses(
        backbone.preprocess([row["image"] for row in rows]),
        [row["question"] for row in rows],
        [row["answer"] for row in rows],
    )
    whole, own = losses.mean().mean().item(), own_loss(losses).mean().item()
    assert entry["clean_ce"] == pytest.approx(whole, abs=1e-5)
    assert entry["clean_answer_ce"] == pytest.approx(own, abs=1e-5)
    assert own != pytest.approx(whole, abs=1e-3)
    for sample in game_of(trainer).buffer.samples:
        picture = backbone.render(stack_compact([sample]))
        losses = backbone.answer_token_losses(picture, [sample.question], [sample.answer])
        assert sample.hardness == pytest.approx(own_loss(losses).item(), abs=1e-4)


def test_evaluation_is_the_clean_loss(tiny_path: Path, tmp_path: Path) -> None:
    data = Records(4)
    trainer = make_trainer(tiny_path, tmp_path, data, eval_dataset=data, dropout=0.5)
    backbone = trainer.backbone
    images = backbone.preprocess([item["image"] for item in data.items])
    with torch.no_grad():
        backbone.eval()
        expected = backbone.answer_loss(
            images,
            [item["question"] for item in data.items],
            [item["answer"] for item in data.items],
        ).mean()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_evaluation_counts_answers_and_captions_not_batches(
    tiny_path: Path, tmp_path: Path, weight: float
) -> None:
    data = Records(5, captions=True, long_answers=True)
    data.items[0]["question"] = data.items[0]["answer"] = None
    data.items[3]["caption"] = None
    settings = {"per_device_eval_batch_size": 2, "generation_weight": weight}
    trainer = make_trainer(tiny_path, tmp_path, data, eval_dataset=data, **settings)
    backbone = trainer.backbone.eval()

    def loss(verb: str, rows: list[dict[str, Any]], *fields: str) -> float:
        images = backbone.preprocess([row["image"] for row in rows])
        texts = [[row[field] for row in rows] for field in fields]
        with torch.no_grad():
            return float(getattr(backbone, verb)(images, *texts).mean())

    answered = [row for row in data.items if row["answer"]]
    captioned = [row for row in data.items if row["caption"]]
    expected = loss("answer_loss", answered, "question", "answer")
    expected += weight * loss("generation_loss", captioned, "caption")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-5)


def test_an_evaluation_with_nothing_to_judge_says_so(tiny_path: Path, tmp_path: Path) -> None:
    data = Records(2, captions=True)
    for row in data.items:
        row["question"] = row["answer"] = None
    trainer = make_trainer(tiny_path, tmp_path, eval_dataset=data)
    assert math.isnan(trainer.evaluate()["eval_loss"])


@dataclass
class NoSettings:
    """A method without any."""


class Twice(Method):
    """Adds the answers of a batch again, or the row that stands there for none."""

    name = "twice"
    Settings = NoSettings

    def setup(self, run: Run) -> None:
        super().setup(run)
        self.told: list[tuple[int, int]] = []

    def before_step(self, batch: Batch, step: int) -> None:
        self.rows = replace(batch.answers, source=[self.name] * len(batch.answers))

    def step_rows(self) -> list[Rows]:
        return [self.rows]

    def rows_at_most(self, args: Any) -> int:
        return int(args.per_device_train_batch_size)

    def after_loss(self, clean: ReadAnswers, own: ReadAnswers, step: int) -> None:
        self.told.append((len(clean), len(own)))


@pytest.mark.parametrize("micro_batch", [None, 1])
def test_a_method_is_not_told_of_rows_that_only_keep_step(
    tiny_path: Path, tmp_path: Path, micro_batch: int | None
) -> None:
    trainer = make_trainer(
        tiny_path,
        tmp_path,
        Kinds(4, "answer"),
        methods=[Twice()],
        max_steps=4,
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
        understanding_micro_batch=micro_batch,
    )
    trainer.train()
    assert trainer.method("twice").told == [(0, 0), (1, 1), (0, 0), (1, 1)]


class Kinds(Records):
    """Every second record lacks its answer, or its caption."""

    def __init__(self, size: int, lacking: str):
        super().__init__(size, captions=True)
        for item in self.items[::2]:
            if lacking == "answer":
                item["question"] = item["answer"] = None
            else:
                item["caption"] = None


@pytest.mark.parametrize("lacking", ["answer", "caption"])
def test_joint_training_runs_every_forward_on_every_batch(
    tiny_path: Path, tmp_path: Path, lacking: str
) -> None:
    """One record a batch: half of the batches lack a field, none may skip a forward pass."""
    trainer = make_trainer(
        tiny_path,
        tmp_path,
        Kinds(6, lacking),
        max_steps=6,
        per_device_train_batch_size=1,
        generation_weight=0.5,
        beta=0.0,
    )
    calls: list[str] = []
    forward = trainer.backbone.forward

    def counted(loss: str, **inputs: Any) -> torch.Tensor:
        calls.append(loss)
        return forward(loss, **inputs)

    trainer.backbone.forward = counted  # type: ignore[method-assign]
    trainer.train()
    # One pass for the clean row, one for the hard one, also before there is one.
    assert calls == ["answer", "answer", "generation"] * 6
    for entry in logs(trainer):
        parts = entry.get("clean_ce", 0.0) + 0.5 * entry.get("generation_loss", 0.0)
        assert entry["loss"] == pytest.approx(parts, abs=1e-5)
    name = "clean_ce" if lacking == "answer" else "generation_loss"
    assert sum(name in entry for entry in logs(trainer)) == 3


def test_a_stand_in_batch_moves_nobody(tiny_path: Path, tmp_path: Path) -> None:
    trainer = make_trainer(
        tiny_path,
        tmp_path,
        Kinds(2, "answer"),
        max_steps=1,
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
    )
    before_c, before_u = perturber_weights(trainer), lora_weights(trainer)
    trainer.train()
    assert Losses(trainer.state.log_history).values == [0.0]
    assert torch.equal(before_c, perturber_weights(trainer))
    assert all(torch.equal(before_u[name], w) for name, w in lora_weights(trainer).items())
    assert len(game_of(trainer).buffer) == 0


def test_cached_codes_change_nothing_but_time(tiny_path: Path, tmp_path: Path) -> None:
    runs = []
    for cached in (False, True):
        settings = {"cache_codes": cached, "keep_examples": 0}
        trainer = make_trainer(tiny_path, tmp_path, Records(4), max_steps=3, **settings)
        calls: list[int] = []
        encode = trainer.backbone.encode_images

        def counted(images: torch.Tensor, encode: Any = encode, calls: Any = calls) -> Any:
            calls.append(len(images))
            return encode(images)

        trainer.backbone.encode_images = counted  # type: ignore[method-assign]
        trainer.train()
        runs.append((Losses(trainer.state.log_history).values, sum(calls)))
    assert runs[0][0] == runs[1][0]
    assert (runs[0][1], runs[1][1]) == (12, 4)


def test_gradient_checkpointing_changes_memory_not_losses(tiny_path: Path, tmp_path: Path) -> None:
    losses = []
    for on in (False, True):
        trainer = make_trainer(tiny_path, tmp_path, max_steps=2, gradient_checkpointing=on)
        trainer.train()
        losses.append(Losses(trainer.state.log_history).values)
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_clip_similarity_needs_its_model_to_exist(tiny_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        make_trainer(
            tiny_path, tmp_path, similarity="clip", similarity_model=str(tmp_path / "nowhere")
        )


@pytest.mark.parametrize("given", ["path", "model"])
def test_model_may_be_a_path_or_a_loaded_janus(tiny_path: Path, tmp_path: Path, given: str) -> None:
    model: Any = str(tiny_path)
    processor = None
    if given == "model":
        model = JanusForConditionalGeneration.from_pretrained(tiny_path)
        processor = load_processor(tiny_path)
        with pytest.raises(UserError, match="processing_class"):
            UniGameTrainer(model=model, args=make_config(tmp_path), train_dataset=Records())
    trainer = UniGameTrainer(
        model=model,
        args=make_config(tmp_path, max_steps=1),
        train_dataset=Records(),
        processing_class=processor,
    )
    trainer.train()
    assert len(lora_weights(trainer)) > 0
    assert trainer.processing_class is not None


def test_what_is_no_model_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model is int"):
        UniGameTrainer(model=3, args=make_config(tmp_path))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no such folder"):
        UniGameTrainer(model=tmp_path / "none", args=make_config(tmp_path))


def test_an_adapter_that_is_there_is_kept(tiny_path: Path, tmp_path: Path) -> None:
    first = make_trainer(tiny_path, tmp_path / "a", max_steps=1)
    first.train()
    first.save_model(str(tmp_path / "adapter"))
    backbone = load_backbone(tiny_path, device="cpu", adapter=tmp_path / "adapter")
    second = UniGameTrainer(model=backbone, args=make_config(tmp_path), train_dataset=Records())
    trained = lora_weights(first)
    assert trained and second.backbone.trainable_parameters()
    for name, weight in lora_weights(second).items():
        assert torch.equal(weight, trained[name])
