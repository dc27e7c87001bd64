"""The schema of conversations about pictures: LLaVA, TRL, ms-swift, LLaMA-Factory, OpenAI.

Each answer becomes a record of its own, with the question before it, the earlier turns if wanted,
and the pictures that were shown by then: none, one or several.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from unigame.data.dataset import NO_TEXT, RecordDataset, Row
from unigame.data.images import IMAGE_COLUMNS
from unigame.data.links import Links, NotFetched
from unigame.data.pictures import TableCell, looks_like_picture, unwrapped
from unigame.data.records import SkippedRow
from unigame.data.rows import open_file, open_rows, root_of
from unigame.errors import UserError
from unigame.system.json_text import parse_json
from unigame.turns import PICTURE, join_turns, without_places

MARKS = re.compile(r"\s*<image(?:_placeholder)?>\s*")
NAMED = re.compile(r"<img>\s*([^<>\s][^<>]*?)\s*</img>")
"""A mark that names its picture's file (Qwen-VL)."""

OTHER_MARKS = re.compile(
    r"<(?:ImageHere|IMAGE|Image|image[ _]?\d+)>|<\|image_\d+\|>|<img>\s*</img>"
)
"""Marks of other families: nothing here puts a picture in their place."""

TAGS = {
    "user": ("user", "human", "User", "USER"),
    "assistant": ("assistant", "gpt", "Assistant", "ASSISTANT", "model"),
    "system": ("system",),
}
"""Who speaks, by the names that people give them; a data set's own by the option ``tags``."""

MESSAGES = {
    "messages": "conversations in 'messages' (TRL, ms-swift, OpenAI)",
    "conversations": "conversations in 'conversations' (LLaVA / ShareGPT)",
    "conversation": "conversations in 'conversation'",
}
CHOSEN = "chosen"
"""The better of two answers, to ``prompt`` or to a conversation that ends with a question."""

PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("query", "response"),
    ("prompt", CHOSEN),
)
JUDGED = ("label", "kto_tag")
"""Columns that are false, or 0, where the answer is a wrong one (KTO)."""

LEARNED = ("loss", "weight")
"""Of a message; false or 0 where it is not to be learned (ms-swift, OpenAI)."""

OTHER_MEDIA = ("videos", "video", "audios", "audio")
BOXES = re.compile(r"<(?:bbox|ref-object)>")
"""Where values of the column ``objects`` stand (ms-swift); each model writes boxes its own way."""

ASKED = ("question", "answer", "answers", "multiple_choice_answer")
"""Columns of a table of questions, which are no conversation: beside them nothing is drawn."""

READ = (
    *MESSAGES,
    *dict.fromkeys(name for pair in PAIRS for name in pair),
    *("rejected", "history", "system", "images", "caption", "text", "objects", "id"),
    *IMAGE_COLUMNS,
    *JUDGED,
    *OTHER_MEDIA,
)
"""All columns that are looked at."""

TURNS = ("context", "split")
MALFORMED = "malformed conversation"
UNSHOWN = "pictures that no mark shows"
UNANSWERED = "question without an answer"
MORE_MARKS = "more image marks than pictures"
WRONG = "answer marked as wrong"
UNCHOSEN = "rejected answer without a chosen one"
UNLEARNED = "answer marked as not to be learned"
DRAWN = "answer with a picture"
UNREAD = "video or audio"
PLACEHOLDERS = "marks of 'objects' without their values"
UNKNOWN_MARK = "mark of another model's for a picture"
UNNAMED = "picture in a column that is not read"
SAYS_PICTURE = re.compile("image|img|pic|photo", re.I)
LINK = re.compile(r"https?://|www\.", re.I)


class BadChat(Exception):
    """A row that is no conversation; ``args`` are the reason and the detail."""


