"""Drawings are judged by U, and U by an independent reader: precision, recall, drift."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from unigame.methods.drawings.readers import Honesty, Judged, build_reader
from unigame.methods.drawings.verifying import Verdicts, Verifier
from unigame.synthetic.from_captions import WorldQuestions
from unigame.synthetic.world import CELLS, Scene, Thing, render
from unigame.system.at_once import AtOnce

CAPTION = "northwest red disc, south blue cross"
THINGS = (Thing(0, "red", "disc"), Thing(7, "blue", "cross"))
OTHER = (Thing(0, "green", "disc"), Thing(7, "blue", "cross"))


def pictures(*scenes: Sequence[Thing]) -> torch.Tensor:
    drawn = [torch.from_numpy(render(Scene(tuple(things)))) for things in scenes]
    return torch.stack(drawn).permute(0, 3, 1, 2)


class Model:
    """Its drawings are their own codes; it reads what is at each cell, or always says yes."""

    max_images = 8
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.asked: list[tuple[str, bool]] = []
        self.lora = True
        self.biased = False  # with LoRA on it sees what the caption says

    def render(self, codes: torch.Tensor) -> torch.Tensor:
        return codes

    @contextmanager
    def lora_disabled(self) -> Iterator[None]:
        self.lora = False
        yield
        self.lora = True

    def answer(self, images: Any, questions: Any, *, image_index: Any, **_: Any) -> list[str]:
        from unigame.synthetic.reader import read

        said = []
        for (row,), question in zip(image_index, questions, strict=True):
            self.asked.append((question, self.lora))
            seen = read(images[row].permute(1, 2, 0).numpy())
            if self.biased and self.lora:
                seen = {(t.cell, t.colour, t.shape) for t in THINGS}
            said.append(self._reply(question, seen))
        return said

    def _reply(self, question: str, seen: set[tuple[int, str, str]]) -> str:
        if question.startswith("how many"):
            return str(len(seen))
        if question.startswith("is there"):
            return "yes" if any(f"{c} {s}" in question for _, c, s in seen) else "no"
        for cell, colour, shape in seen:
            if question.endswith(f"at {CELLS[cell]}?"):
                return colour if "colour" in question else shape
        return "none"


def verifier(
    model: Model, who: str = "base", reader: str | None = "world", **more: Any
) -> Verifier:
    given = {"confirm": 1.0, "max_new_tokens": 3, "batch": AtOnce(2), **more}
    return Verifier(model, who, reader=build_reader(reader), **given)  # type: ignore[arg-type]


def judged(check: Verifier, *scenes: Sequence[Thing]) -> Verdicts:
    captions = [CAPTION] * len(scenes)
    return check(pictures(*scenes), captions, WorldQuestions()(captions))


def test_what_the_picture_answers_otherwise_is_not_confirmed() -> None:
    model = Model()
    found = judged(verifier(model), THINGS, OTHER, THINGS[:1], THINGS)
    assert found.confirmed == [True, False, False, True] == found.right
    assert found.asked == 4 * 7 and found.agreed == 28 - 2 - 4
    assert {lora for _, lora in model.asked} == {False}, "the base model answers"
    lenient = judged(verifier(model, confirm=0.7), THINGS, OTHER, THINGS[:1], THINGS)
    assert lenient.confirmed == [True, True, False, True]


def test_who_confirms_is_a_setting() -> None:
    model = Model()
    model.biased = True
    assert judged(verifier(model, "current"), THINGS, OTHER).confirmed == [True, True]
    assert {lora for _, lora in model.asked} == {True}
    assert judged(verifier(model, "reader"), THINGS, OTHER).confirmed == [True, False]
    assert judged(verifier(model, "none"), THINGS, OTHER).confirmed == [True, True]
    against_base = judged(verifier(model, "current", "base"), THINGS, OTHER)
    assert against_base.confirmed == [True, True] and against_base.right == [True, False]


class Scorer:
    """Cosine of a picture with a caption: one for each row, in the order of the batches."""

    def __init__(self, *cosines: float) -> None:
        self.cosines = list(cosines)

    def __call__(self, images: torch.Tensor, _: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
        assert len(images) == len(texts) <= 2, "a batch at a time"
        return torch.tensor([self.cosines.pop(0) for _ in texts])


def test_an_image_text_model_confirms_what_reaches_the_floor_and_asks_nothing() -> None:
    model = Model()
    check = verifier(model, "clip", scorer=Scorer(0.5, 0.25, 0.125), floor=0.25)
    found = judged(check, THINGS, OTHER, OTHER)
    assert found.confirmed == [True, True, False] and found.right == [True, False, False]
    assert found.similarity == [0.5, 0.25, 0.125]
    assert not model.asked and found.asked == 0


def test_without_a_question_nothing_is_confirmed() -> None:
    found = verifier(Model())(pictures(THINGS), ["a cat"], [[]])
    assert (found.confirmed, found.right, found.unasked) == ([False], [None], 1)


def test_precision_and_recall_are_of_what_the_reader_could_tell() -> None:
    honesty = Honesty()
    verdicts = Verdicts(
        confirmed=[True, True, True, False, False, True],
        right=[True, True, False, True, False, None],
    )
    judged = Judged.of(verdicts)
    assert judged.figures() == {
        **{"true": (3, 5), "precision": (2, 3), "recall": (2, 3), "false_confirmed": (1, 2)}
    }
    honesty.see(judged)
    assert honesty.precision == honesty.recall == 2 / 3
    assert Judged.of(Verdicts(confirmed=[True], right=[None])) == Judged()
    again = Honesty()
    again.load_state_dict(honesty.state_dict())
    assert again == honesty


@pytest.mark.parametrize(("late", "drifts"), [(0, False), (1, False), (6, True)])
def test_confirming_more_of_what_is_wrong_is_drift(late: int, drifts: bool) -> None:
    honesty = Honesty()

    def see(misjudged: int, wrong: int, right: int) -> None:
        honesty.see(Judged(wrong + right, right, right + misjudged, right))

    see(0, 24, right=24)
    assert honesty.drift() is None
    for _ in range(3):
        see(late, 12, right=12)
    assert (honesty.drift() is not None) == drifts
    if drifts:
        assert honesty.drift() == (0.0, 0.5)
        for _ in range(3):  # it is about now: the reader and U are of one mind again
            see(0, 12, right=12)
        assert honesty.drift() is None


def test_a_g_that_draws_worse_is_no_drift_of_u() -> None:
    """U confirms a tenth of what is wrong all along; only the precision falls."""
    honesty = Honesty()
    for right in (90, 90, 90, 2, 2, 2):
        honesty.see(Judged(right + 30, right, right + 3, right))
    assert honesty.drift() is None


def test_a_verifier_that_takes_to_confirming_everything_is_told() -> None:
    """Confirmation bias, planted: after a while U sees in every drawing what it was drawn by."""
    model, honesty = Model(), Honesty()
    check = verifier(model, "current", "world", batch=AtOnce(64))
    scenes = [THINGS, OTHER] * 12
    for _ in range(2):
        honesty.see(Judged.of(judged(check, *scenes)))
    assert honesty.precision == 1 and honesty.drift() is None
    model.biased = True
    for _ in range(2):
        honesty.see(Judged.of(judged(check, *scenes)))
    assert honesty.drift() == (0.0, 1.0)
