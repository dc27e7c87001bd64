"""G teaches U: from text alone, new pictures for questions that U cannot answer yet.

A file gives captions, with questions and answers of the new task, or without. Then questions made
from the caption are divided: some verify the drawing, the others are learned (``held_out``), right
as far as the first ones cover what is drawn. G draws each caption, U's *old* skills check the
drawing, and U learns (drawing, question, answer). A few labelled pictures and many captions are
then worth many labelled pictures.

**Rehearsal.** Training on a new task forgets old ones. So a third of the rows of a step, by
default, are old kinds of questions about the same drawings with the answers of the *base* model
(LoRA off), whether right or wrong: what is kept is the model's own behaviour, and no label is
needed. ``imagine_retained`` is the share of those answers that U still gives. Describing is one of
them (``describe``). A reply that did not end within ``rehearsal_tokens`` is left out
(``imagine_cut``): its last word would teach U to stop in the middle. Drawing is forgotten likewise,
so that some confirmed drawings (``drawing_rows``) train caption -> image again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unigame.backbones.base import CAPTION_QUESTION
from unigame.errors import UserError
from unigame.methods.answers import ReadAnswers
from unigame.methods.base import Run
from unigame.methods.drawings.method import DrawingMethod, figures_of
from unigame.methods.drawings.questions import GIVEN, held_out
from unigame.methods.drawings.settings import BY_QUESTIONS, MOST, DrawingSettings
from unigame.methods.drawings.store import StoredDrawing
from unigame.methods.drawings.texts import QA, Text, digest, read_lines
from unigame.methods.drawings.verifying import ask, describe, rendered
from unigame.methods.findings import Finding
from unigame.methods.rows import STAND_IN, Batch, LossName, Rows
from unigame.settings.rules import Number, Switch, Whole, setting, shown
from unigame.settings.rules import Text as TextRule

DESCRIBE_EVERY = 3
"""Of rehearsal rows, each n-th describes: by lot among all old questions it was one in seven, and
describing was forgotten while short answers were kept (docs/notebook.md)."""
UNSURE = 16
"""A reply within a sixteenth of the most tokens counts as cut: the last tokens of one that was cut
may be spaces, or part of a word, and be fewer when the text is read again."""


@dataclass
class ImagineSettings(DrawingSettings):
    """Settings of ``Imagine``, on top of those that all methods of verified drawings have."""

    temperature: float | None = setting(
        None,
        Number(low=0, above=True, optional=True),
        "Of drawing. Default: 0.7 for a model that draws codes, 1 for one that draws latents.",
    )
    rehearsal: float = setting(
        1 / 3,
        Number(low=0, high=1, below=True),
        "Share of all rows of a step, those of the batch included, that rehearse old kinds of "
        "questions with the base model's own answers; each counts as a row of the batch. 0: none, "
        "and old skills are forgotten.",
    )
    drawing_rows: int | None = setting(
        None,
        Whole(low=0, high=MOST, optional=True),
        "Rows of a step that rehearse drawing: captions with confirmed drawings, as verify trains "
        "on; each counts as a row of the batch. Default: half as many as the batch has. 0: none, "
        "and drawing is forgotten.",
    )
    old_questions: str | None = setting(
        None,
        TextRule(optional=True),
        "Text file of old kinds of questions, one a line, that fit any picture. Default: those "
        "that the question maker knows, else those that verify.",
    )

    describe: bool = setting(
        True,
        Switch(),
        "Whether a third of the rehearsal describes drawings: a model that learns short answers "
        "forgets it.",
    )
    rehearsal_tokens: int = setting(
        64,
        Whole(low=1, high=MOST),
        "Longest reply and description to rehearse, in tokens; one that has not ended by then is "
        "left out.",
    )

    def inert(self) -> list[str]:
        """See ``DrawingSettings.inert``."""
        idle = []
        if not self.rehearsal:
            names = ("describe", "old_questions", "rehearsal_tokens")
            idle = [(name, "rehearsal=0") for name in names]
        return super().inert() + self._named(idle)

    def rehearsed(self, batch: int) -> int:
        """Rows of rehearsal beside a batch of this size."""
        if not self.rehearsal:
            return 0
        others = batch + self.rows_of(batch)
        return max(1, round(self.rehearsal / (1 - self.rehearsal) * others))

    def drawn(self, batch: int) -> int:
        """Rows that rehearse drawing beside a batch of this size."""
        return -(-batch // 2) if self.drawing_rows is None else self.drawing_rows


class Imagine(DrawingMethod):
    """Adds answers about drawings that U's old skills confirmed, and rehearses those skills."""

    name = "imagine"
    Settings = ImagineSettings
    settings: ImagineSettings
    figures = figures_of(
        "imagine", "ce", "answer_ce", "read_right", "rehearsal_ce", "retained", "cut"
    )
    phases = ("imagine_draw", "imagine_ask")
    losses: tuple[LossName, ...] = ("answer", "generation")
    summed = ("replied", "cut", "described", "described_cut")

    def __init__(self, settings: Any = None, **values: Any) -> None:
        super().__init__(settings, **values)
        if self.settings.drawing_rows == 0:
            self.losses = ("answer",)

    def check(self, args: Any) -> None:
        """It lives on captions of a file: those of the batch have pictures already.

        Raises:
            UserError: there is no file; or U would learn only what it answers right already.
        """
        super().check(args)
        if self.settings.texts is None:
            raise UserError(
                "method imagine needs texts: a .txt or .jsonl file of captions, with questions and "
                "answers if there are any"
            )
        if self.settings.question_maker == GIVEN and self.settings.verifier in BY_QUESTIONS:
            raise UserError(
                "question_maker=given with method imagine: a drawing would be confirmed only where "
                "U answers the questions that it is to learn; set question_maker=rules (or model), "
                "and leave the new questions in texts"
            )

    def check_machine(self, args: Any) -> None:
        """Read both files."""
        super().check_machine(args)
        self._read_old()

    def _read_old(self) -> list[str]:
        path = self.settings.old_questions
        return [] if path is None else read_lines(path, "old_questions")

    def _check_old(self) -> None:
        for question in self.old_questions:
            # A row without an answer is not measured.
            if problem := self.problem({"question": question, "answer": STAND_IN}):
                where = f"old_questions={self.settings.old_questions!r}: {shown(question)}"
                raise UserError(f"{where} has {problem[0]}: {problem[1]}")

    def setup(self, run: Run) -> None:
        """See ``DrawingMethod.setup``; a line of ``old_questions`` that fits no row is refused."""
        super().setup(run)
        self.old_questions = self._read_old()
        self._check_old()
        # Replies to old questions; of descriptions apart, which are few beside them.
        self.counts |= dict.fromkeys(self.summed, 0)
        self._rows: list[Rows] = []
        self._left: dict[str, list[QA]] = {}  # by caption of a round: questions to learn

    def asks_base(self) -> bool:
        """Rehearsal does, too."""
        return super().asks_base() or self.settings.rehearsal > 0

    def rows_at_most(self, args: Any) -> int:
        """Rows of drawings and of rehearsal."""
        batch = args.per_device_train_batch_size
        return self.settings.rows_of(batch) + self.settings.rehearsed(batch)

    def state_dict(self) -> dict[str, Any]:
        """That of all such methods, and which old questions these are."""
        return {**super().state_dict(), "old": _old_digest(self.old_questions)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave.

        Raises:
            UserError: the file of old questions has changed since.
        """
        if state.get("old", now := _old_digest(self.old_questions)) != now:
            raise UserError(
                f"old_questions={self.settings.old_questions!r} holds other questions than when "
                "the run was begun, so it cannot go on exactly; give the file of that time, or "
                "begin a new run"
            )
        super().load_state_dict(state)

    # ---- a round -------------------------------------------------------------------------------
    def _questions(self, texts: Sequence[Text]) -> list[Sequence[QA]]:
        """What verifies; of a caption without questions of its own, some are left to learn."""
        made = super()._questions(texts)
        self._left = {}
        asks = self.settings.verifier in BY_QUESTIONS
        found: list[Sequence[QA]] = []
        for text, own in zip(texts, made, strict=True):
            verify, left = list(own), list(own)
            if asks and not text.questions:
                verify, left = held_out(own)
            self._left[text.caption] = list(text.questions) or left
            found.append(verify)
        return found

    def kept(
        self,
        texts: Sequence[Text],
        codes: Tensor,
        asked: Sequence[Sequence[QA]],
        seeds: Sequence[int],
        step: int,
    ) -> list[StoredDrawing]:
        """Codes, what is learned of them, and the base's own answers to old kinds of questions."""
        old = self._rehearse(texts, codes, asked, seeds)
        found = []
        for text, own, rehearsed in zip(texts, codes, old, strict=True):
            questions = list(self._left[text.caption])
            if questions:
                found.append(StoredDrawing(text.caption, own, step, questions, rehearsed))
        return found

    def _rehearse(
        self,
        texts: Sequence[Text],
        codes: Tensor,
        asked: Sequence[Sequence[QA]],
        seeds: Sequence[int],
    ) -> list[list[QA]]:
        if not self.settings.rehearsal:
            return [[] for _ in texts]
        if self.old_questions:
            questions = [self.old_questions for _ in texts]
        elif hasattr(self.maker, "old"):
            questions = self.maker.old([text.caption for text in texts], seeds)  # type: ignore[union-attr]
        else:
            questions = [[question for question, _ in own] for own in asked]
        # What is learned of the caption is not taught otherwise by the base's own answer.
        questions = [
            [question for question in own if question not in dict(self._left[text.caption])]
            for text, own in zip(texts, questions, strict=True)
        ]
        said = ask(
            self.run.backbone,
            codes,
            questions,
            base=True,
            max_new_tokens=self.settings.rehearsal_tokens,
            batch=self.at_once,
        )
        if self.settings.describe:
            most = self.settings.rehearsal_tokens
            described = describe(self.run.backbone, codes, max_new_tokens=most, batch=self.at_once)
            questions = [[*own, CAPTION_QUESTION] for own in questions]
            said = [[*replies, text] for replies, text in zip(said, described, strict=True)]
        given = [
            [(question, reply) for question, reply in zip(own, replies, strict=True) if reply]
            for own, replies in zip(questions, said, strict=True)
        ]
        whole = [[pair for pair in own if self._can_be_learned(*pair)] for own in given]
        replied, left = sum(map(len, given)), sum(map(len, whole))
        self._add("cut", replied - left, replied)
        self.counts["replied"] += replied
        self.counts["cut"] += replied - left
        told, learned = (
            sum(_describes(pair) for own in pairs for pair in own) for pairs in (given, whole)
        )
        self.counts["described"] += told
        self.counts["described_cut"] += told - learned
        return whole

    def _can_be_learned(self, question: str, reply: str) -> bool:
        """Whether a reply ended by itself, and fits a row."""
        backbone, most = self.run.backbone, self.settings.rehearsal_tokens
        rules = backbone.text_rules
        row = {"question": question, "answer": reply}
        if rules is not None and rules.problem(row, max_length=self.run.args.max_length):
            return False
        own = int(backbone.answer_lengths([question], [reply])) - 1  # without the end mark
        return own < most - most // UNSURE

    def found(self) -> list[Finding]:
        """Also whether replies to rehearse are mostly cut, or there are none."""
        found = super().found()
        replied, cut, described, described_cut = (self.totals[name] for name in self.summed)
        if self.settings.rehearsal and self.store.drawings and replied == described:
            says = "no old question is rehearsed: those that verify are the ones to learn, or none"
            knob = "name a file of old_questions, or take question_maker=rules with verifier=base"
            found.append(Finding("nothing rehearsed", says, knob, {}))
        if 2 * cut > replied or 2 * described_cut > described:
            if 2 * cut <= replied:
                replied, cut = described, described_cut
            of = "descriptions" if replied == described else "replies to old questions"
            says = f"{cut} of {replied} {of} did not end, and are left out"
            knob = (
                f"raise rehearsal_tokens={self.settings.rehearsal_tokens}, set describe=false, or "
                "give old_questions with short answers"
            )
            figures = {"imagine_cut": cut / replied}
            found.append(Finding("rehearsal cut", says, knob, figures))
        return found

    # ---- a step --------------------------------------------------------------------------------
    def before_step(self, batch: Batch, step: int) -> None:
        """A round where one is due, and the rows of this step."""
        super().before_step(batch, step)
        with self.run.in_step():
            self._rows = self._make_rows()

    def _make_rows(self) -> list[Rows]:
        drawings = self._chosen
        if not drawings:
            return []
        new = [self.store.pick(drawing.questions) for drawing in drawings]
        old: list[QA] = []
        rows_of_old: list[int] = []
        number = self.settings.rehearsed(self.batch_size)
        with_old = [row for row, drawing in enumerate(drawings) if drawing.old]
        while with_old and len(old) < number:
            for row in with_old[: number - len(old)]:
                describes = (self._step + len(old)) % DESCRIBE_EVERY == 0
                known = [pair for pair in drawings[row].old if _describes(pair) == describes]
                old.append(self.store.pick(known or drawings[row].old))
                rows_of_old.append(row)
        pictures = self._pictures(drawings)
        rows = [replace(pictures, **_texts(new), weight=self.settings.weight)]
        if old:
            # Each row counts as one of the batch.
            share = len(old) / self.batch_size
            rows.append(replace(pictures.pick(rows_of_old), **_texts(old), weight=share))
        if number := self.settings.drawn(self.batch_size):
            again = self.store.sample(number)
            rows.append(self.pairs(again, weight=len(again) / self.batch_size))
        return rows

    @torch.no_grad()
    def _pictures(self, drawings: Sequence[StoredDrawing]) -> Rows:
        """The drawings as pictures, or what U reads of them where that never changes."""
        backbone = self.run.backbone
        with self.run.autocast():
            images = rendered(backbone, torch.stack([drawing.codes for drawing in drawings]))
            embeds = backbone.embed_images(images) if backbone.reads_frozen else None
        source, captions = [self.name] * len(drawings), [drawing.caption for drawing in drawings]
        return Rows(images=images, embeds=embeds, captions=captions, source=source)

    def step_rows(self) -> list[Rows]:
        """Answers about drawings, and both rehearsals; none while the store is empty."""
        return self._rows

    def after_loss(self, clean: ReadAnswers, own: ReadAnswers, step: int) -> None:
        """How U does on the new task, and how much of its old answers it still gives."""
        new = len(self._chosen) if self._rows else 0
        learned, rehearsed = own[:new], own[new:]
        if len(learned):
            self._add("ce", learned.loss_B.sum(), len(learned))
            self._add("answer_ce", learned.own_B.sum(), len(learned))
            self._add("read_right", learned.right_B.sum(), len(learned))
        if len(rehearsed):
            self._add("rehearsal_ce", rehearsed.loss_B.sum(), len(rehearsed))
            self._add("retained", rehearsed.right_B.sum(), len(rehearsed))


def _old_digest(questions: Sequence[str]) -> str:
    """Which old questions these are."""
    return digest([Text(question) for question in questions])


def _describes(pair: QA) -> bool:
    return pair[0] == CAPTION_QUESTION


def _texts(pairs: Sequence[QA]) -> dict[str, Any]:
    return {
        "questions": [question for question, _ in pairs],
        "answers": [answer for _, answer in pairs],
    }
