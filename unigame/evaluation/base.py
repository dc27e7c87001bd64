"""What a benchmark is: items to ask, the model's replies, and metrics over them.

One folder per benchmark (``tasks/``) holds its loader, prompts, parsers and metrics, and nothing
else: asking the model, writing predictions and resuming belong to ``run.py``, intervals to
``unigame.reports.metrics``. Real and synthetic data go through the same code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from PIL import Image

from unigame.data import SkipReport
from unigame.errors import UserError
from unigame.reports.metrics import Metric

Group = Literal["understanding", "generation", "consistency", "ood", "adversarial"]
Task = Literal["answer", "draw", "redraw"]
"""answer: pictures, text -> text; draw: text -> pictures; redraw: picture -> caption -> picture."""

Picture = Callable[[], Image.Image]
"""Decodes one picture when it is needed: upright RGB, or raises ``CorruptImage``."""


@dataclass(frozen=True)
class Item:
    """One request to the model.

    Attributes:
        id: unique within the benchmark; predictions and scores are keyed by it.
        prompt: exactly what the model is asked, or told to draw.
        pictures: what it is shown, in order; empty for ``draw``.
        reference: what scoring needs (answers, options, tags), as JSON values.
        cluster: items with the same cluster share their luck (a picture, a group of questions);
            intervals resample clusters. Empty: the item stands alone.
        samples: pictures to draw for this prompt.
    """

    id: str
    prompt: str
    pictures: tuple[Picture, ...] = ()
    reference: Mapping[str, Any] = field(default_factory=dict)
    cluster: str = ""
    samples: int = 1


@dataclass(frozen=True)
class Prediction:
    """What the model gave for one item.

    Attributes:
        id: of the item.
        text: its answer, or its caption of the picture (``redraw``).
        pictures: files of the pictures that it drew, in order.
        error: why there is nothing to score, such as ``"corrupt image"``; empty otherwise.
    """

    id: str
    text: str = ""
    pictures: tuple[Path, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class DatasetInfo:
    """Which data were read, so that two records can be told apart.

    Attributes:
        id: Hub id, or the name of the local folder.
        split: as the dataset calls it.
        config: the Hub configuration, where there is one.
        revision: commit of the Hub repository; for local data, empty.
        fingerprint: SHA-256 over the rows' content that was used (ids, prompts, references).
    """

    id: str
    split: str = ""
    config: str = ""
    revision: str = ""
    fingerprint: str = ""

    def as_dict(self) -> dict[str, str]:
        """For the record."""
        return asdict(self)


@dataclass(frozen=True)
class Loaded:
    """A benchmark's items, in the dataset's order, and the rows that had to be left out."""

    items: list[Item]
    dataset: DatasetInfo
    skips: SkipReport


@dataclass
class Scored:
    """What scoring found.

    Attributes:
        metrics: at least one; the first is the headline.
        unparsed: ids of items whose reply no rule could read (they count as wrong, or as the
            benchmark's reference counts them).
        unscored: item id -> why no score could be had (a judge that never answered, a drawing that
            is missing). These enter no average.
        scorer: what scored: judge, detector, encoders, and their revisions; empty for plain rules.
        details: further figures for the record, as JSON values.
        warnings: one line each, for people.
    """

    metrics: list[Metric]
    unparsed: list[str] = field(default_factory=list)
    unscored: dict[str, str] = field(default_factory=dict)
    scorer: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DataSource:
    """Where a benchmark's rows come from.

    Attributes:
        root: local folder of this benchmark; None: the Hub.
        hub_id: overrides the benchmark's own Hub id.
        config: overrides its configuration.
        split: overrides its split.
        revision: commit, tag or branch on the Hub.
    """

    root: Path | None = None
    hub_id: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None


class Benchmark(ABC):
    """Loader, prompts, parsers and metrics of one benchmark.

    Args:
        prompt: name of the prompt variant; None: the first of ``prompt_variants``.
        parser: name of the parser and metric variant; None: the first of ``parser_variants``.

    Raises:
        UserError: an unknown variant; the message lists those that exist.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    group: ClassVar[Group]
    task: ClassVar[Task]
    prompt_variants: ClassVar[tuple[str, ...]]
    parser_variants: ClassVar[tuple[str, ...]]
    max_new_tokens: ClassVar[int] = 16
    """Longest answer, in tokens, as the reference asks for."""
    stop: ClassVar[tuple[str, ...]] = ()
    """Strings at which a reply is cut off."""

    def __init__(self, *, prompt: str | None = None, parser: str | None = None) -> None:
        self.prompt = self._variant("prompt", prompt, self.prompt_variants)
        self.parser = self._variant("parser", parser, self.parser_variants)

    def _variant(self, kind: str, chosen: str | None, known: Sequence[str]) -> str:
        if chosen is None:
            return known[0]
        if chosen not in known:
            raise UserError(
                f"{self.name} has no {kind} variant {chosen!r}; choose from {', '.join(known)}"
            )
        return chosen

    def variant(self) -> dict[str, Any]:
        """Every choice that changes prompts or scores: it goes into the record."""
        return {"prompt": self.prompt, "parser": self.parser}

    def prepare(self) -> None:  # noqa: B027  most benchmarks have nothing to prepare
        """Called before anything else: see that what scoring needs (a judge, a detector) is there.

        Asking the model may take hours; a scorer that is missing should be found before that.

        Raises:
            UserError: it is not.
        """

    @abstractmethod
    def load(self, source: DataSource, limit: int | None = None) -> Loaded:
        """Read the items; with ``limit``, about that many from the start (whole groups only).

        Raises:
            UserError: no data there, or not in a layout that this benchmark has.
        """

    def right(self, item: Item, reply: str) -> float | None:
        """How right one reply is, in [0, 1], by the benchmark's own parser; None: it has none.

        Robustness judges attacked replies by it, and by VQA's match where it is None.
        """
        return None

    @abstractmethod
    def score(
        self, items: Sequence[Item], predictions: Mapping[str, Prediction], folder: Path
    ) -> Scored:
        """Metrics of the predictions.

        Args:
            items: those that were asked, in order.
            predictions: by item id; items without one, or with ``error`` set, are left out.
            folder: where a scorer keeps what is dear to compute (judgements, detections), so that
                a second run asks only for what is missing.
        """
