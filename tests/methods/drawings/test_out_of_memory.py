"""Drawing and asking fewer pictures at a time, where memory runs out or somebody says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.helpers import Records, make_trainer
from unigame.methods.drawings.questions import KeptQuestions
from unigame.methods.drawings.readers import Reader
from unigame.methods.drawings.verifying import Verifier, ask, describe, draw
from unigame.methods.drawings.written import ModelQuestions
from unigame.methods.imagine import Imagine
from unigame.methods.verify import Verify
from unigame.system.at_once import AtOnce

CAPTIONS = [f"caption {number}" for number in range(11)]
CODES = torch.arange(11)[:, None].repeat(1, 4)
QUESTIONS = [[f"q{n}" for n in range(row % 4)] for row in range(11)]


class Model:
    """Codes are the seed, a picture is its code; as many rows as fit run at once."""

    device = torch.device("cpu")
    max_images = 1

    def __init__(self, fits: int, error: BaseException | None = None) -> None:
        self.fits, self.error = fits, error or torch.OutOfMemoryError("no memory")
        self.rows: list[int] = []

    def _begin(self, rows: int) -> None:
        self.rows.append(rows)
        if rows > self.fits:
            raise self.error

    def generate_compact(self, prompts: Any, *, seeds: Sequence[int], **_: Any) -> torch.Tensor:
        self._begin(len(prompts))
        return torch.tensor(seeds)[:, None].repeat(1, 4)

    def render(self, codes: torch.Tensor) -> torch.Tensor:
        return codes[:, :1, None, None] / 100

    def answer(self, images: torch.Tensor, questions: Sequence[str], **_: Any) -> list[str]:
        self._begin(len(questions))
        return [f"{float(i.mean()):.2f} {q}" for i, q in zip(images, questions, strict=True)]

    def caption(self, images: torch.Tensor, **_: Any) -> list[str]:
        self._begin(len(images))
        return [f"{float(image.mean()):.2f}" for image in images]

    def reply(self, texts: Sequence[str], **_: Any) -> list[str]:
        self._begin(len(texts))
        return [text.upper() for text in texts]

    def weights_digest(self) -> str:
        return "weights"

    @contextmanager
    def lora_disabled(self) -> Iterator[None]:
        yield


def drawn(model: Any, batch: AtOnce) -> torch.Tensor:
    seeds = list(range(11))
    return draw(model, CAPTIONS, seeds, temperature=1.0, guidance_scale=1.0, batch=batch)


def asked(model: Any, batch: AtOnce) -> list[list[str]]:
    return ask(model, CODES, QUESTIONS, base=True, max_new_tokens=2, batch=batch)


def said(model: Any, batch: AtOnce) -> list[str]:
    return describe(model, CODES, max_new_tokens=2, batch=batch)


def compared(model: Any, batch: AtOnce) -> list[float]:
    def scorer(images: torch.Tensor, *_: Any) -> torch.Tensor:
        model._begin(len(images))
        return images.mean((1, 2, 3))

    check = Verifier(model, "clip", 1.0, None, 2, batch, scorer)
    return check(CODES, CAPTIONS, [()] * 11).similarity


def written(model: Any, batch: AtOnce) -> list[str]:
    maker = ModelQuestions(model, Verify().settings)
    maker.at_once = batch
    return list(maker.reply(CAPTIONS))


def read(model: Any, batch: AtOnce) -> list[bool | None]:
    def judge(images: torch.Tensor, _: Any) -> list[bool]:
        model._begin(len(images))
        return (images.mean((1, 2, 3)) > 0.04).tolist()

    return Verifier(model, "reader", 1.0, Reader("own", judge), 2, batch)(
        CODES, CAPTIONS, [()] * 11
    ).right


@pytest.mark.parametrize("work", [drawn, asked, said, compared, read, written])
def test_what_does_not_fit_is_halved_stays_so_and_is_said(
    work: Any, caplog: pytest.LogCaptureFixture
) -> None:
    whole, batch, small = work(Model(99), AtOnce(64)), AtOnce(64, "verify.draw_batch"), Model(3)
    for _ in range(2):
        found = work(small, batch)
        same = torch.equal if isinstance(whole, torch.Tensor) else list.__eq__
        assert same(found, whole)
    # Eleven pictures, or fifteen questions about them.
    tried, left = ([15, 7], 3) if work is asked else ([11, 5], 2)
    assert [rows for rows in small.rows if rows > 3] == tried and batch.value == left
    (line,) = caplog.messages
    assert f"{tried[-1]} at once do not fit" in line and f"verify.draw_batch={left}" in line
    assert "\n" not in line


@pytest.mark.parametrize("work", [drawn, asked, said, compared, read, written])
def test_a_single_picture_that_does_not_fit_is_raised_as_it_is(work: Any) -> None:
    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        work(Model(0), AtOnce(64))


def test_what_falls_further_later_is_said_again(caplog: pytest.LogCaptureFixture) -> None:
    batch = AtOnce(64, "verify.draw_batch")
    drawn(Model(5), batch)
    asked(Model(3), batch)
    assert ["draw_batch=5" in caplog.messages[0], "draw_batch=2" in caplog.messages[1]] == [1, 1]
    assert len(caplog.messages) == 2


def test_what_is_no_lack_of_memory_is_not_tried_again() -> None:
    model, batch = Model(3, RuntimeError("mat1 and mat2 shapes cannot be multiplied")), AtOnce(64)
    with pytest.raises(RuntimeError, match="mat1"):
        drawn(model, batch)
    assert model.rows == [11] and batch.value == 64


def test_nobody_tries_again_alone_where_processes_compute_together() -> None:
    model = Model(3)
    with pytest.raises(torch.OutOfMemoryError):
        drawn(model, AtOnce(64, halves=False))
    assert model.rows == [11]


def test_one_drawing_with_many_questions_is_asked_in_parts() -> None:
    model, questions = Model(3), [[f"q{n}" for n in range(8)]]
    (replies,) = ask(model, CODES[:1], questions, base=False, max_new_tokens=2, batch=AtOnce(64))  # type: ignore[arg-type]
    assert replies == [f"0.00 q{n}" for n in range(8)] and model.rows == [8, 4, 2, 2, 2, 2]


def test_rounds_of_a_run_go_on_with_fewer_pictures(
    tiny_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same drawings in two rounds, and one line."""

    def run(name: str, fits: int) -> Verify:
        more: dict[str, Any] = {"guidance_scale": 1.0, "draw_batch": 8}
        method = Verify(verifier="none", drawings=2, every=1, **more)
        data = Records(4, captions=True)
        trainer = make_trainer(
            tiny_path, tmp_path / name, data, methods=[method], max_steps=2, learning_rate=1e-4
        )
        original = trainer.backbone.generate_compact

        def planted(prompts: Any, **given: Any) -> torch.Tensor:
            tried[name].append(len(prompts))
            if len(prompts) > fits:
                raise torch.OutOfMemoryError("no memory")
            return original(prompts, **given)

        trainer.backbone.generate_compact = planted  # type: ignore[method-assign]
        trainer.train()
        return method

    tried: dict[str, list[int]] = {"whole": [], "small": []}
    whole, small = run("whole", 8), run("small", 3)
    assert tried == {"whole": [8, 8], "small": [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]}
    pairs = zip(whole.store.drawings, small.store.drawings, strict=True)
    assert all(torch.equal(one.codes, other.codes) for one, other in pairs)
    (line,) = [text for text in caplog.messages if "draw_batch" in text]
    assert "2 from now on, as with verify.draw_batch=2" in line


def test_a_run_in_shards_does_not_try_again(tiny_path: Path, tmp_path: Path) -> None:
    run = make_trainer(tiny_path, tmp_path, methods=["sft"])._run()
    for sharded in (False, True):
        method = Verify()
        method.setup(replace(run, sharded=sharded))
        assert method.at_once.halves is not sharded


def test_questions_are_written_as_many_at_a_time_as_pictures_are_drawn(
    tiny_path: Path, tmp_path: Path
) -> None:
    method = Verify(question_maker="model", draw_batch=5)
    method.setup(make_trainer(tiny_path, tmp_path, methods=["sft"])._run())
    assert isinstance(method.maker, KeptQuestions)
    assert isinstance(method.maker.maker, ModelQuestions)
    assert method.maker.maker.at_once is method.at_once and method.at_once.value == 5


def test_how_many_are_drawn_at_a_time_is_free_to_change() -> None:
    assert Verify.free() == Imagine.free() == {"draw_batch"}