@dataclass
class Turn:
    """One question and its answer; in both, ``unigame.turns.PICTURE`` where a picture stands.

    Attributes:
        answer: None where the conversation ends with the question.
        shown: number of pictures that were shown before the answer.
        left_out: why the answer is read in later turns, but not learned; often empty.
    """

    question: str
    answer: str | None
    shown: int
    left_out: str = ""


class Message(NamedTuple):
    """What someone says, with a mark for each picture.

    Attributes:
        speaker: ``"user"``, ``"assistant"`` or ``"system"``.
        pictures: that the message itself holds.
        learned: False where it is marked as not to be learned.
    """

    speaker: str
    text: str
    pictures: Sequence[Any] = ()
    learned: bool = True


@dataclass
class Conversation:
    """A row, whatever schema it had."""

    turns: list[Turn] = field(default_factory=list)
    pictures: list[Any] = field(default_factory=list)
    caption: str | None = None
    system: str = ""


class Chat(RecordDataset):
    """Conversations about pictures.

    Args:
        path: A json list, jsonl, parquet or arrow file, a glob of such files, a folder of them, a
            folder written by ``save_to_disk``, or, with ``hub``, the id of a data set on the Hub.
        hub: Whether ``path`` is a Hub id, which may be downloaded. Never assumed.
        name: Configuration of a data set that has several.
        split: The split, or a part of it such as ``train[:1000]``; a table's file is one split.
        revision: Branch, tag or commit on the Hub.
        images: Where relative image paths start; by default the folder of the file.
        tags: What a data set calls its speakers, where it is unusual: ``{user: Q, assistant: A}``.
        turns: ``"context"``: a question carries the turns before it, from the one that shows the
            picture; ``"split"``: each stands alone.
        fetch: Whether pictures behind links may be downloaded; never assumed.
        cache_dir: Where ``datasets`` keeps its arrow copy, and ``fetch`` pictures; by default the
            user's caches.
        picture_only: Whether rows of one picture without text are kept.
        verify, limit: See :class:`RecordDataset`; ``limit`` counts answers.

    Raises:
        UserError: No such data set or split, a malformed file, nothing is left.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        hub: bool = False,
        name: str | None = None,
        split: str = "train",
        revision: str | None = None,
        images: str | Path | None = None,
        tags: Mapping[str, str] | None = None,
        turns: str = "context",
        fetch: bool = False,
        cache_dir: str | Path | None = None,
        picture_only: bool = False,
        verify: str = "exists",
        limit: int | None = None,
    ) -> None:
        if turns not in TURNS:
            raise UserError(f"turns is {turns!r}; choose from {', '.join(TURNS)}")
        table = Path(path).expanduser()
        speakers = {word: speaker for speaker, words in TAGS.items() for word in words}
        links = Links(fetch, cache_dir)
        speakers |= {word: speaker for speaker, word in (tags or {}).items()}

        def rows() -> Iterator[Row | SkippedRow]:  # opened once the options below are checked
            options = {"name": name, "revision": revision, "cache_dir": cache_dir}
            found: Iterable[dict[str, Any]]
            if not hub and table.is_file():
                found = open_file(table, split, **options)
            else:
                found = open_rows(path, split, hub=hub, **options)
            for number, cells in enumerate(found):
                given = cells.get("id")
                id = str(number if given is None else given)
                yield from _records(id, cells, speakers, links, turns == "context", picture_only)

        self.picture_only = picture_only
        root = root_of(path, hub, images)
        super().__init__(
            rows(),
            where=f"{path} ({split})",
            root=root,
            verify=verify,
            limit=limit,
            images_option=True,
        )


def _records(
    id: str,
    cells: Mapping[str, Any],
    speakers: Mapping[str, str],
    links: Links,
    context: bool,
    picture_only: bool,
) -> Iterator[Row | SkippedRow]:
    """The records of one row, and what of it cannot be one."""
    try:
        chat = read_chat(cells, speakers)
        pictures = [links(cell) for cell in chat.pictures]
    except (BadChat, NotFetched) as error:
        yield SkippedRow(id, *error.args)
        return
    if not chat.turns:
        if len(pictures) == 1 and (chat.caption or picture_only):
            yield Row(id=id, image=pictures[0], caption=chat.caption)
        else:
            yield SkippedRow(id, NO_TEXT, f"{len(pictures)} pictures")
    earlier: list[tuple[str, str]] = []
    for number, turn in enumerate(chat.turns):
        place = id if len(chat.turns) == 1 else f"{id}/{number}"
        if turn.answer is None:
            yield SkippedRow(place, UNANSWERED, _plain(turn.question)[:80])
            continue
        shown = tuple(pictures[: turn.shown])
        if turn.left_out:
            yield SkippedRow(place, turn.left_out, _plain(turn.answer)[:80])
        else:
            yield Row(
                id=place,
                image=shown[0] if shown else None,
                images=None if len(shown) == 1 else shown,
                question=_question(earlier, turn, chat.system),
                answer=_plain(turn.answer),
                caption=chat.caption if len(shown) == 1 else None,
            )
        earlier += [(turn.question, turn.answer)] if context else []


def _question(earlier: Sequence[tuple[str, str]], turn: Turn, system: str) -> str:
    """The question with what stands before it, and places of pictures where they are needed.

    One picture that comes with the first question needs none: it stands before the question.
    """
    text = turn.question
    before = sum(said.count(PICTURE) for pair in earlier for said in pair)
    missing = turn.shown - before - text.count(PICTURE)
    if missing > 0:  # shown in turns that are left out
        text = PICTURE * missing + text
    if turn.shown > 1:
        return join_turns(earlier, text, system)
    _, *later = [said for pair in earlier for said in pair] + [text]
    place = _to_front if any(PICTURE in said for said in later) else _plain
    return join_turns([(place(asked), place(said)) for asked, said in earlier], place(text), system)


def _to_front(text: str) -> str:
    return PICTURE + _plain(text) if PICTURE in text else text


def _plain(text: str) -> str:
    """A text without places of pictures."""
    return text.replace(PICTURE, "\n").strip()


def read_chat(cells: Mapping[str, Any], speakers: Mapping[str, str]) -> Conversation:
    """The conversation of one row.

    Args:
        cells: of the row.
        speakers: who speaks, by the words for it.

    Raises:
        BadChat: It is none, its pictures and their marks do not agree, its answer is a wrong one,
            or it is about a video, a sound, or boxes that stand elsewhere.
    """
    pictures = _listed(cells.get("images")) or _listed(cells.get("image"))
    caption = _text(cells.get("caption"))
    messages = _messages(cells, speakers)
    if not messages:
        if caption is None and cells.get("rejected") is not None:
            raise BadChat(UNCHOSEN, f"{cells['rejected']!r:.60}")
        pictures = [_picture(each) for each in pictures or _otherwise_named(cells)]
        return Conversation([], pictures, caption or _prompt(cells))
    spoken = [_spoken(message, speakers) for message in messages]
    _check_usable(cells, spoken)
    system = _text(cells.get("system"))
    if system and all(message.speaker != "system" for message in spoken):
        spoken.insert(0, Message("system", system))
    within = [cell for message in spoken for cell in message.pictures]
    if within and pictures:
        within = []  # parts that name the pictures of the row's own column
    if not within and not pictures:
        pictures = _otherwise_named(cells)
    pictures = [_picture(each) for each in within or pictures]
    marks = [len(MARKS.findall(message.text)) for message in spoken]
    if sum(marks) > len(pictures):
        raise BadChat(MORE_MARKS, f"{sum(marks)} marks, {len(pictures)} pictures")
    if pictures and not any(marks):
        users = (place for place, message in enumerate(spoken) if message.speaker == "user")
        marks[next(users, 0)] = len(pictures)
    if sum(marks) < len(pictures):
        raise BadChat(UNSHOWN, f"{sum(marks)} marks, {len(pictures)} pictures")
    said = [MARKS.sub("\n", each.text).strip() for each in spoken if each.speaker == "system"]
    return Conversation(_turns(spoken, marks), pictures, caption, "\n".join(said))


def _check_usable(cells: Mapping[str, Any], spoken: Sequence[Message]) -> None:
    """Refuse rows that would teach a wrong answer, or marks in place of what they stand for."""
    for name in JUDGED:
        value = cells.get(name)
        # A number in a column label may be a class, unless the schema is that of KTO.
        by_number = name != "label" or cells.get("completion") is not None
        said = str(value).strip().lower()
        if said == "false" or (by_number and said in ("0", "0.0")):
            raise BadChat(WRONG, f"{name}: {value}")
    for name in OTHER_MEDIA:
        if any(each is not None for each in _listed(cells.get(name))):
            raise BadChat(UNREAD, f"in {name!r}")
    boxes = [] if cells.get("objects") is None else [(PLACEHOLDERS, BOXES)]
    for reason, marks in [(UNKNOWN_MARK, OTHER_MARKS), *boxes]:
        for message in spoken:
            if mark := marks.search(message.text):
                raise BadChat(reason, f"{mark[0]} in {message.text!r:.60}")


def _otherwise_named(cells: Mapping[str, Any]) -> list[Any]:
    """The pictures of a row that has none in ``image``, ``images`` or a message.

    Raises:
        BadChat: there are some in a column of no usual name: the row would be learned as text.
    """
    for name in IMAGE_COLUMNS:
        if looks_like_picture(cells.get(name)):
            return _listed(cells[name])
    for name, cell in cells.items():
        first = cell[0] if isinstance(cell, list) and cell else cell
        stored = isinstance(first, TableCell | bytes)  # any binary column
        linked = isinstance(first, str) and LINK.match(first.strip())  # a page's, an avatar's
        meant = not (stored or linked) or SAYS_PICTURE.search(name)
        if name not in READ and meant and looks_like_picture(cell):
            raise BadChat(UNNAMED, f"{name!r} holds {cell!r:.60}; call the column image")
    return []


def _turns(spoken: Sequence[Message], marks: Sequence[int]) -> list[Turn]:
    turns: list[Turn] = []
    asked, shown = "", 0
    for message, count in zip(spoken, marks, strict=True):
        words = MARKS.sub(PICTURE, without_places(message.text))
        words = (PICTURE * (count - words.count(PICTURE)) + words).strip()
        if message.speaker == "system":
            asked = PICTURE * count + asked
        elif message.speaker == "user":
            asked = f"{asked}\n{words}".strip()
        elif not _plain(asked) or not _plain(words):
            raise BadChat(MALFORMED, f"an empty {'answer' if _plain(asked) else 'question'}")
        else:  # its own pictures are shown from the next turn on
            left_out = DRAWN if count else "" if message.learned else UNLEARNED
            turns.append(Turn(asked, words, shown, left_out))
            asked = ""
        shown += count
    return [*turns, Turn(asked, None, shown)] if _plain(asked) else turns


def schema_of(cells: Mapping[str, Any]) -> str | None:
    """Which of the schemas a row has, in words; None: it is no conversation."""
    for name, words in MESSAGES.items():
        if isinstance(_opened(cells.get(name)), list):
            return words
    for asked, said in PAIRS:
        if cells.get(asked) is not None and cells.get(said) is not None:
            return f"questions in {asked!r} with answers in {said!r}"
    if isinstance(cells.get(CHOSEN), list):
        return f"conversations in {CHOSEN!r}"
    drawn = _text(cells.get("caption")) or _prompt(cells)
    if not drawn or "images" not in cells or any(cells.get(name) is not None for name in ASKED):
        return None
    return "pictures in 'images' with captions"


def _messages(cells: Mapping[str, Any], speakers: Mapping[str, str]) -> list[Any]:
    """The messages of a row; none where it has only a picture, or only what is to be drawn."""
    chosen = [] if cells.get(CHOSEN) is None else _as_messages(cells[CHOSEN], "assistant")
    for name in MESSAGES:
        if cells.get(name) is not None:
            messages = _listed(_opened(cells[name]))
            return messages + chosen if _speaker(messages[-1:], speakers) == "user" else messages
    if _speaker(chosen[:1], speakers) in ("user", "system"):
        return chosen  # with the question in it
    for asked, said in PAIRS:
        if cells.get(asked) is not None and cells.get(said) is not None:
            before = [
                message
                for pair in _listed(cells.get("history"))
                for message in zip(("user", "assistant"), _listed(pair), strict=False)
            ]
            history = [{"role": who, "content": text} for who, text in before]
            return [
                *history,
                *_as_messages(cells.get(asked), "user"),
                *_as_messages(cells[said], "assistant"),
            ]
    return []


def _opened(value: Any) -> Any:
    """Messages as a list, also where they are json text or were turned inside out.

    ``datasets`` keeps a ``Sequence`` of objects as one object of lists.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError):
            value = parse_json(value)
    if isinstance(value, Mapping) and value and all(isinstance(v, list) for v in value.values()):
        columns = list(value.values())
        if len({len(column) for column in columns}) == 1:
            return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]
    return value


