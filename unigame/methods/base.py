"""The protocol of a training method: what it adds to a step of fine-tuning.

A step of ``UniGameTrainer`` reads, with every listed method in turn::

    before_step(batch, step)     its players play
    step_rows()                  the rows that it adds to those of the records
    (the trainer: ONE loss over all rows, one step of U)
    after_loss(clean, own)       what U found of every answer
    end_step()                   after an optimizer step

Methods are listed, so they compose. Each owns its settings (a dataclass, the only home of their
defaults), its players, optimizers, generators, figures and files. It meets the model only through
the verbs of ``unigame.backbones.base``, and nothing of the trainer but ``Run``.
``docs/add-a-method.md`` writes one in a single file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from PIL import Image
from torch import Tensor

from unigame.errors import UserError
from unigame.methods import files
from unigame.methods.answers import ReadAnswers
from unigame.methods.findings import Finding
from unigame.methods.rows import Batch, LossName, Rows
from unigame.settings.rules import Rule, check_fields, reject_unknown, rules_of

if TYPE_CHECKING:
    from unigame.backbones.base import Backbone


class Figures(Protocol):
    """Takes note of what a method wants logged: the mean of all observations between two logs."""

    def add(self, name: str, total: Tensor | float, count: Tensor | float = 1.0) -> None:
        """``count`` observations that sum to ``total``; ``name`` is one of ``Method.figures``."""


@dataclass(frozen=True)
class Shown:
    """Pictures of one example, side by side, for the trackers of a run.

    Attributes:
        pictures: of one size.
        caption: what they are, in a line.
    """

    pictures: Sequence[Image.Image]
    caption: str


def _unshown(shown: Sequence[Shown]) -> None:
    pass


def _always() -> bool:
    return True


def _untimed(phase: str) -> AbstractContextManager[Any]:
    return nullcontext()


@dataclass
class Run:
    """What a method is given of the run that it takes part in.

    Attributes:
        args: settings of the run (``UniGameConfig``), to be read only.
        backbone: the model, unwrapped.
        device: where it computes.
        rank: this process's number; it seeds what belongs to one process.
        figures: what is logged.
        phase: times a block as one of ``Method.phases``.
        autocast: mixed precision of the run.
        codes: pictures (B, 3, S, S) and their ids -> codes or latents, remembered where asked for.
        average: averages gradients over processes, in place; None on one.
        gather: joins the values of all processes; None on one.
        sum: the sum over processes.
        closes_step: whether this micro-batch is the last of its optimizer step.
        show: logs pictures at the step that the run has reached, where a tracker takes them.
        sharded: whether the model's weights are: then all processes must run equally many passes
            through it, in one order, but for those within ``in_step``.
        in_step: a context, entered on all processes alike, within which they may run unequal passes
            without gradient.
    """

    args: Any
    backbone: Backbone
    device: torch.device
    rank: int = 0
    figures: Figures | None = None
    phase: Callable[[str], AbstractContextManager[Any]] = _untimed
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    codes: Callable[[Tensor, Sequence[str]], Tensor] | None = None
    average: Callable[[list[Tensor]], None] | None = None
    gather: Callable[[Tensor], Tensor] | None = None
    sum: Callable[[Tensor], Tensor] = field(default=lambda values: values)
    closes_step: Callable[[], bool] = _always
    show: Callable[[Sequence[Shown]], None] = _unshown
    sharded: bool = False
    in_step: Callable[[], AbstractContextManager[Any]] = nullcontext


class Method:
    """A training method. Everything but ``name`` and ``Settings`` has a default that adds nothing.

    Args:
        settings: an object of ``Settings``; made of ``values`` if left out.
        values: its fields by name, with words as they were typed or as plain values.

    Raises:
        UserError: for an unknown setting, or a value that does not fit.
    """

    name: ClassVar[str]
    """As it is listed; also the source of its rows and the prefix of its files."""
    Settings: ClassVar[type]
    figures: tuple[str, ...] = ()
    """Names of what it logs; every process must have the same ones."""
    phases: tuple[str, ...] = ()
    """Parts of its step that are timed, logged as ``seconds_<phase>``."""
    losses: tuple[LossName, ...] = ()
    """Losses whose rows it may add: each is run in every step, so that ranks keep step."""
    learns_pictures: ClassVar[bool] = False
    """Whether a row that holds nothing but a picture is a row for it."""
    learns_alone: ClassVar[bool] = False
    """Whether it brings rows of its own making, so that a run may have nothing else to learn."""
    rate: ClassVar[str] = ""
    """Name of the setting that is its player's learning rate, for messages about divergence."""
    run: Run

    def __init__(self, settings: Any = None, **values: Any) -> None:
        if settings is None:
            reject_unknown(values, rules_of(self.Settings), f"setting of method {self.name!r}:")
            settings = self.Settings(**values)
        elif values or not isinstance(settings, self.Settings):
            raise UserError(
                f"method {self.name!r} is given {type(settings).__name__}"
                f"{' and single settings' if values else ''}; give one "
                f"{self.Settings.__name__}, or its fields by name"
            )
        check_fields(settings)
        self.settings = settings

    @classmethod
    def rules(cls) -> dict[str, Rule]:
        """What each setting takes."""
        return rules_of(cls.Settings)

    @classmethod
    def free(cls) -> set[str]:
        """Settings that change speed or memory, and nothing of what is learned."""
        return {item.name for item in fields(cls.Settings) if item.metadata.get("free")}

    def as_dict(self) -> dict[str, Any]:
        """The settings in plain values, as they are saved with a run."""
        return asdict(self.settings)

    # ---- before the run ------------------------------------------------------------------------
    def check(self, args: Any) -> None:
        """Refuse settings that cannot work together, before any data or weights are read.

        Args:
            args: settings of the run.

        Raises:
            UserError: naming the setting.
        """

    def check_machine(self, args: Any) -> None:
        """Look for what must be on this machine, such as another checkpoint, before the weights.

        Raises:
            UserError: it is not there.
        """

    def uneven_passes(self) -> str:
        """Why processes may run unequal passes through the model; "" where they do not.

        Those within ``run.in_step()`` may be unequal. Else weights that are sharded over the
        processes cannot be had (``shard_frozen``).
        """
        return f"method {self.name}, which does not say that its processes run equal passes"

    def answers_needed(self, args: Any) -> int:
        """Different rows with an answer that it cannot do without."""
        return 0

    def check_answers(self, answered: int, named: bool, args: Any) -> None:
        """Refuse data with too few answers: ``answered`` is below ``answers_needed``.

        Args:
            answered: different rows that have an answer.
            named: whether all of them have an id.
            args: settings of the run.

        Raises:
            UserError: it could never work on them.
        """

    @property
    def refuses_missing_captions(self) -> bool:
        """Whether an answer without a caption is no row for it."""
        return False

    @property
    def needs_captions(self) -> bool:
        """Whether it has nothing to do on data without a caption."""
        return False

    def setup(self, run: Run) -> None:
        """Make players, scorers and generators. The base model's weights are there, LoRA too.

        Raises:
            UserError: the model lacks what the method needs.
        """
        self.run = run

    def saw_texts(self, with_answer: int, without_caption: int) -> None:
        """Rows that were looked at in advance: with an answer; of them, without a caption."""

    def begin(self, max_steps: int) -> None:
        """Say what the settings mean for a run of this length. First process only."""

    # ---- one step ------------------------------------------------------------------------------
    def before_step(self, batch: Batch, step: int) -> None:
        """The method's players move.

        Args:
            batch: this micro-batch on its device, as the frozen parts read it.
            step: optimizer steps done.
        """

    def plays_alone(self, step: int) -> bool:
        """Whether the model stays as it is in this step: only players move. On all ranks alike."""
        return False

    def step_rows(self) -> list[Rows]:
        """Rows that join this micro-batch, each group with its ``weight``. May be empty."""
        return []

    def rows_at_most(self, args: Any) -> int:
        """Answers that ``step_rows`` can add to a micro-batch."""
        return 0

    def after_loss(self, clean: ReadAnswers, own: ReadAnswers, step: int) -> None:
        """What U found, in the pass that it learns from.

        Args:
            clean: of the records' answers; empty where there were none.
            own: of the answers that ``step_rows`` gave, in their order.
            step: as in ``before_step``.
        """

    def end_step(self) -> None:
        """An optimizer step of U is over."""

    def watch(self, step: int, max_steps: int) -> None:
        """Warn, once, of a part of the method that does nothing. First process only."""

    def finish(self) -> None:
        """The run is over: all steps are done, and its trackers are still open."""

    def summary(self) -> str:
        """A sentence for the closing lines; empty where there is nothing to say.

        Every process must ask.
        """
        return ""

    def health(self, log: Sequence[Mapping[str, Any]]) -> list[Finding]:
        """What is wrong with the method in this run; nothing where it is well.

        Args:
            log: what was logged so far, in order; ``findings.Log`` reads it.
        """
        return []

    # ---- for the report's map of pictures ------------------------------------------------------
    @property
    def draws_pictures(self) -> bool:
        """Whether it has pictures of its own: ``draw_again`` or ``kept_pictures`` give some."""
        return False

    def draw_again(self, batch: Batch) -> dict[str, Tensor]:
        """What it would draw of these pictures now, (n, 3, S, S) by kind. Moves no state."""
        return {}

    def kept_pictures(self, most: int) -> dict[str, Tensor]:
        """Pictures that it keeps, at most so many of each kind, (n, 3, S, S). Moves no state."""
        return {}

    # ---- what lives from step to step ----------------------------------------------------------
    def create_scheduler(self, num_training_steps: int) -> None:
        """(Re)start learning-rate schedules, counted in optimizer steps of U."""

    def weights(self) -> list[tuple[str, Tensor]]:
        """Weights that it trains itself, which must stay finite."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Everything of this process that moves, in tensors and plain values; {}: nothing does."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave, exactly."""

    def regrouped(
        self, states: Sequence[Mapping[str, Any]], rank: int, world_size: int
    ) -> Mapping[str, Any]:
        """This process's state from those of another number of processes.

        Args:
            states: what ``state_dict`` gave on each of them, in order.
            rank: of this process.
            world_size: how many there are now.

        Raises:
            UserError: the method does not say how; by default it does not.
        """
        raise UserError(
            f"method {self.name} cannot go on with {world_size} processes from a checkpoint of "
            f"{len(states)}; resume with {len(states)}"
        )

    def files(self, rank: int, world_size: int) -> list[str]:
        """What a checkpoint of this process must hold of the method."""
        return [files.state_file(self.name, rank, world_size)] if self.state_dict() else []

    def save_weights(self, folder: Path) -> None:
        """Write what it trained, beside the adapter. First process only."""

    def load_weights(self, folder: Path) -> None:
        """Read what ``save_weights`` wrote.

        Raises:
            UserError: it is missing, damaged, or of another size.
        """

    def check_weights(self, folder: Path) -> None:
        """Say whether ``load_weights`` would work, without loading. Raises as it does."""

    def save(self, folder: Path, rank: int, world_size: int) -> None:
        """Write this process's state."""
        state = self.state_dict()
        if state:
            files.save_state(folder / files.state_file(self.name, rank, world_size), state)

    def load(self, folder: Path, rank: int, world_size: int) -> None:
        """Restore the weights and this process's state.

        Raises:
            UserError: a file is missing or damaged.
        """
        self.load_weights(folder)
        if self.state_dict():
            before = files.saved_by(folder, self.name)
            if before in (0, world_size):
                path = folder / files.state_file(self.name, rank, world_size)
                self.load_state_dict(files.load_state(path))
                return
            paths = [folder / files.state_file(self.name, old, before) for old in range(before)]
            states = [files.load_state(path) for path in paths]
            self.load_state_dict(self.regrouped(states, rank, world_size))
