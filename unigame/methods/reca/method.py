"""RecA: the model draws each picture again from what it reads of it.

Reconstruction alignment (Xie et al., arXiv 2509.07295): a row holds the understanding tokens of a
picture and a text such as "describe the picture in every detail", and what is learned is the
picture itself, by the loss that captions have. Only pictures are needed. One micro-batch::

    choose      rows of the batch, those first that hold nothing but a picture
    read        what U reads of them, shrunk where that is wanted
    draw        rows of the loss "reconstruction", at ``weight``

Where a caption says a dozen words of a picture, its understanding tokens say nearly all, so the
drawing half learns from them what captions leave out.

Choices that the paper leaves open:

1. Rows with texts are redrawn too (``pictures: all``), at most ``share`` of a batch.
2. Where what is read are the codes that are to be drawn (Emu3, Chameleon), the pictures are shrunk
   to half their side before they are read: the paper has no such model, and this one would copy.
   ``same_codes`` says how many codes a copier would still get right.
3. The paper scales the gradient into understanding features on one model (x 0.1). Here what makes
   them is frozen as a rule, and then ``understanding_gradient_scale`` has nothing to act on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unigame.backbones.base import Backbone, PromptTokens
from unigame.errors import UserError
from unigame.methods.base import Method, Run
from unigame.methods.findings import MIN_LOGS, Finding, Log, u_does_not_learn
from unigame.methods.reca.settings import RecASettings
from unigame.methods.reca.templates import TEMPLATES
from unigame.methods.rows import Batch, Rows
from unigame.seeds import derive_seed
from unigame.system.say import warn

LOOK_EVERY = 20
"""Micro-batches between two counts of unchanged codes: each costs a pass of the image tokenizer."""
COPIED = 0.5
"""From this share of unchanged codes on, more than half of what is learned can be copied."""
CERTAIN = 0.05
"""Nats a code: below it 95 % of the codes are sure, which no reading of a picture gives."""
FROM_CHANCE = 0.85
"""Of the loss of a guess, ln(codes): a model that starts there cannot draw from what it reads."""
WORSE = 1.05
"""The loss may rise by a twentieth over a run: batches of a few pictures differ by less."""


class RecA(Method):
    """Adds pictures that are to be drawn from what is read of them.

    Args:
        settings: a ``RecASettings``; made of ``values`` if left out.
        values: settings by name.

    Raises:
        UserError: for settings that do not fit; the model's family cannot draw what it reads; a
            size that it cannot be read at; a template that it cannot take.
    """

    name = "reca"
    Settings = RecASettings
    settings: RecASettings
    figures = ("redrawn_rows", "same_codes")
    phases = ("reread",)
    losses = ("reconstruction",)
    learns_pictures = True

    def uneven_passes(self) -> str:
        """None: the trainer runs the loss in every step, with stand-ins where there is no row."""
        return ""

    def setup(self, run: Run) -> None:
        """Lay out the templates, and see what is read of a picture."""
        super().setup(run)
        backbone, settings = run.backbone, self.settings
        self.templates = list(settings.templates or TEMPLATES)
        try:
            self.size = backbone.reading_size(settings.reconstruction_size)
        except UserError as error:
            given = settings.reconstruction_size
            raise UserError(f"reconstruction_size={given}: {error}") from None
        if type(backbone).reconstruction_loss is Backbone.reconstruction_loss:
            backbone.reconstruction_loss(None, [])  # says that the family has none
        self.tokens = self._lay_out(backbone)
        self.shrinks = self.size < backbone.facts.image_size
        self.generator = torch.Generator().manual_seed(derive_seed(run.args.seed, "reca", run.rank))
        self.micro_batches = self.drawn = self.seen = self.chosen = 0
        self._rows: Rows | None = None
        if settings.understanding_gradient_scale < 1 and backbone.reads_frozen and run.rank == 0:
            warn(
                f"understanding_gradient_scale={settings.understanding_gradient_scale:g} acts on "
                "nothing: what makes the understanding tokens is frozen in this run"
            )

    def _lay_out(self, backbone: Backbone) -> list[PromptTokens]:
        """The templates as tokens.

        Raises:
            UserError: one holds a mark of the model's own, or a row would be too long.
        """
        rules = backbone.text_rules
        if rules is not None:
            for text in self.templates:
                if found := rules.problem({"caption": text}):
                    raise UserError(f"templates: {text!r:.60} has {found[0]}; {found[1]}")
        tokens = backbone.reconstruction_tokens(self.templates)
        facts = backbone.facts
        codes = 0 if facts.codebook_size is None else facts.num_image_tokens
        positions = rules.max_positions if rules is not None else None
        if rules is not None and positions is not None:
            longest = max(rules.layout.num_positions(row.ids) for row in tokens) + codes
            if longest > positions:
                raise UserError(
                    f"method reca reads a picture and draws it in one row, which takes {longest} "
                    f"positions, and the model has {positions}; leave reca out, or shorten the "
                    "templates"
                )
        return tokens

    # ---- one step ------------------------------------------------------------------------------
    def before_step(self, batch: Batch, step: int) -> None:
        """Choose pictures of the batch, and read them."""
        settings = self.settings
        due = self._due(len(batch.records) if batch.records.counts else 0)
        chosen = choose(batch, due, settings.pictures == "all", self.generator)
        self.chosen += len(chosen)
        rows = batch.records.pick(chosen)
        numbers = torch.randint(len(self.tokens), (len(rows),), generator=self.generator).tolist()
        codes = self._codes(rows)
        if self.micro_batches % LOOK_EVERY == 0 and self.run.backbone.reads_codes:
            self._look(rows, codes)
        self.micro_batches += 1
        self._rows = replace(
            rows,
            questions=[""] * len(rows),
            answers=[""] * len(rows),
            captions=[self.templates[number] for number in numbers],
            asked=None,
            prompted=[self.tokens[number] for number in numbers],
            embeds=self._read(rows),
            features=None,
            codes=codes,
            loss="reconstruction",
            source=[self.name] * len(rows),
            weight=settings.weight,
        )

    def _due(self, rows: int) -> int:
        """How many may be drawn of so many more rows: at most the share of all that came.

        So the share holds in small batches, and a turn that finds no picture is kept for the next.
        Of one batch it is never more than its own share, rounded up: memory is planned for that.
        """
        self.seen += rows
        share = self.settings.share
        most = min(math.ceil(share * rows), math.ceil(share * self.seen) - self.chosen)
        return max(0, most)  # below 0 where a resumed run has a smaller share

    def step_rows(self) -> list[Rows]:
        """Pictures to be drawn; where there are none, one that only keeps the ranks in step."""
        rows, self._rows = self._rows, None
        if rows is None:
            return []
        number = len(rows) if rows.counts else 0
        self.drawn += number
        self._note("redrawn_rows", number)
        return [rows]

    def _codes(self, rows: Rows) -> Tensor:
        if rows.codes is not None:
            return rows.codes
        if self.run.codes is not None:
            return self.run.codes(rows.pictures, rows.ids)
        return self.run.backbone.encode_images(rows.pictures)

    def _read(self, rows: Rows) -> Tensor:
        """What U reads of the pictures, (R, N, H), its gradient scaled."""
        if rows.embeds is not None and not self.shrinks:
            return rows.embeds
        frozen = self.run.backbone.reads_frozen
        still: AbstractContextManager[Any] = torch.no_grad() if frozen else nullcontext()
        with self.run.phase("reread"), self.run.autocast(), still:
            embeds = self.run.backbone.embed_shrunk(rows.pictures, self.size)
        return scale_gradient(embeds, self.settings.understanding_gradient_scale)

    def _look(self, rows: Rows, codes: Tensor) -> None:
        """How many codes could be copied."""
        if rows.counts:
            same_R = self.run.backbone.same_codes(rows.pictures, codes, self.size)
            self._note("same_codes", float(same_R.sum()), len(rows))

    def _note(self, name: str, total: float, count: float = 1.0) -> None:
        if self.run.figures is not None:
            self.run.figures.add(name, total, count)

    # ---- how it goes ---------------------------------------------------------------------------
    def summary(self) -> str:
        """How many pictures were drawn again."""
        drawn = int(self.run.sum(torch.tensor(float(self.drawn), device=self.run.device)))
        return f"RecA: {drawn} times a picture was drawn from what was read of it."

    def health(self, log: Sequence[Mapping[str, Any]]) -> list[Finding]:
        """Whether there are pictures, and whether their drawing is learned and not copied."""
        found = Log(log)
        return [
            *self._idle(found),
            *self._copies(found),
            *self._from_chance(found),
            *self._worse(found),
            *u_does_not_learn(found),
        ]

    def _idle(self, log: Log) -> list[Finding]:
        if not log.never("redrawn_rows"):
            return []
        says = f"redrawn_rows was 0 in all {len(log)} logs, so there is no reconstruction_loss"
        knob = "set pictures: all, or give rows of a picture alone (type: pictures)"
        return [Finding("nothing redrawn", says, knob, {"redrawn_rows": 0.0})]

    def _copies(self, log: Log) -> list[Finding]:
        same, loss = log.late("same_codes"), log.late("reconstruction_loss")
        knob = f"lower reconstruction_size (now {self.size})"
        if same is not None and same > COPIED:
            says = f"same_codes is {same:.2f}: so many codes of a picture stand in what is read"
            return [Finding("pictures copied", says, knob, {"same_codes": same})]
        in_codes = self.run.backbone.facts.codebook_size is not None
        if in_codes and loss is not None and loss < CERTAIN:
            says = f"reconstruction_loss is {loss:.3f}: codes are copied, or pictures memorised"
            return [Finding("pictures copied", says, knob, {"reconstruction_loss": loss})]
        return []

    def _from_chance(self, log: Log) -> list[Finding]:
        codes, losses = self.run.backbone.facts.codebook_size, log.values("reconstruction_loss")
        if codes is None or not losses or losses[0] < FROM_CHANCE * math.log(codes):
            return []
        says = (
            f"reconstruction_loss began at {losses[0]:.2f}, and a guess among {codes} codes has "
            f"{math.log(codes):.2f}: the model could not draw from what it reads, so this taught a "
            "new task, and drawing by captions may be lost"
        )
        knob = "measure drawing by captions (GenEval, DPG); lower learning_rate, or leave RecA out"
        return [Finding("redrawing from chance", says, knob, {"reconstruction_loss": losses[0]})]

    def _worse(self, log: Log) -> list[Finding]:
        early, late = log.early("reconstruction_loss"), log.late("reconstruction_loss")
        enough = len(log.values("reconstruction_loss")) >= MIN_LOGS
        if early is None or late is None or not enough or late <= WORSE * early:
            return []
        says = f"reconstruction_loss rose from {early:.3f} to {late:.3f}"
        knob = "lower learning_rate, or raise weight"
        return [Finding("drawing unlearned", says, knob, {"reconstruction_loss": late})]

    # ---- what lives from step to step ----------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """The draws of rows and templates, and what was counted."""
        return {
            "generator": self.generator.get_state(),
            "micro_batches": self.micro_batches,
            "drawn": self.drawn,
            "seen": self.seen,
            "chosen": self.chosen,
        }

    def regrouped(
        self, states: Sequence[Mapping[str, Any]], rank: int, world_size: int
    ) -> dict[str, Any]:
        """Counts are dealt out; a process that was not there draws from a generator of its own."""
        own = states[rank] if rank < len(states) else self.state_dict()
        return {
            "generator": own["generator"],
            "micro_batches": states[0]["micro_batches"],
            "drawn": sum(state["drawn"] for state in states[rank::world_size]),
            "seen": states[0].get("seen", 0),
            "chosen": states[0].get("chosen", 0),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave, exactly."""
        self.generator.set_state(state["generator"])
        self.micro_batches, self.drawn = int(state["micro_batches"]), int(state["drawn"])
        # Older checkpoints have neither.
        self.seen, self.chosen = int(state.get("seen", 0)), int(state.get("chosen", 0))


def choose(batch: Batch, most: int, every: bool, generator: torch.Generator) -> list[int]:
    """Rows to draw again, in the order of the batch.

    Args:
        batch: of its rows of one picture, those without texts come first.
        most: at most so many of them.
        every: whether rows with texts may follow, by lot.
        generator: of the lot.
    """
    order = torch.randperm(len(batch.records), generator=generator).tolist()
    if not batch.records.counts:
        return []
    has_text_R = batch.has_answer_R | batch.has_caption_R
    alone = [row for row in order if not has_text_R[row]]
    others = [row for row in order if has_text_R[row]] if every else []
    return sorted([*alone, *others][:most])


def scale_gradient(values: Tensor, scale: float) -> Tensor:
    """The values themselves, with ``scale`` times their gradient."""
    if scale == 1 or not values.requires_grad:
        return values
    return values.detach() + scale * (values - values.detach())
