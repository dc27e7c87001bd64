"""Resuming is exact: three steps and three more are six, in every number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.helpers import Records, game_of, lora_weights, make_trainer
from unigame.data.mixture import Mixture
from unigame.errors import UserError
from unigame.methods.selfplay.method import PERTURBER_FILE
from unigame.training.epochs import require_map_style
from unigame.training.trainer import UniGameTrainer

TIMES = ("seconds", "wait_share", "runtime", "per_second", "epoch", "flos", "train_loss")


def history(trainer: UniGameTrainer, after: int) -> list[dict[str, float]]:
    return [
        {k: v for k, v in entry.items() if not any(word in k for word in TIMES)}
        for entry in trainer.state.log_history
        if entry["step"] > after and "loss" in entry
    ]


def same_game(left: UniGameTrainer, right: UniGameTrainer) -> None:
    for name, weight in game_of(left).perturber.state_dict().items():
        assert torch.equal(weight, game_of(right).perturber.state_dict()[name]), name
    assert len(game_of(left).buffer) == len(game_of(right).buffer) > 0
    for one, other in zip(game_of(left).buffer.samples, game_of(right).buffer.samples, strict=True):
        assert torch.equal(one.compact, other.compact)
        assert (one.answer, one.hardness, one.source, one.step, one.seen) == (
            other.answer,
            other.hardness,
            other.source,
            other.step,
            other.seen,
        )
    assert torch.equal(
        game_of(left).challenger.generator.get_state(),
        game_of(right).challenger.generator.get_state(),
    )
    assert game_of(left).tally == game_of(right).tally
    assert torch.equal(game_of(left).buffer.recent.values, game_of(right).buffer.recent.values)


@pytest.mark.parametrize(
    "settings",
    [
        # 7 records, 2 a batch: the third step is inside the first epoch, the sixth in the second.
        {"num_candidates": 2, "perturber_lr_scheduler_type": "cosine"},
        {"perturbation": "random", "gradient_accumulation_steps": 2, "sample_candidates": True},
        {"perturb_space": "tokens", "buffer_capacity": 3, "challenge_every": 2},
    ],
    ids=["decoder", "random", "tokens"],
)
def test_resume_is_bit_exact(tiny_path: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    common: dict[str, Any] = {
        "data": Records(7),
        "dropout": 0.1,
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "save_strategy": "steps",
        "save_steps": 3,
        **settings,
    }
    straight = make_trainer(tiny_path, tmp_path / "run", **common)
    straight.train()

    torch.manual_seed(12345)  # whatever the new process did before must not matter
    resumed = make_trainer(tiny_path, tmp_path / "run", **common)
    with torch.no_grad():
        for weight in resumed.backbone.trainable_parameters():
            weight.normal_()
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))

    assert resumed.state.global_step == 6
    assert len(history(straight, 3)) == 3
    assert history(resumed, 3) == history(straight, 3)
    for name, weight in lora_weights(straight).items():
        assert torch.equal(weight, lora_weights(resumed)[name]), name
    same_game(straight, resumed)


def test_true_resumes_from_the_last_checkpoint(tiny_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint"):
        make_trainer(tiny_path, tmp_path / "empty").train(resume_from_checkpoint=True)
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}
    make_trainer(tiny_path, tmp_path, max_steps=2, **settings).train()
    trainer = make_trainer(tiny_path, tmp_path, max_steps=3, **settings)
    trainer.train(resume_from_checkpoint=True)
    assert [entry["step"] for entry in history(trainer, 0)][-1] == 3


def test_extra_files_are_there_before_rotation_and_push(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(
        tiny_path, tmp_path, max_steps=3, save_strategy="steps", save_steps=1, save_total_limit=1
    )
    pushed: list[set[str]] = []
    trainer.args.push_to_hub = True

    def push(folder: str) -> None:
        pushed.append({path.name for path in Path(folder).iterdir()})

    monkeypatch.setattr(trainer, "_push_from_checkpoint", push)
    monkeypatch.setattr(trainer, "_finish_current_push", lambda: None)
    trainer.train()
    wanted = {"adapter_model.safetensors", "perturber.safetensors", "selfplay_state.pt"}
    assert len(pushed) == 3
    assert all(wanted <= names for names in pushed)
    left = [path for path in tmp_path.iterdir() if path.name.startswith("checkpoint-")]
    assert [path.name for path in left] == ["checkpoint-3"]
    assert wanted <= {path.name for path in left[0].iterdir()}


def test_a_run_goes_on_logging_and_saving_as_often_as_it_is_asked_now(
    tiny_path: Path, tmp_path: Path
) -> None:
    common: dict[str, Any] = {"save_strategy": "steps", "methods": ["sft"]}
    make_trainer(tiny_path, tmp_path, max_steps=2, save_steps=2, logging_steps=2, **common).train()
    more = {"max_steps": 4, "save_steps": 1, "logging_steps": 1, "resume_anyway": True}
    trainer = make_trainer(tiny_path, tmp_path, **more, **common)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [entry["step"] for entry in history(trainer, 2)] == [3, 4]
    assert (tmp_path / "checkpoint-3").is_dir()


def test_other_rates_are_followed_where_a_run_is_made_to_go_on(
    tiny_path: Path, tmp_path: Path
) -> None:
    common: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 1}
    common |= {"lr_scheduler_type": "constant", "warmup_steps": 0, "max_steps": 2}
    make_trainer(tiny_path, tmp_path, learning_rate=1e-3, **common).train()
    other = {"learning_rate": 1e-6, "perturber_learning_rate": 2e-6, "resume_anyway": True}
    trainer = make_trainer(tiny_path, tmp_path, **other, **common)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    (entry,) = history(trainer, 1)
    assert entry["learning_rate"] == pytest.approx(1e-6)
    assert entry["perturber_learning_rate"] == pytest.approx(2e-6)


def test_evaluating_changes_nothing_that_is_learned(tiny_path: Path, tmp_path: Path) -> None:
    found = []
    for name, settings in (
        ("without", {"eval_strategy": "no"}),
        ("with", {"eval_strategy": "steps", "eval_steps": 1}),
    ):
        trainer = make_trainer(
            tiny_path,
            tmp_path / name,
            Records(8),
            eval_dataset=Records(4),
            dropout=0.3,
            max_steps=3,
            methods=["sft"],
            learning_rate=1e-2,
            **settings,
        )
        trainer.train()
        found.append(lora_weights(trainer))
    for name, weight in found[0].items():
        assert torch.equal(weight, found[1][name]), name


def test_the_best_step_is_one_that_has_a_checkpoint(tiny_path: Path, tmp_path: Path) -> None:
    trainer = make_trainer(
        tiny_path,
        tmp_path,
        eval_dataset=Records(4),
        max_steps=4,
        learning_rate=5.0,  # each step makes it worse
        lr_scheduler_type="constant",
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        methods=["sft"],
    )
    trainer.train()
    scores = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert scores[0] < scores[1]  # the best of all has no checkpoint
    assert trainer.state.best_model_checkpoint is not None
    kept = min(scores[1], scores[3])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(kept, rel=1e-5)


def test_the_best_adapter_is_loaded_at_the_end(tiny_path: Path, tmp_path: Path) -> None:
    trainer = make_trainer(
        tiny_path,
        tmp_path,
        eval_dataset=Records(4),
        max_steps=2,
        learning_rate=5.0,  # the second step makes it worse
        lr_scheduler_type="constant",
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        methods=["sft"],
    )
    trainer.train()
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    scores = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(scores), abs=1e-6)
    assert scores[0] != pytest.approx(scores[1], abs=1e-3)


def test_the_best_adapter_comes_with_the_perturber_it_was_trained_against(
    tiny_path: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(
        tiny_path,
        tmp_path,
        eval_dataset=Records(4),
        max_steps=2,
        learning_rate=5.0,  # the second step makes it worse
        lr_scheduler_type="constant",
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
    )
    trainer.train()
    best, other = (load_file(tmp_path / f"checkpoint-{n}" / PERTURBER_FILE) for n in (1, 2))
    assert Path(str(trainer.state.best_model_checkpoint)).name == "checkpoint-1"
    found = game_of(trainer).perturber.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in best.items())
    assert any(not torch.equal(best[name], other[name]) for name in best)


def test_a_mixture_goes_on_within_its_second_epoch(tiny_path: Path, tmp_path: Path) -> None:
    def run() -> UniGameTrainer:
        # 7 places an epoch, 2 a batch: step 5 is inside the second epoch. Its 5 places of the
        # larger source are other rows than the first epoch's.
        data = Mixture([Records(9), Records(3)], weights=[3, 1], seed=1, size=7)
        settings = {"max_steps": 7, "per_device_train_batch_size": 2, "methods": ["sft"]}
        saving = {"save_strategy": "steps", "save_steps": 5}
        return make_trainer(tiny_path, tmp_path / "run", data, **settings, **saving)

    straight = run()
    straight.train()
    resumed = run()
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-5"))
    assert resumed.train_dataset.epoch == straight.train_dataset.epoch == 1
    assert history(resumed, 5) == history(straight, 5) and len(history(straight, 5)) == 2


def test_states_are_loaded_onto_the_numbered_cpu_of_a_process(tmp_path: Path) -> None:
    """As transformers loads an optimizer on several processes; torch before 2.13 knows no cpu:0."""
    torch.save({"moment": torch.ones(2)}, tmp_path / "a.pt")
    found = torch.load(tmp_path / "a.pt", map_location=torch.device("cpu", 0), weights_only=True)
    assert found["moment"].tolist() == [1, 1]
    ours = [entry[-1] for entry in torch.serialization._package_registry if entry[0] == 17]
    assert [restore("storage", "cpu:3") for restore in ours] == ["storage"]
    assert [restore("storage", "cuda:0") for restore in ours] == [None]


def test_a_stream_is_for_one_process() -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            return iter(Records(2).items)

    require_map_style(Stream(), 1)
    require_map_style(Records(2), 2)
    with pytest.raises(UserError, match="Stream.*2 processes"):
        require_map_style(Stream(), 2)
