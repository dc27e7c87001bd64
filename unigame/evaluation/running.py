"""One benchmark of one evaluation: what is still to ask, asking it, scoring what there is."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from unigame.backbones.base import Backbone
from unigame.data.pictures import content_key
from unigame.errors import UserError
from unigame.evaluation import record as records
from unigame.evaluation.ask import Asker, Drawing
from unigame.evaluation.base import Benchmark, Item, Loaded, Prediction, Scored
from unigame.evaluation.batching import (
    MOST_ANSWERS,
    MOST_DRAWINGS,
    BatchSize,
    automatic_size,
)
from unigame.evaluation.ranks import PREDICTIONS, Ranks, RankStore, parts

PICTURES = "pictures"
_ROW = {"text", "pictures", "error", "asked"}


class Progress(Protocol):
    """What is told while an evaluation runs; ``unigame evaluate`` draws bars from it."""

    def begin(self, name: str, total: int, done: int) -> None:
        """A benchmark begins; ``done`` of its items have predictions from an earlier run."""

    def advance(self, name: str, count: int) -> None:
        """``count`` more items have predictions."""

    def scoring(self, name: str) -> None:
        """All items have predictions; scoring begins."""

    def end(self, name: str, entry: Mapping[str, Any] | None) -> None:
        """Scoring ended with this part of the record; None: it failed."""


class Silent:
    """Progress that nobody looks at."""

    def begin(self, name: str, total: int, done: int) -> None:
        """Nothing."""

    def advance(self, name: str, count: int) -> None:
        """Nothing."""

    def scoring(self, name: str) -> None:
        """Nothing."""

    def end(self, name: str, entry: Mapping[str, Any] | None) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Job:
    """One benchmark with its items, ready to be asked."""

    benchmark: Benchmark
    loaded: Loaded


class Run:
    """One job in its own folder.

    Args:
        job: the benchmark and its items.
        folder: its part of the output.
        model: identity of the model, as ``record.model_entry`` gives it.
        drawing: how pictures are drawn.
        max_images: pictures that a question may show.
        ranks: which of how many processes this is; None: the only one.
    """

    def __init__(
        self,
        job: Job,
        folder: Path,
        model: Mapping[str, Any],
        drawing: Drawing,
        max_images: int,
        ranks: Ranks | None = None,
    ) -> None:
        self.benchmark, self.loaded = job.benchmark, job.loaded
        self.folder, self.model = folder, model
        self.drawing, self.max_images = drawing, max_images
        self.name = job.benchmark.name
        self.ranks = ranks or Ranks()
        self.store = RankStore(folder, self.ranks)
        self.changed: dict[str, str] = {}
        """Items whose picture is another one than that which their prediction was about, and the
        digest of what that prediction was about."""

    # ---- what was asked, and what is still to ask ----------------------------------------------
    def check(self) -> None:
        """Refuse to go on with predictions of another model, other settings or other data.

        Raises:
            UserError: it names what differs.
        """
        hint = "give another --output, or delete that folder to start this benchmark again"
        records.check_run(self.folder, self.settings(), hint)
        for item in self.loaded.items:
            if item.id in self.store:
                self._check_row(item, self.store[item.id], hint)

    def _check_row(self, item: Item, row: Mapping[str, Any], hint: str) -> None:
        """A stored prediction is of this item; of one whose picture has changed since, ask again.

        Reading the pictures costs seconds for thousands of them, and an old answer about a picture
        that was repaired would be wrong for ever.
        """
        if not _ROW <= row.keys():
            raise UserError(
                f"{self.folder / PREDICTIONS} has no whole prediction for item {item.id!r}; {hint}"
            )
        if row.get("request", row["asked"]) != request(item):
            raise UserError(
                f"{self.folder} holds a prediction for another item {item.id!r}: the data have "
                f"changed since; {hint}"
            )
        if row["error"] or not item.pictures:
            return
        if "request" not in row:
            raise UserError(
                f"{self.folder} holds predictions of an earlier version, which did not note what "
                f"the pictures showed (item {item.id!r}), so they may have changed since; {hint}"
            )
        if row["asked"] != asked(item):
            self.changed[item.id] = row["asked"]

    def settings(self) -> dict[str, Any]:
        """All that changes what the model gives; scoring can be repeated, so it is not part."""
        info = self.loaded.dataset
        return {
            "model": records.weights_of(self.model),
            # Not the revision: it also moves when a page of the data set is edited.
            "dataset": {"id": info.id, "config": info.config, "split": info.split},
            "prompt": self.benchmark.prompt,
            **self.generation(),
            **({} if self.benchmark.task == "answer" else {"samples": self._samples()}),
        }

    def _samples(self) -> int:
        """Pictures that are drawn for a prompt."""
        return max((item.samples for item in self.loaded.items), default=1)

    def generation(self) -> dict[str, Any]:
        """How text and pictures are generated, for the record."""
        settings: dict[str, Any] = {}
        if self.benchmark.task != "draw":
            settings |= {
                "decoding": "greedy",
                "max_new_tokens": self.benchmark.max_new_tokens,
                "stop": list(self.benchmark.stop),
                "max_images": self.max_images,
            }
        if self.benchmark.task != "answer":
            settings |= asdict(self.drawing)
        return settings

    def pending(self) -> list[Item]:
        """Items without a prediction, with a lost drawing, or with a picture to look at again.

        One that was unreadable may be there now, and looking costs no question to the model; one
        that has changed since needs a new answer.
        """
        return [item for item in self.loaded.items if not self._done(item)]

    def _done(self, item: Item) -> bool:
        row = self.store.get(item.id)
        if row is None or row["error"] or self.changed.get(item.id) == row["asked"]:
            return False
        return all((self.folder / name).is_file() for name in row["pictures"])

    # ---- the work ------------------------------------------------------------------------------
    def go(
        self, backbone: Backbone, batch_size: int | None, progress: Progress
    ) -> tuple[dict[str, Any], Scored]:
        """Ask what is pending, score everything, and return this benchmark's part of the record.

        Raises:
            UserError: the scorer fails, nothing could be scored, or memory does not suffice.
        """
        start = time.monotonic()
        self.ask(backbone, batch_size, progress)
        progress.scoring(self.name)
        predictions = self.predictions()
        records.require_predictions(self.loaded, predictions)
        scored = self.benchmark.score(self.loaded.items, predictions, self.folder)
        if self.changed:
            scored.warnings.append(
                f"the pictures of {len(self.changed)} items had changed since they were asked "
                "about, and those items were asked again"
            )
        entry = records.benchmark_entry(
            self.benchmark,
            self.loaded,
            predictions,
            scored,
            generation=self.generation(),
            details=self._dropped(),
            seconds=time.monotonic() - start,
        )
        if shown := pictures_digest(self.loaded.items, self._asked):
            entry["pictures"] = shown
        return entry, scored

    def _asked(self, item: Item) -> str:
        """What was noted when the item was asked, which spares reading its pictures again."""
        return str(self.store[item.id]["asked"]) if item.id in self.store else asked(item)

    def ask(self, backbone: Backbone, batch_size: int | None, progress: Progress) -> None:
        """Ask what is pending; every batch of predictions is on disk before the next is asked.

        Raises:
            UserError: memory does not suffice for one item.
        """
        self.store.refresh()
        pending = self.pending()
        total = len(self.loaded.items)
        progress.begin(self.name, total, total - len(pending))
        if pending:
            most = max(min(len(item.pictures), self.max_images) for item in pending)
            usual = automatic_size(backbone, self.benchmark.task, max(1, most))
            asker = Asker(backbone, BatchSize(batch_size or usual), self.max_images)
            waiting = {item.id for item in pending}
            for part in self._parts(pending, batch_size):
                self._ask_part(asker, part, progress, waiting)
        if self.ranks.first:
            self.store.merge()

    def _ask_part(
        self, asker: Asker, part: Sequence[Item], progress: Progress, waiting: set[str]
    ) -> None:
        items = {item.id: item for item in part}
        for predictions in self._predict(asker, part):
            rows = [self._row(prediction, items[prediction.id]) for prediction in predictions]
            # A picture that is still unreadable is no news.
            self.store.append(*(row for row in rows if row != self.store.get(row["id"])))
            new = waiting & {*(row["id"] for row in rows), *self.store.refresh()}
            waiting -= new
            progress.advance(self.name, len(new))

    def _parts(self, pending: list[Item], batch_size: int | None) -> Iterator[list[Item]]:
        """What this rank asks: everything, if it is alone."""
        if self.ranks.count > 1:
            usual = MOST_ANSWERS if self.benchmark.task == "answer" else MOST_DRAWINGS
            samples = max(item.samples for item in pending)
            yield from parts(
                self.loaded.items,
                self.ranks,
                # Not what fits into this rank's memory: all ranks must deal out alike.
                max(1, (batch_size or usual) // samples),
                settled=self._settled,
                refresh=self.store.refresh,
            )
            # Unreadable pictures are looked at again by one rank.
            pending = self.pending() if self.ranks.first else []
        if pending:
            yield pending

    def _settled(self, item: Item) -> bool:
        return bool(self.store.get(item.id, {}).get("error")) or self._done(item)

    def _predict(self, asker: Asker, pending: Sequence[Item]) -> Iterator[list[Prediction]]:
        tokens, stop = self.benchmark.max_new_tokens, self.benchmark.stop
        if self.benchmark.task == "answer":
            return asker.answers(pending, max_new_tokens=tokens, stop=stop)
        pictures = self.folder / PICTURES
        if self.benchmark.task == "draw":
            return asker.drawings(pending, self.drawing, pictures, salt=self.name)
        return asker.redrawings(
            pending, self.drawing, pictures, max_new_tokens=tokens, stop=stop, salt=self.name
        )

    def _row(self, prediction: Prediction, item: Item) -> dict[str, Any]:
        return {
            "id": prediction.id,
            "text": prediction.text,
            "pictures": [path.relative_to(self.folder).as_posix() for path in prediction.pictures],
            "error": prediction.error,
            "request": request(item),
            "asked": asked(item),
        }

    def predictions(self) -> dict[str, Prediction]:
        """What there is on disk for the items, by id."""
        found = ((item.id, self.store.get(item.id)) for item in self.loaded.items)
        return {
            id: Prediction(
                id,
                text=row["text"],
                pictures=tuple(self.folder / name for name in row["pictures"]),
                error=row["error"],
            )
            for id, row in found
            if row is not None
        }

    def _dropped(self) -> dict[str, Any]:
        if self.benchmark.task == "draw":
            return {}
        extra = [len(item.pictures) - self.max_images for item in self.loaded.items]
        dropped = sum(max(0, count) for count in extra)
        return {"images_dropped": dropped} if dropped else {}


def asked(item: Item) -> str:
    """A short digest of what an item asks and shows, kept with its prediction."""
    shown = [content_key(each) for each in item.pictures]
    return _short_digest("\0".join([request(item), *shown])) if shown else request(item)


def request(item: Item) -> str:
    """A short digest of what an item asks, whatever its pictures show."""
    # A picture that is its own question (UnifiedBench) has its digest among the references.
    picture = item.reference.get("sha256", "")
    return _short_digest(f"{item.prompt}\0{len(item.pictures)}\0{item.samples}\0{picture}")


def pictures_digest(items: Iterable[Item], asked_of: Callable[[Item], str] = asked) -> str:
    """SHA-256 over what all items show, so that two records can be told apart; "" for no picture.

    Args:
        items: in the dataset's order.
        asked_of: the digest of an item, where it is known.
    """
    lines = [f"{item.id} {asked_of(item)}\n" for item in items if item.pictures]
    text = "".join(lines).encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest() if lines else ""


def _short_digest(content: str) -> str:
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:12]
