"""What a record must be to train on, and which records of a dataset are not.

A record that cannot be used must not end a run at its step. All rows whose texts can be had without
their pictures are looked at before the first step; of other datasets a few rows are, and the rest
as it comes. What is found is left out and counted; a run with many such rows is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image

from unigame.backbones.base import Backbone, Reading
from unigame.backbones.common.layout import TextRules
from unigame.data.images import DECODE_ERRORS, CorruptImage
from unigame.data.kinds import holds_pictures_alone
from unigame.data.peek import peek_texts
from unigame.data.records import num_pictures, pictures_of
from unigame.data.skips import SkipReport
from unigame.errors import UserError
from unigame.methods.base import Method
from unigame.system.say import warn
from unigame.training.config import UniGameConfig
from unigame.training.identity import own_randomness
from unigame.turns import without_marks, without_places

TEXTS = ("question", "answer", "caption")
MOST = 0.1  # a larger share of unusable rows is a mistake in the data, not a few bad rows
TOO_MANY = "more pictures than the model takes"
NEEDS_PICTURE = "no picture, which the model needs"
EXAMPLES = 3  # of unknown words, in the warning
READ = 1_000  # rows, spread over a dataset, that are tokenized to find unknown words
PROBES = 8  # rows of a dataset that are looked at in advance where each costs its picture


class Problem(NamedTuple):
    """Why a record cannot be used.

    Attributes:
        reason: without values, so that records with the same fault are counted together.
        advice: the value that came in, and what to do.
    """

    reason: str
    advice: str

    def of(self, id: str) -> str:
        """The whole sentence about one record."""
        article = "an " if self.reason[0] in "aeio" else "a "
        if self.reason.startswith(("no ", "neither", "too", "more", "'")):
            article = ""
        return f"record {id!r} has {article}{self.reason}; {self.advice}"


@dataclass(frozen=True)
class RecordCheck:
    """Whether records can be trained on.

    Attributes:
        rules: of the model's texts; None checks types alone.
        max_length: longest row in tokens; None is what the model can hold.
        needs_caption: whether an answer without a caption counts as unusable.
        needs_text: whether a picture without any text does.
        pictures: how many an answer may be learned from, where that is not free.
    """

    rules: TextRules | None = None
    max_length: int | None = None
    needs_caption: bool = False
    needs_text: bool = True
    pictures: range | None = None

    def __call__(self, record: Any, *, decode: bool = True) -> Problem | None:
        """What is wrong with a whole record; with ``decode``, an opened picture is read too."""
        if isinstance(record, Mapping):
            for picture in pictures_of(record):
                problem = _picture_problem(picture, decode)
                if problem is not None:
                    return problem
        return self.texts(record)

    def texts(self, record: Any) -> Problem | None:
        """What is wrong with the texts of a record."""
        if not isinstance(record, Mapping):
            return Problem(
                f"type {type(record).__name__}, which is no record",
                "give dictionaries with the keys image, question, answer, caption and id",
            )
        for field in TEXTS:
            value = record.get(field)
            if value is not None and not isinstance(value, str):
                return Problem(
                    f"{field} of type {type(value).__name__}",
                    f"{field}={value!r:.60} is no text; turn it into one, or leave it out",
                )
            if value and (half := _lone_surrogate(value)):
                return Problem(
                    f"{field} with half a letter",
                    f"it holds the lone surrogate \\u{ord(half):04x}, which no tokenizer takes; "
                    "decode the text as UTF-8 again",
                )
        texts = {field: (record.get(field) or "").strip() for field in TEXTS}
        number = num_pictures(record)
        if number and not any(texts.values()) and not self.needs_text:
            return None
        return (
            _half_problem(texts, self.needs_caption and number == 1)
            or self._number_problem(texts, number)
            or self._layout_problem(texts, number)
        )

    def _number_problem(self, texts: Mapping[str, str], number: int) -> Problem | None:
        if number == 1:
            return None
        if not texts["answer"]:
            return Problem(
                "caption of several pictures" if number else "caption of no picture",
                "a picture is drawn of each caption; give one picture",
            )
        if self.pictures is None or number in self.pictures:
            return None
        most = self.pictures.stop - 1
        least = "one" if self.pictures.start else "none"
        return Problem(
            f"{TOO_MANY} ({most})" if number > most else NEEDS_PICTURE,
            f"it shows {number}, and this model learns from {least} to {most} in a question",
        )

    def _layout_problem(self, texts: dict[str, str], number: int) -> Problem | None:
        if self.rules is None:
            return None
        found = self.rules.problem(texts, max_length=self.max_length, num_images=number)
        return None if found is None else Problem(*found)


def _lone_surrogate(text: str) -> str | None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return text[error.start]
    return None


def _half_problem(texts: Mapping[str, str], needs_caption: bool) -> Problem | None:
    question, answer, caption = (texts[field] for field in TEXTS)
    if bool(question) != bool(answer):
        return Problem(
            "question without an answer" if question else "answer without a question",
            f"question={question!r:.60}, answer={answer!r:.60}; give both, or neither for a "
            "caption-only record",
        )
    if not answer and not caption:
        return Problem(
            "neither an answer nor a caption",
            "nothing can be learnt from it without method reca, which draws pictures again",
        )
    if needs_caption and not caption:
        return Problem(
            "no caption, with missing_captions=error",
            "give one, or let the model make it: missing_captions=model",
        )
    return None


def _picture_problem(image: Any, decode: bool) -> Problem | None:
    if image is None:
        return Problem("no image", "every record needs one")
    if not isinstance(image, Image.Image):
        return Problem(
            f"image of type {type(image).__name__}",
            f"image={image!r:.60} is no PIL picture; open it with PIL.Image.open",
        )
    unknown = image.mode == "F" or (image.mode == "I" and image.format == "TIFF")
    if unknown or not image.width * image.height:
        return Problem(
            "no picture that can be shown",
            f"it is {image.width} x {image.height} pixels of mode {image.mode}; give 8-bit RGB",
        )
    try:
        if decode:
            image.load()  # a file that was only opened is read now
    except DECODE_ERRORS as error:
        return Problem("corrupt image", str(error) or type(error).__name__)
    return None


def record_check(
    backbone: Backbone, args: UniGameConfig, needs_caption: bool = False, needs_text: bool = True
) -> RecordCheck:
    """The check for one model and its settings.

    Raises:
        UserError: ``max_length`` is more than the model's positions, where a token takes one.
    """
    family = backbone.facts.family
    return _check_by(backbone.reading, family, args, needs_caption, needs_text)


def check_before_weights(
    reading: Reading, family: str, args: UniGameConfig, methods: Sequence[Method], dataset: Any
) -> RecordCheck:
    """The check that the trainer will make of a model, whose weights are not there yet.

    Args:
        reading: of the model, see ``load_reading``.
        family: its name, for messages.
        args: of the run.
        methods: of the run.
        dataset: to train on.

    Raises:
        UserError: as ``record_check``.
    """
    needs_caption = any(method.refuses_missing_captions for method in methods)
    pictures = any(own.learns_pictures for own in methods) or holds_pictures_alone(dataset)
    return _check_by(reading, family, args, needs_caption, needs_text=not pictures)


def _check_by(
    reading: Reading, family: str, args: UniGameConfig, needs_caption: bool, needs_text: bool
) -> RecordCheck:
    _, rules, pictures = reading
    most = rules.max_tokens if rules else None
    if args.max_length and most and args.max_length > most:
        raise UserError(
            f"max_length={args.max_length} is more than the model's {most} positions; lower "
            "it, or leave it out"
        )
    if args.max_length and rules is None:
        raise UserError(
            f"max_length={args.max_length}: backbone family {family!r} does not count tokens; "
            "leave it out"
        )
    return RecordCheck(rules, args.max_length, needs_caption, needs_text, pictures)


class DataCheck:
    """Looks at datasets before the first step, and counts what is left out during training.

    ``unigame train`` looks before the weights are loaded and hands the object to the trainer, so
    each dataset is looked at once.

    Args:
        check: of a record.
        speaks: whether this process says what it found; the others stay silent.

    Attributes:
        report: what was left out, by id of the row.
        without_caption: of the rows seen in advance, those with an answer and no caption.
        with_answer: of the rows seen in advance, those with an answer; here and above only those of
            one picture.
    """

    def __init__(self, check: RecordCheck, speaks: bool = True) -> None:
        self.check = check
        self.speaks = speaks
        self.report = SkipReport()
        self.without_caption = self.with_answer = 0
        self._said: set[str] = set()
        self._seen: list[Any] = []

    def look_at(self, dataset: Any, name: str) -> None:
        """Check all rows of a dataset, or some where that is costly, and say what is left out.

        One that was looked at before is passed by.

        Raises:
            UserError: more than a tenth of the rows cannot be used, or none can.
        """
        if any(dataset is seen for seen in self._seen):
            return
        self._seen.append(dataset)
        if isinstance(dataset, Mapping):  # the Trainer takes several evaluation sets by name
            for key, part in dataset.items():
                self.look_at(part, f"{name}[{key!r}]")
            return
        if dataset is None:
            return
        rows = peek_texts(dataset)
        if rows is not None:
            whole = isinstance(dataset, list | tuple)
            size = len(dataset) if isinstance(dataset, Sized) else 0
            self._look_at_all(rows, name, whole, size)
        elif isinstance(dataset, Sized):
            self._probe(dataset, name)

    def found(self, left_out: Sequence[str]) -> None:
        """Count rows that the collator left out; each new kind of fault is said once."""
        for line in left_out:
            id, _, reason = line.partition("\t")
            self.report.add(id, reason)
            if self.speaks and reason not in self._said:
                self._said.add(reason)
                warn(f"record {id!r} is left out: {reason}; more like it are only counted")

    def _look_at_all(self, rows: Iterable[Any], name: str, whole: bool, size: int) -> None:
        report, first = SkipReport(), None
        unknown = _UnknownWords(self.check.rules if self.speaks else None, size)
        for position, row in enumerate(rows):
            whole_row = whole or (isinstance(row, Mapping) and "image" in row)
            problem = self.check(row, decode=False) if whole_row else self.check.texts(row)
            if problem is None:
                report.kept += 1
                self._count_captions(row)
                unknown.see(position, row)
                continue
            id = record_id(row) or str(position)
            first = first or problem.of(id)
            report.add(id if id not in report.skipped else f"{id}#{position}", problem.reason)
        if self.speaks and unknown.rows:
            warn(f"{name}: {unknown.said()}")
        if first is None:
            return
        share = len(report.skipped) / (report.kept + len(report.skipped))
        wanted = all(self._is_wanted(reason) for reason in report.skipped.values())
        if not report.kept or (share > MOST and not wanted):
            raise UserError(f"{name}: {report.summary()}. The first is {first}")
        self._said.update(report.skipped.values())
        if self.speaks:
            warn(f"{name}: {report.summary()}. The first is {first}")

    def _is_wanted(self, reason: str) -> bool:
        """Whether rows are left out by what was chosen, and not by a mistake in the data."""
        by_length = self.check.max_length is not None and "max_length" in reason
        return by_length or reason.startswith((TOO_MANY, NEEDS_PICTURE))

    def _count_captions(self, row: Mapping[str, Any]) -> None:
        if row.get("answer") and num_pictures(row) == 1:
            self.with_answer += 1
            self.without_caption += not row.get("caption")

    def _probe(self, dataset: Any, name: str) -> None:
        """A mistake that every row has is found here; single bad rows are found as they come."""
        size = len(dataset)
        places = sorted({size * i // PROBES for i in range(PROBES)}) if size else []
        problems, good = [], 0
        with own_randomness():
            for place in places:
                try:
                    record = dataset[place]
                except CorruptImage:
                    continue
                problem = self.check(record)
                if problem is None:
                    good += 1
                    self._count_captions(record)
                else:
                    problems.append(problem.of(record_id(record) or str(place)))
        if len(problems) > good:
            raise UserError(
                f"{name}: {len(problems)} of the {len(problems) + good} rows looked at cannot be "
                f"used. The first is {problems[0]}"
            )


class _UnknownWords:
    """Counts rows with a word that the tokenizer has no token for: what is trained is its mark.

    Most tokenizers spell any text in bytes; those of small models know a list of words.

    Args:
        rules: of the model's texts; None: not known, and nothing is counted.
        size: rows of the dataset, of which at most ``READ`` are read.
    """

    def __init__(self, rules: TextRules | None, size: int) -> None:
        self.layout = getattr(rules, "layout", None)
        self.token = getattr(getattr(self.layout, "tokenizer", None), "unk_token_id", None)
        self.every = max(1, size // READ)
        self.read = self.rows = 0
        self.examples: dict[str, None] = {}  # different ones, in order

    def see(self, position: int, row: Mapping[str, Any]) -> None:
        """One usable row."""
        # A mixture has more rows than its epoch, and some datasets do not know how many.
        if self.token is None or position % self.every or self.read >= 2 * READ:
            return
        self.read += 1
        # In the place of turns and pictures a model has marks of its own.
        texts = [without_marks(without_places(row.get(field) or "")) for field in TEXTS]
        found = [text for text in texts if self._is_unknown(text)]
        if found:
            self.rows += 1
            if len(self.examples) < EXAMPLES:
                words = [word for text in found for word in text.split() if self._is_unknown(word)]
                self.examples.update(dict.fromkeys(words or found))

    def _is_unknown(self, text: str) -> bool:
        assert self.layout is not None
        return self.token in self.layout.tokenizer(text, add_special_tokens=False)["input_ids"]

    def said(self) -> str:
        """One line for people."""
        assert self.layout is not None
        mark = self.layout.tokenizer.unk_token
        shown = ", ".join(repr(word[:40]) for word in list(self.examples)[:EXAMPLES])
        return (
            f"{self.rows} of {self.read} rows looked at ({self.rows / self.read:.0%}) hold words "
            f"that the model's tokenizer does not know, such as {shown}: they are "
            f"read and learned as {mark!r}; write them in its words, or take another model"
        )


def record_id(record: Any) -> str:
    """The id of a record as text; empty where it has none (a table's empty cell is NaN)."""
    id = record.get("id") if isinstance(record, Mapping) else None
    return "" if id is None or id != id else str(id)
