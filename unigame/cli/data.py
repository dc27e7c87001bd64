"""``unigame data``: what a data set holds, and its first rows as a model reads them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from unigame.cli import options
from unigame.cli.app import argument, command, option
from unigame.cli.endings import next_step
from unigame.errors import UserError
from unigame.system.writable import require_writable

if TYPE_CHECKING:
    from rich.console import Console

    from unigame.backbones.base import Reading
    from unigame.data.preview import Sheet
    from unigame.data.records import RecordSource


class Named(NamedTuple):
    """What the user named.

    Attributes:
        sources: to open.
        model: that goes with them.
        said: a line that says what was found.
        words: of ``unigame train``, to train on it.
    """

    sources: list[dict[str, Any]]
    model: str
    said: str
    words: list[str]


@command("look at a data set as a model reads it: unigame data my.jsonl")
@argument("source", "file, folder, glob, Hub id, recipe, or '[{type: ...}]' as a recipe has it")
@option("--images", type=options.PATH, help="folder where the paths of pictures start")
@option("--limit", type=options.POSITIVE, help="look at the first so many good rows")
@option("--model", help=f"bundled name, folder or Hub id [default: {options.BUNDLED}]")
@option("--rows", type=options.POSITIVE, default=3, help="rows to print")
@option("--sheet", type=options.PATH, default="contact_sheet.png", help="file of the pictures")
def data(
    source: str,
    images: Path | None,
    limit: int | None,
    model: str | None,
    rows: int,
    sheet: Path,
) -> None:
    """Show what a data set holds: its schema, counts, lengths, what is left out, and first rows.

    The rows are printed as the model reads them: special tokens visible, trained tokens apart.
    """
    if sheet.is_dir() or sheet.suffix.lower() != ".png":
        raise UserError(f"--sheet {sheet} is no file of a sheet; name one such as sheet.png")
    require_writable(sheet.parent, "--sheet")
    named = _named(source, model)
    if images is not None:
        named = _with_images(named, images)
    from unigame.system.console import make_console

    console = make_console()
    console.print(named.said)
    from unigame.data import build_dataset

    dataset = build_dataset(named.sources, limit=limit)
    from unigame.backbones.loading import load_reading

    name = model or named.model
    reading = load_reading(name)
    from unigame.data.preview import write_sheet

    for number, part in enumerate(getattr(dataset, "datasets", [dataset])):
        _show(console, number, part, reading, rows, name)
    _say_sheet(console, write_sheet(dataset, sheet), sheet)
    next_step(f"train on it:  {shlex.join(['unigame', 'train', *named.words])}")


def _named(source: str, model: str | None) -> Named:
    """What the argument names; ``model`` stands in where a recipe names none."""
    words = ["RECIPE", "--data", source]
    # YAML, as of `train --data`; "[ab]*.jsonl" is a glob.
    if source[:1] in ("[", "{") and not re.match(r"\[[^\]{}:]*\].", source):
        from unigame.settings.yaml_words import parse_yaml

        listed = parse_yaml(source, "the list of sources")
        if not isinstance(listed, list):
            raise UserError(f"{source:.80} is no list of sources; write [ and ] around it")
        return Named(listed, options.BUNDLED, "sources as they are listed", words)
    if _is_recipe(source):
        return _recipe(source, model)
    from unigame.data.guess import guess_source

    guess = guess_source(source)
    return Named([guess.source], options.BUNDLED, guess.said, words)


def _recipe(source: str, model: str | None) -> Named:
    from unigame.training.recipe import find_recipe, load_recipe, read_yaml

    words = [source]
    if read_yaml(find_recipe(source)).get("model") is None:
        words += ["--model", model or options.BUNDLED]
    recipe = load_recipe(source, words[1:], here=False)
    kinds = ", ".join(each["type"] for each in recipe.data)
    said = f"recipe {source} trains {recipe.model} on {len(recipe.data)} source(s): {kinds}"
    if len(words) > 1:
        said = f"{source} names no model, so {recipe.model} reads its data: {kinds}"
    return Named(recipe.data, recipe.model, said, words)


def _with_images(named: Named, images: Path) -> Named:
    """The same source, whose pictures lie in another folder.

    Raises:
        UserError: there are several sources, one that holds its pictures itself, or no such folder.
    """
    from unigame.data.paths import existing_path
    from unigame.data.settings import SOURCES

    folder = str(existing_path(images, "--images", folder=True))
    if len(named.sources) != 1:
        raise UserError(
            f"--images {folder} goes with one source; of several, write images: FOLDER in each"
        )
    (source,) = named.sources
    if not isinstance(source, dict):
        return named  # refused when it is opened
    kind = str(source.get("type"))
    if kind in SOURCES and "images" not in SOURCES[kind]:
        raise UserError(
            f"--images {folder} is for tables of paths, and this is read by type: {kind}, which "
            "has no such folder; leave --images out"
        )
    words = [*named.words, "--data.0.images", folder]
    return named._replace(sources=[{**source, "images": folder}], words=words)


def _say_sheet(console: Console, shown: Sheet, path: Path) -> None:
    """Where the contact sheet is, and which of its rows have no picture on it."""
    console.print(f"\nContact sheet of {shown.pictures} pictures: {path}")
    if not shown.unread:
        return
    console.print(
        f"{len(shown.unread)} rows of the sheet have a picture that could not be read; verify: "
        "decode in the source finds all such rows, and leaves them out:"
    )
    for row in shown.unread:
        console.print(f"  {row.id}: {row.reason} ({' '.join(row.detail.split())})")


def _is_recipe(source: str) -> bool:
    """A YAML file, or the name of a recipe that comes with the package and of nothing else here."""
    from importlib.resources import files

    shipped = files("unigame") / "recipes" / f"{Path(source).name}.yaml"
    named = Path(source).name == source and not Path(source).exists() and shipped.is_file()
    return named or Path(source).suffix.lower() in (".yaml", ".yml")


def _show(
    console: Console, number: int, part: RecordSource, reading: Reading, rows: int, name: str
) -> None:
    """One source: its counts and lengths, and its first rows."""
    from rich.text import Text

    from unigame.data.preview import MEASURED, read_rows, spread, texts_of_rows
    from unigame.data.records import num_pictures
    from unigame.data.skips import SkipReport

    where = getattr(part, "where", type(part).__name__)
    report = getattr(part, "skips", None)
    counted = report.summary() if isinstance(report, SkipReport) else f"{len(part)} rows"
    console.print(Text(f"\nsource {number} ({where}): {counted}", style="bold"))
    usable: list[Any] = []
    refused: list[str] = []
    found: list[Any] = []
    for texts in texts_of_rows(part, spread(len(part), MEASURED)):
        if problem := _problem(texts, reading, part):
            refused.append(f"{texts.get('id')}: {problem}")
            continue
        usable.append(texts)
        found += read_rows(texts, reading.preprocessor)
    both = sum(bool(t.get("answer")) and bool(t.get("caption")) for t in usable)
    answered = sum(bool(t.get("answer")) for t in usable)
    captioned = sum(bool(t.get("caption")) for t in usable)
    looked = len(usable) + len(refused)
    alone = sum(not t.get("answer") and not t.get("caption") for t in usable)
    pictures = f", {alone} of a picture alone" if alone else ""
    console.print(
        f"of {looked} rows: {answered} with an answer, {captioned} with a caption, {both} with both"
        f"{pictures}"
    )
    numbers = [num_pictures(texts) for texts in usable]
    if beside := sum(number != 1 for number in numbers):
        console.print(
            f"{numbers.count(0)} of text alone, {beside - numbers.count(0)} of several pictures: "
            "they train answers; the game and drawing pass them by"
        )
    if refused:
        console.print(f"{len(refused)} that {name} cannot take; the first: {refused[0]}")
    _lengths(console, found, name)
    for texts in texts_of_rows(part, range(min(rows, len(part)))):
        if problem := _problem(texts, reading, part):
            console.print(f"\n{texts.get('id')}: cannot be used: {problem}")
            continue
        for row in read_rows(texts, reading.preprocessor):
            console.print(f"\n{texts.get('id')} ({row.loss}, {row.tokens} tokens)")
            console.print(Text.assemble("  reads:   ", row.given))
            console.print(Text.assemble("  trained: ", (row.trained, "bold green")))


def _problem(texts: Any, reading: Reading, part: RecordSource) -> str | None:
    """Why training would leave the row out."""
    from unigame.data.kinds import holds_pictures_alone
    from unigame.training.record_checks import RecordCheck

    needs_text = not holds_pictures_alone(part)
    check = RecordCheck(reading.text_rules, needs_text=needs_text, pictures=reading.pictures)
    problem = check.texts(texts)
    return None if problem is None else f"{problem.reason}; {problem.advice}"


def _lengths(console: Console, rows: Sequence[Any], name: str) -> None:
    for loss, what in (
        ("answer", "question, pictures and answer"),
        ("generation", "drawing prompt"),
        ("reconstruction", "picture and text, to draw it again"),
    ):
        lengths = sorted(row.tokens for row in rows if row.loss == loss)
        if not lengths:
            continue
        middle = lengths[len(lengths) // 2]
        own = sorted(row.trained_tokens for row in rows if row.loss == loss)
        trained = f"; {own[0]} to {own[-1]} of them trained" if loss == "answer" else ""
        console.print(
            f"tokens of {what} ({name}): {lengths[0]} to {lengths[-1]}, middle {middle}{trained}"
        )
    if unknown := sum(row.unknown for row in rows):
        console.print(f"{unknown} tokens are words that {name} does not know; try another --model")
