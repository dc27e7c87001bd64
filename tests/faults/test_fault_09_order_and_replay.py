"""Fault 9, the trainer's side: no shuffling, a reset global random state, a drained buffer."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import make_tiny_janus
from tests.training.helpers import Records, game_of, make_trainer
from unigame.methods.rows import Batch
from unigame.training.trainer import UniGameTrainer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_janus(tmp_path_factory.mktemp("tiny"))


def orders(model: Path, folder: Path, seed: int) -> list[list[str]]:
    """The ids of two epochs, as the trainer's own loader gives them in one process."""
    loader = make_trainer(model, folder, Records(16), seed=seed).get_train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        epochs.append([name for batch in loader for name in batch.records.ids])
    return epochs


def test_the_loader_shuffles_by_seed_in_one_process(tiny: Path, tmp_path: Path) -> None:
    first, second = orders(tiny, tmp_path, seed=1)
    in_order = [str(i) for i in range(16)]
    assert sorted(first) == sorted(second) == sorted(in_order)
    assert first != in_order
    assert first != second
    random.seed(99)
    torch.manual_seed(99)  # the order hangs on the seed alone
    assert orders(tiny, tmp_path, seed=1) == [first, second]
    assert orders(tiny, tmp_path, seed=2)[0] != first


class Watched(UniGameTrainer):
    """Notes the global random states before and after C's phases, and what each step replays."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.before: list[tuple[bytes, ...]] = []
        self.after: list[tuple[bytes, ...]] = []
        self.replayed: list[int] = []
        self.sizes: list[int] = []

    def _read(self, batch: Batch) -> Batch:
        self.before.append(global_random_state())
        return super()._read(batch)

    def _descend(self, model: Any, parts: Any, counts: Any) -> Any:
        self.after.append(global_random_state())
        self.replayed.append(sum(rows.source.count("selfplay") for rows in parts["answer"]))
        self.sizes.append(len(game_of(self).buffer))
        return super()._descend(model, parts, counts)


def global_random_state() -> tuple[bytes, ...]:
    numpy_state = np.random.get_state()[1]
    assert isinstance(numpy_state, np.ndarray)
    python_state = repr(random.getstate()).encode()
    return torch.get_rng_state().numpy().tobytes(), numpy_state.tobytes(), python_state


@pytest.mark.parametrize("perturbation", ["learned", "random"])
def test_challenge_and_mining_leave_the_global_random_state_alone(
    tiny: Path, tmp_path: Path, perturbation: str
) -> None:
    trainer = make_trainer(
        tiny,
        tmp_path,
        kind=Watched,
        num_candidates=2,
        perturbation=perturbation,
        dropout=0.1,
        max_steps=3,
    )
    assert isinstance(trainer, Watched)
    trainer.train()
    assert trainer.before == trainer.after
    assert len(set(trainer.before)) == 3  # U's dropout does draw from it, so it is a live state


def test_the_buffer_feeds_every_step_and_is_never_drained(tiny: Path, tmp_path: Path) -> None:
    trainer = make_trainer(
        tiny, tmp_path, kind=Watched, max_steps=6, challenge_every=3, hard_batch_size=3
    )
    assert isinstance(trainer, Watched)
    trainer.train()
    assert trainer.replayed == [3] * 6  # also on the steps that mine nothing
    assert trainer.sizes == [4, 4, 4, 8, 8, 8]  # sampling takes nothing out


def test_candidates_keep_their_own_question_and_answer(tiny: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny, tmp_path, Records(8), num_candidates=2)
    inputs = next(iter(trainer.get_train_dataloader()))
    batch = game_of(trainer).challenged(trainer._read(inputs))
    result, _ = game_of(trainer).play(batch)
    game_of(trainer).mine(result, batch, 0)
    answers = dict(zip(inputs.records.ids, inputs.records.answers, strict=True))
    samples = game_of(trainer).buffer.samples
    assert len(samples) == 8
    assert len({sample.answer for sample in samples}) > 1
    assert all(sample.answer == answers[str(sample.source)] for sample in samples)
