"""What methods of verified drawings have in common: rounds of drawing and verifying, and a store.

On every n-th step, as ``before_step`` reads::

    choose      captions, of a file or of the batch, and K seeds for each
    draw        G draws them all, free-running, a batch at a time
    verify      U answers questions about each drawing; the independent reader looks too
    keep        confirmed drawings enter the store, in compact form

In every step rows of the store join the batch; which rows is the method's own. What is counted of a
round is counted over all processes, so that every one of them finds the same things wrong.

A round takes no random numbers of the run: each drawing has a seed of its own, by the run's seed,
its caption and its number. The store and its generator belong to one process each. Processes that
draw from one file draw different captions of it.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unigame.errors import UserError
from unigame.methods.base import Method, Run
from unigame.methods.drawings.advice import lines_at_start
from unigame.methods.drawings.choosing import CaptionChoice
from unigame.methods.drawings.questions import GIVEN, KeptQuestions, QuestionMaker, build_maker
from unigame.methods.drawings.readers import BASE, Judged, build_reader
from unigame.methods.drawings.settings import BY_QUESTIONS, BY_SIMILARITY, DrawingSettings
from unigame.methods.drawings.shown import write_drawings
from unigame.methods.drawings.store import (
    DrawingStore,
    StoredDrawing,
    codes_used,
    distinct,
    variety,
)
from unigame.methods.drawings.tally import Tally
from unigame.methods.drawings.texts import QA, Text, read_texts
from unigame.methods.drawings.verifying import Verdicts, Verifier, draw, rendered
from unigame.methods.drawings.written import ModelQuestions
from unigame.methods.findings import Finding, Log, u_does_not_learn
from unigame.methods.rows import Batch, Rows
from unigame.methods.semantics import ClipSimilarity, SimilarityScorer, build_scorer
from unigame.seeds import derive_seed
from unigame.settings.rules import shown
from unigame.system.at_once import AtOnce
from unigame.system.say import warn

logger = logging.getLogger(__name__)
COOL = 0.7  # temperature of codes where none is set: fewer wrong drawings, and still different ones
ALIKE = 0.5  # of the variety at the beginning, below which drawings have become alike


def figures_of(name: str, *more: str) -> tuple[str, ...]:
    """What a method of that name logs: what all of them do, and ``more``."""
    shared = (
        *("kept", "agreement", "similarity", "unasked", "unparsed", "store"),
        *("variety", "distinct", "round_codes_used"),
        *("true", "precision", "recall", "false_confirmed"),
    )
    return tuple(f"{name}_{figure}" for figure in (*shared, *more))


@dataclass
class Round:
    """What a process did in a round; nothing where its batch had no caption.

    Attributes:
        captions: what each drawing was drawn by.
        codes: (D, N) or latents; None of no drawing.
        verdicts: of each.
        untaught: confirmed drawings that teach nothing, so that the store did not take them.
    """

    captions: list[str] = field(default_factory=list)
    codes: Tensor | None = None
    verdicts: Verdicts = field(default_factory=Verdicts)
    untaught: int = 0


class DrawingMethod(Method):
    """Base of ``verify`` and ``imagine``; see the module docstring.

    A subclass says which rows the store gives (``step_rows``), and what it keeps of a drawing
    (``kept``).
    """

    settings: DrawingSettings
    learns_alone = True
    summed: tuple[str, ...] = ()
    """Names of ``counts`` by which ``found`` judges: ``totals`` has them of all processes."""

    def __init__(self, settings: Any = None, **values: Any) -> None:
        super().__init__(settings, **values)
        self.texts: list[Text] = []

    # ---- before the run ------------------------------------------------------------------------
    def check(self, args: Any) -> None:
        """The base is what LoRA leaves alone, and a trained projector is no LoRA.

        Raises:
            UserError: the base is asked, and eyes that it shares are trained.
        """
        super().check(args)
        parts = getattr(args, "train_parts", None) or ()
        if "projector" in parts and self.asks_base():
            asked = {
                "verifier=current": self.settings.verifier == BASE,
                "reader=null": self.settings.reader == BASE,
                "rehearsal=0": getattr(self.settings, "rehearsal", 0) > 0,
            }
            changes = " and ".join(change for change, needed in asked.items() if needed)
            raise UserError(
                f"method {self.name} asks the model as it was before training, and "
                f"train_parts={parts} changes what it reads; set {changes}"
            )

    def check_machine(self, args: Any) -> None:
        """Read captions and verifier, so that a fault in them is known before the weights."""
        self._read_texts()
        if self.settings.verifier == BY_SIMILARITY:
            ClipSimilarity(str(self.settings.similarity_model), "image-text")

    def _read_texts(self) -> None:
        path = self.settings.texts
        if path is None or self.texts:
            return
        self.texts = read_texts(path)
        bare = sum(not text.questions for text in self.texts)
        if self.settings.question_maker == GIVEN and bare:
            raise UserError(
                f"question_maker=given, but {bare} of {len(self.texts)} captions in {path} have no "
                "questions; give some for each, or set question_maker=rules"
            )

    @property
    def needs_captions(self) -> bool:
        """Unless a file gives some."""
        return self.settings.texts is None

    def uneven_passes(self) -> str:
        """None outside ``in_step``; rows have stand-ins."""
        return ""

    def setup(self, run: Run) -> None:
        """Read the captions, make the store, and see that the model can draw.

        Raises:
            UserError: it cannot; the captions cannot be read; a maker or reader cannot be had.
        """
        super().setup(run)
        self._read_texts()
        run.backbone.require_drawing()
        self._check_texts()
        settings = self.settings
        self.batch_size = run.args.per_device_train_batch_size
        self.latents = run.backbone.facts.codebook_size is None
        usual = 1.0 if self.latents else COOL
        self.temperature = usual if settings.temperature is None else settings.temperature
        self.goes_on = run.backbone.adapter_loaded  # a checkpoint to resume comes later
        # Layers in shards are gathered by all processes together: none may try again alone.
        name = f"{self.name}.draw_batch"
        self.at_once = AtOnce(settings.draw_batch, name, halves=not run.sharded)
        self.maker = self._make_maker()
        reader = build_reader(settings.reader)
        self.verifier = Verifier(
            run.backbone,
            settings.verifier,
            settings.confirm,
            reader,
            settings.answer_tokens,
            self.at_once,
            self._scorer(),
            settings.clip_floor,
        )
        seed = derive_seed(run.args.seed, self.name, "store", run.rank)
        self.store = DrawingStore(settings.capacity, settings.per_caption, settings.max_age, seed)
        self.choice = CaptionChoice(
            self.texts,
            settings,
            name=self.name,
            seed=run.args.seed,
            rank=run.rank,
            ranks=max(1, getattr(run.args, "world_size", 1)),
        )
        self.tally = Tally(self.name, settings)
        self.last_round = -1
        self._step, self._offers = -1, 0  # of what was offered in this step
        self.counts = {"drawn": 0, "kept": 0, "asked": 0, "agreed": 0}  # of this process
        self.totals = dict.fromkeys(self.summed, 0)
        self._said: set[str] = set()
        self._chosen: list[StoredDrawing] = []

    def _check_texts(self) -> None:
        """Refuse captions and questions that the model could not lay out, before any drawing."""
        for text in self.texts:
            where = f"texts={self.settings.texts!r}: caption {shown(text.caption)}"
            for question, answer in text.questions or (("", ""),):
                row = {"caption": text.caption, "question": question, "answer": answer}
                if problem := self.problem(row):
                    raise UserError(f"{where} has {problem[0]}: {problem[1]}")

    def problem(self, row: Mapping[str, str]) -> tuple[str, str] | None:
        """Why the model cannot lay out a row of texts, with what to do; None where it can."""
        rules = self.run.backbone.text_rules
        return None if rules is None else rules.problem(row, max_length=self.run.args.max_length)

    def _scorer(self) -> SimilarityScorer | None:
        """What compares drawings with captions, where that verifies."""
        if self.settings.verifier != BY_SIMILARITY:
            return None
        return build_scorer(
            "clip",
            self.run.backbone,
            clip_model=self.settings.similarity_model,
            clip_mode="image-text",
        )

    def _make_maker(self) -> QuestionMaker | None:
        if self.settings.question_maker == GIVEN:
            return None
        maker = build_maker(self.settings.question_maker, self.run.backbone, self.settings)
        if isinstance(maker, ModelQuestions):
            maker.at_once = self.at_once
        if getattr(maker, "keeps", False):
            return KeptQuestions(maker, self.run.args.output_dir, self.name, self.run.rank)
        return maker

    # ---- one step ------------------------------------------------------------------------------
    def before_step(self, batch: Batch, step: int) -> None:
        """Draw and verify where this step is due, and choose the rows of the step."""
        if step % self.settings.every == 0 and step != self.last_round:
            self.last_round = step  # only in the first micro-batch of a step
            with self.run.in_step():
                found = self.round(batch, step)
            self._record(found)
        if step != self._step:
            self._step, self._offers = step, 0
        self.store.forget(step)
        self._chosen = self.store.sample(self.settings.rows_of(self.batch_size))
        batch.offered.append(self.offer)

    def offer(self, count: int) -> Rows | None:
        """So many confirmed drawings with a question each, for a method that is listed after this.

        The pictures are right as far as U's old skills say; ``selfplay`` may restyle them. Chosen
        by a seed of this call alone: who asks does not change what this method trains on.
        """
        seed = derive_seed(
            self.run.args.seed, self.name, "offer", self.run.rank, self._step, self._offers
        )
        self._offers += 1
        chooser = torch.Generator().manual_seed(seed)
        known = [one for one in self.store.sample(count, chooser) if one.questions]
        if not known:
            return None
        codes = self.codes_of(known)
        with torch.no_grad(), self.run.autocast():
            images = rendered(self.run.backbone, codes)
        pairs = [self.store.pick(drawing.questions, chooser) for drawing in known]
        captions = [drawing.caption for drawing in known]
        return Rows(
            images=images,
            codes=codes,
            questions=[question for question, _ in pairs],
            answers=[answer for _, answer in pairs],
            captions=captions,
            ids=[f"{self.name}: {caption}" for caption in captions],
            source=[self.name] * len(known),
        )

    def round(self, batch: Batch, step: int) -> Round:
        """G draws, U verifies, and the store takes in what is confirmed."""
        texts, seeds = self.choice.choose(batch, step)
        if not texts:
            return Round()
        captions = [text.caption for text in texts]
        settings, run = self.settings, self.run
        with run.phase(self.phases[0]), run.autocast():
            codes = draw(
                run.backbone,
                captions,
                seeds,
                temperature=self.temperature,
                guidance_scale=settings.guidance_scale,
                batch=self.at_once,
            )
        with run.phase(self.phases[1]), run.autocast():
            asked = self._questions(texts)
            verdicts = self.verifier(codes, captions, asked)
            taken = [row for row, is_so in enumerate(verdicts.confirmed) if is_so]
            stored: list[StoredDrawing] = []
            if taken:
                stored = self.kept(
                    [texts[row] for row in taken],
                    codes[taken],
                    [asked[row] for row in taken],
                    [seeds[row] for row in taken],
                    step,
                )
                self.store.add(stored)
        return Round(captions, codes, verdicts, len(taken) - len(stored))

    def _questions(self, texts: Sequence[Text]) -> list[Sequence[QA]]:
        """What is asked of each drawing, to verify it."""
        if self.maker is None:
            return [text.questions for text in texts]
        captions = list(dict.fromkeys(text.caption for text in texts))
        made = dict(zip(captions, self.maker(captions), strict=True))
        if isinstance(self.maker, KeptQuestions):
            made = {caption: self._that_fit(asked) for caption, asked in made.items()}
        return [made[text.caption] for text in texts]

    def _that_fit(self, asked: Sequence[QA]) -> list[QA]:
        """Without what a model wrote and no row can hold: one of its own marks, or too long."""
        found = []
        for question, answer in asked:
            problem = self.problem({"question": question, "answer": answer})
            if problem is None:
                found.append((question, answer))
            elif question not in self._said:
                self._said.add(question)
                warn(
                    f"method {self.name}: the question {shown(question)} has {problem[0]}, and is "
                    f"not asked; mend its line in {self.name}_questions.jsonl"
                )
        return found

    def codes_of(self, drawings: Sequence[StoredDrawing]) -> Tensor:
        """Of drawings, on the device: codes, (D, N), as numbers of the codebook, or latents."""
        codes = torch.stack([drawing.codes for drawing in drawings])
        return (codes if codes.is_floating_point() else codes.long()).to(self.run.device)

    def pairs(self, drawings: Sequence[StoredDrawing], weight: float) -> Rows:
        """Drawings to draw again, each with the caption that it was drawn by.

        Args:
            drawings: of the store, at least one.
            weight: of the mean over them.
        """
        return Rows(
            codes=self.codes_of(drawings),
            captions=[drawing.caption for drawing in drawings],
            loss="generation",
            source=[self.name] * len(drawings),
            weight=weight,
        )

    @abstractmethod
    def kept(
        self,
        texts: Sequence[Text],
        codes: Tensor,
        asked: Sequence[Sequence[QA]],
        seeds: Sequence[int],
        step: int,
    ) -> list[StoredDrawing]:
        """What the store keeps of confirmed drawings.

        Args:
            texts: what each was drawn by.
            codes: (D, N) or latents.
            asked: what each was verified by.
            seeds: of each drawing.
            step: of the round.
        """

    def _record(self, found: Round) -> None:
        """Log a round, and count it: over all processes, each of which comes here."""
        verdicts, judged = found.verdicts, Judged.of(found.verdicts)
        drawn, kept = len(verdicts.confirmed), sum(verdicts.confirmed)
        unparsed = int(getattr(self.maker, "unparsed", 0))
        own = [drawn, kept, verdicts.unasked, found.untaught, *vars(judged).values(), unparsed]
        so_far = [self.counts[name] for name in self.summed]
        values = torch.tensor([*so_far, *own], dtype=torch.float64, device=self.run.device)
        summed = list(map(int, self.run.sum(values).tolist()))
        self.totals = dict(zip(self.summed, summed, strict=False))
        *of_round, told, right, confirmed, both, unparsed = summed[len(so_far) :]
        self.tally.see(of_round, Judged(told, right, confirmed, both))
        if hasattr(self.maker, "unparsed"):
            self._add("unparsed", unparsed)
        self._add("store", len(self.store))
        if found.codes is not None:
            self._record_drawings(found.codes, found.captions)
        self._add("kept", kept, drawn)
        self._add("unasked", verdicts.unasked, drawn)
        self._add("agreement", verdicts.agreed, verdicts.asked)
        self._add("similarity", sum(verdicts.similarity), len(verdicts.similarity))
        for name, (total, number) in judged.figures().items():
            self._add(name, total, number)
        for name, more in (
            ("drawn", drawn),
            ("kept", kept),
            ("asked", verdicts.asked),
            ("agreed", verdicts.agreed),
        ):
            self.counts[name] += more

    def _record_drawings(self, codes: Tensor, captions: Sequence[str]) -> None:
        """How different the drawings of this round are: the store is not, which only fills."""
        self._add("variety", *variety(codes, captions))
        self._add("distinct", *distinct(codes, captions))
        used = codes_used(codes, self.run.backbone.facts.codebook_size)
        if used is not None:
            self._add("round_codes_used", used)

    def _add(self, name: str, total: Tensor | float, count: float = 1.0) -> None:
        if self.run.figures is not None and count:
            self.run.figures.add(f"{self.name}_{name}", total, count)

    # ---- what is said of it --------------------------------------------------------------------
    def begin(self, max_steps: int) -> None:
        """How much of the file a run of this length draws, and which settings do nothing."""
        for line in lines_at_start(self, max_steps):
            warn(line)

    def asks_base(self) -> bool:
        """Whether the model with LoRA off verifies or reads anything."""
        return BASE in (self.settings.verifier, self.settings.reader)

    def watch(self, step: int, max_steps: int) -> None:
        """Say once that nothing is drawn or confirmed, or that the verifier drifts."""
        for finding in () if self.tally.may_yet_draw else self.found():
            if finding.symptom not in self._said:
                self._said.add(finding.symptom)
                warn(f"{self.name}: {finding.line}")

    def health(self, log: Sequence[Mapping[str, Any]]) -> list[Finding]:
        """Whether drawings are confirmed, honestly, and stay different; and whether U learns."""
        found = self.found()
        name = f"{self.name}_variety"
        logged = Log(log)
        early, late = logged.early(name), logged.late(name)
        if early is not None and late is not None and late < ALIKE * early:
            says = f"two drawings of a caption differed by {early:.0%}, now by {late:.0%}"
            knob = (
                "lower weight, or set max_age"
                if self.latents
                else "raise temperature, or lower weight"
            )
            found.append(Finding("drawings alike", says, knob, {name: late}))
        return found + u_does_not_learn(logged)

    def found(self) -> list[Finding]:
        """What the rounds so far show."""
        return self.tally.findings()

    def summary(self) -> str:
        """What became of the drawings of all processes."""
        values = [self.counts[name] for name in ("drawn", "kept", "asked", "agreed")]
        summed = self.run.sum(torch.tensor(values, dtype=torch.float64, device=self.run.device))
        drawn, kept, asked, agreed = map(int, summed.tolist())
        if not drawn:
            return f"{self.name}: nothing was drawn, because no row had a caption"
        who = self.settings.verifier
        by = "U" if who in BY_QUESTIONS else f"verifier={who}"
        text = f"{self.name}: {by} confirmed {kept} of {drawn} drawings ({kept / drawn:.0%})"
        if asked:
            text += f"; from picture and caption it answers alike {agreed / asked:.0%} of the time"
        honesty = self.tally.honesty  # of all processes already
        if honesty.drawn:
            precision, recall = (
                "none" if share is None else f"{share:.0%}"
                for share in (honesty.precision, honesty.recall)
            )
            text += f"; by the reader: precision {precision}, recall {recall}"
        return text

    def finish(self) -> None:
        """Some drawings for the report."""
        with self.run.in_step():
            if self.run.rank == 0:
                write_drawings(self)

    # ---- for the report ------------------------------------------------------------------------
    @property
    def draws_pictures(self) -> bool:
        """Its store has some."""
        return True

    def kept_pictures(self, most: int) -> dict[str, Tensor]:
        """The newest of the store."""
        newest = self.store.drawings[-most:]
        if not newest:
            return {}
        return {"confirmed": rendered(self.run.backbone, self.codes_of(newest))}

    # ---- checkpoints ---------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Store, generator and counts."""
        return {
            "store": self.store.state_dict(),
            "tally": self.tally.state_dict(),
            "used": self.choice.used,
            "last_round": self.last_round,
            "counts": dict(self.counts),
            "totals": dict(self.totals),
            "counted": sorted(getattr(self.maker, "counted", ())),
            "texts": self.choice.digest,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave.

        Raises:
            UserError: the file of captions has changed since, or an older version wrote it.
        """
        if "tally" not in state:
            raise UserError(
                f"this checkpoint's state of method {self.name} is of an older version of unigame, "
                "which counted rounds otherwise; resume with that version, or begin a new run"
            )
        if state["texts"] != self.choice.digest:
            raise UserError(
                f"texts={self.settings.texts!r} holds other captions than when the run was begun, "
                "so it cannot go on exactly; give the file of that time, or begin a new run"
            )
        self.store.load_state_dict(state["store"])
        self.tally.load_state_dict(state["tally"])
        self.choice.used, self.last_round = state["used"], state["last_round"]
        self.counts |= state["counts"]  # a checkpoint of before may lack a newer one
        own = {name: self.counts[name] for name in self.summed}
        self.totals = dict(state.get("totals", own))  # an older one has those of one process
        self._counted = state.get("counted", [])  # an older one has a sum, of more

    def load(self, folder: Path, rank: int, world_size: int) -> None:
        """Restore this process's state; a run that goes on asks the same questions."""
        super().load(folder, rank, world_size)
        if isinstance(self.maker, KeptQuestions):
            self.maker.read(folder.parent)
            self.maker.counted = {text for text in self._counted if text in self.maker.known}