def _as_messages(value: Any, speaker: str) -> list[Any]:
    if isinstance(value, Mapping):
        return [value]
    return value if isinstance(value, list) else [{"role": speaker, "content": value}]


def _speaker(messages: Sequence[Any], speakers: Mapping[str, str]) -> str | None:
    """Who speaks first; None: no one, or someone unknown."""
    first = messages[0] if messages and isinstance(messages[0], Mapping) else {}
    return speakers.get(str(first.get("role", first.get("from"))))


def _spoken(message: Any, speakers: Mapping[str, str]) -> Message:
    if not isinstance(message, Mapping):
        raise BadChat(MALFORMED, f"a message is {message!r:.60}")
    word = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if not isinstance(word, str) or word not in speakers:
        raise BadChat(MALFORMED, f"{word!r:.40} speaks; name it with tags:")
    learned = all(message.get(name) != 0 for name in LEARNED)  # False is 0, None is not
    if isinstance(content, str):
        files = NAMED.findall(content)
        return Message(speakers[word], NAMED.sub("<image>", content), files, learned)
    if not isinstance(content, list):
        raise BadChat(MALFORMED, f"a message's text is {content!r:.60}")
    texts: list[str] = []
    pictures: list[Any] = []
    for part in content:
        part = part if isinstance(part, Mapping) else {"type": part}
        kind = part.get("type")
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in ("image", "image_url"):
            texts.append("<image>")
            names = (kind, "url", "path", "base64")
            cell = next((part[name] for name in names if part.get(name) is not None), None)
            cell = unwrapped(cell) if isinstance(cell, Mapping) else cell
            pictures += [] if cell is None else [cell]
        else:
            raise BadChat(MALFORMED, f"a part is {part!r:.60}")
    return Message(speakers[word], "\n".join(texts), pictures, learned)


def _picture(cell: Any) -> Any:
    if isinstance(cell, Mapping):
        cell = unwrapped(cell)
    if not isinstance(cell, str | bytes | TableCell | Path | None):
        raise BadChat(MALFORMED, f"a picture is {type(cell).__name__}")
    return cell


def _listed(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list) else [value]


def _text(value: Any) -> str | None:
    return (value.strip() or None) if isinstance(value, str) else None


def _prompt(cells: Mapping[str, Any]) -> str | None:
    """What is to be drawn: `prompt` is a caption's name, too, but not beside answers to it."""
    if any(cells.get(name) is not None for name in (CHOSEN, "rejected", *ASKED)):
        return None
    return next(filter(None, (_text(cells.get(name)) for name in ("prompt", "text"))), None)
