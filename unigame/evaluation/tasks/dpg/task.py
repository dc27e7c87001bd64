"""DPG-Bench: long prompts, and for each a graph of yes/no questions about what was drawn.

1,065 prompts, four pictures each, drawn from the prompt verbatim (Hu et al., ELLA, arXiv
2403.05135). A judge answers 8 to 30 questions about every picture; ``rules.py`` says what the
answers are worth and names the reference. Data: ``dpg_bench/dpg_bench.csv`` of TencentQQGYLab/ELLA;
a row is a question.

Deviations from the reference:

1. Its judge is mPLUG-large (``damo/mplug_visual-question-answering_coco_large_en`` of modelscope).
   Here it is the user's choice, so figures compare within one judge only. The pictures are also
   laid out as the reference's own scorer reads them, in ``official/``.
2. The reference drops a prompt with one faulty question or picture without counting it. Here faulty
   prompts are skipped rows, and a picture without a score enters no average; both are counted.
3. The reference splits a grid of four pictures at multiples of ``--resolution``; here each picture
   has a file of its own.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

from PIL import Image

from unigame.data import CorruptImage, SkipReport
from unigame.errors import UserError
from unigame.evaluation.base import Benchmark, DataSource, Item, Loaded, Prediction, Scored
from unigame.evaluation.drawn import Drawn, drawn_pictures
from unigame.evaluation.items import Row, loaded, require
from unigame.evaluation.scorers.judges import (
    SPELLINGS,
    Judge,
    JudgeRequest,
    Rubric,
    parse_judge,
)
from unigame.evaluation.scorers.judging import UNREADABLE, Judgement, Retry
from unigame.evaluation.scorers.judging import collect as judge_all
from unigame.evaluation.source import BadRow, field, read_rows
from unigame.evaluation.store import JsonlStore
from unigame.evaluation.tasks.dpg.rules import (
    OFFICIAL,
    REPAIRED,
    Answered,
    Question,
    category_of,
    metrics,
    parents_of,
    read_answer,
    with_parents,
)

FOLDER, FILE = "dpg_bench", "dpg_bench.csv"
COLUMNS: Final = (
    *("item_id", "text", "proposition_id", "dependency", "tuple"),
    "question_natural_language",
)
FULL_SIZE: Final = 1065
ASK: Final = Rubric("{prompt}\nAnswer with yes or no.", "yes-or-no")
"""What the judge is told: the question alone, as in the reference, and how to answer it."""
GRID: Final = 2  # the reference's pictures lie in rows of two


class DPG(Benchmark):
    """Draw, ask a judge every question about every picture, score by the graph.

    Args:
        prompt: only ``verbatim``: prompts are not rewritten.
        parser: see ``rules.py``.
        judge: who answers the questions, or its spelling. There is no default: scores by different
            judges are not comparable, so the choice is the user's.
        ask: what the judge is told, with ``{prompt}`` where the question belongs.
        samples: pictures per prompt.
        retry: how failures of the judge are met; None: the defaults.
        progress: called with the number of answered questions and their total.
    """

    name = "dpg"
    title = "DPG-Bench"
    group = "generation"
    task = "draw"
    prompt_variants = ("verbatim",)
    parser_variants = (REPAIRED, OFFICIAL)

    def __init__(
        self,
        *,
        prompt: str | None = None,
        parser: str | None = None,
        judge: Judge | str | None = None,
        ask: Rubric = ASK,
        samples: int = 4,
        retry: Retry | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        super().__init__(prompt=prompt, parser=parser)
        if samples < 1:
            raise UserError(f"samples is {samples}; give at least 1, the reference draws 4")
        self.judge = parse_judge(judge) if isinstance(judge, str) else judge
        self.ask, self.samples = ask, samples
        self.retry, self.progress = retry, progress

    def variant(self) -> dict[str, Any]:
        """Prompt and rules, pictures per prompt."""
        return {**super().variant(), "samples": self.samples}

    def prepare(self) -> None:
        """See that there is a judge and that it can work, before anything is drawn."""
        self._chosen_judge().check()

    def _chosen_judge(self) -> Judge:
        if self.judge is None:
            raise UserError(f"dpg needs a judge for its questions; pass --judge {SPELLINGS}")
        return self.judge

    # ---- data ------------------------------------------------------------------------------------
    def load(self, source: DataSource, limit: int | None = None) -> Loaded:
        """Prompts in the data's order, each with its questions; ``limit`` counts prompts."""
        if source.root is None and source.hub_id is None:
            raise UserError(
                f"DPG-Bench has no official data set on the Hub; download dpg_bench/{FILE} of "
                "github TencentQQGYLab/ELLA and give its folder with --data-root"
            )
        root = source.root.expanduser() if source.root else None
        if root is not None and (root / FOLDER / FILE).is_file():  # a clone of the repository
            source = replace(source, root=root / FOLDER)
        split = "train" if root is None else Path(FILE).stem
        rows = read_rows(source, hub_id=None, config=None, split=split, required=COLUMNS)
        first = 1 if self.parser == OFFICIAL else 0
        prompts, skips = by_prompt(islice(rows.rows, first, None))
        items: list[Item] = []
        for id, of_prompt in prompts.items():
            if limit is not None and len(items) >= limit:
                break
            try:
                items.append(self._item(id, of_prompt))
            except BadRow as bad:
                skips.add(f"prompt {id}", f"prompt: {bad.reason}")
        require(items, str(root or rows.info.id), skips, "prompt")
        info = replace(rows.info, id=root.resolve().name) if root else rows.info
        return loaded(items, info, skips)

    def _item(self, id: str, rows: Sequence[Row]) -> Item:
        text = next((str(row["text"]) for row in rows if str(row.get("text") or "").strip()), "")
        if not text:
            raise BadRow("empty text")
        questions = [each._asdict() for each in questions_of(rows)]
        return Item(id, text, reference={"questions": questions}, samples=self.samples)

    # ---- scoring ---------------------------------------------------------------------------------
    def score(
        self, items: Sequence[Item], predictions: Mapping[str, Prediction], folder: Path
    ) -> Scored:
        """Ask the judge. Its replies are kept in ``folder / "judgements.jsonl"``.

        The headline is the DPG score, 0 to 100; then the share of questions answered with yes in
        each broad category and in each category. ``verdicts.jsonl`` says what each picture lacks,
        and ``official/`` holds the pictures as the reference's scorer reads them.
        """
        judge = self._chosen_judge()
        drawn, missing = drawn_pictures(items, predictions)
        found = self._judgements(judge, drawn, folder)
        pictures = [self._answered(each, found) for each in drawn]
        for each in pictures:
            if each.score is None:
                missing[each.id] = _why_unknown(each, found)
        export(drawn, folder / "official")
        write_verdicts(pictures, found, folder / "verdicts.jsonl")
        scored = [each for each in pictures if each.score is not None]
        if self.parser == OFFICIAL:  # a picture that fails takes its prompt with it
            count = Counter(each.item for each in scored)
            scored = [each for each in scored if count[each.item] == self.samples]
        details = {
            "pictures": len(scored),
            "pictures_without_a_score": sum(item.samples for item in items) - len(scored),
            "questions": sum(len(each.questions) for each in pictures),
            "questions_not_answered": sum(each.scores is None for each in found.values()),
        }
        return Scored(
            metrics=metrics(scored, last_only=self.parser == OFFICIAL),
            unscored=_unscored(items, {each.item for each in scored}, missing),
            scorer={
                "judge": judge.name,
                "judge_settings": judge.settings(),
                "rubric": {"name": self.ask.name, "sha256": self.ask.sha256},
            },
            details=details,
            warnings=_warnings(judge, items, details),
        )

    def _judgements(
        self, judge: Judge, drawn: Sequence[Drawn], folder: Path
    ) -> dict[str, Judgement]:
        """What came of every question about every picture, by ``_asked``."""
        requests = [
            JudgeRequest(_asked(each.id, question), question.text, "", each.file)
            for each in drawn
            for question in _questions(each.item)
        ]
        return judge_all(
            judge,
            requests,
            self.ask,
            _read,
            JsonlStore(folder / "judgements.jsonl"),
            retry=self.retry,
            progress=self.progress,
        )

    def _answered(self, each: Drawn, found: Mapping[str, Judgement]) -> Answered:
        questions = _questions(each.item)
        answers = {q.id: self._answer(found[_asked(each.id, q)]) for q in questions}
        return Answered(each.id, each.item.id, questions, answers)

    def _answer(self, judgement: Judgement) -> bool | None:
        if judgement.scores is not None:
            return bool(judgement.scores["yes"])
        return False if self.parser == OFFICIAL and judgement.reason == UNREADABLE else None


def _asked(picture: str, question: Question) -> str:
    """The id of one question about one picture."""
    return f"{picture}/{question.id}"


def _read(reply: str) -> dict[str, float] | None:
    said = read_answer(reply)
    return None if said is None else {"yes": float(said)}


def _questions(item: Item) -> list[Question]:
    return [Question(**each) for each in item.reference["questions"]]


# ---- reading the data ----------------------------------------------------------------------------


def by_prompt(rows: Iterable[Row]) -> tuple[dict[str, list[Row]], SkipReport]:
    """The rows of each prompt, in order, and those that cannot be given to one."""
    prompts: dict[str, list[Row]] = {}
    skips = SkipReport()
    for number, row in enumerate(rows):
        try:
            id = str(field(row, "item_id", int | str)).strip()
            if not id:
                raise BadRow("empty item_id")
        except BadRow as bad:
            skips.add(f"row {number}", bad.reason)
        else:
            prompts.setdefault(id, []).append(row)
    return prompts, skips


def questions_of(rows: Iterable[Row]) -> list[Question]:
    """The questions of one prompt, in order.

    Raises:
        BadRow: a field is missing or of another kind, an id occurs twice, or a question depends on
            one that is not there.
    """
    questions: dict[int, Question] = {}
    for row in rows:
        question = _question(row)
        if question.id in questions:
            raise BadRow("a proposition_id occurs twice")
        questions[question.id] = question
    if any(parent not in questions for each in questions.values() for parent in each.parents):
        raise BadRow("a question depends on one that is not there")
    return list(questions.values())


def _question(row: Row) -> Question:
    text = field(row, "question_natural_language", str).strip()
    if not text:
        raise BadRow("empty question_natural_language")
    try:
        parents = parents_of(str(field(row, "dependency", int | str)))
    except ValueError:
        raise BadRow("dependency is no list of numbers") from None
    category = category_of(field(row, "tuple", str))
    if not category:
        raise BadRow("tuple names no category")
    return Question(field(row, "proposition_id", int), text, parents, category)


# ---- what has no score ---------------------------------------------------------------------------


def _why_unknown(each: Answered, found: Mapping[str, Judgement]) -> str:
    """The reason of the first question that has no answer."""
    reasons = (found[_asked(each.id, question)].reason for question in each.questions)
    return next(filter(None, reasons))


def _unscored(
    items: Iterable[Item], scored: Container[str], missing: Mapping[str, str]
) -> dict[str, str]:
    """Prompts without a score, and why: of the first of their pictures that has none."""
    why: dict[str, str] = {}
    for id, reason in missing.items():  # of an item, or of a picture: item/number
        why.setdefault(id, reason)
        why.setdefault(id.rpartition("/")[0], reason)
    return {item.id: why[item.id] for item in items if item.id not in scored}


def _warnings(judge: Judge, items: Sequence[Item], details: Mapping[str, Any]) -> list[str]:
    lines = [
        f"the judge is {judge.name}, not the reference's mPLUG-large; compare only scores of the "
        "same judge"
    ]
    if len(items) != FULL_SIZE:
        lines.append(f"{len(items)} prompts, and DPG-Bench has {FULL_SIZE}: another score")
    if lost := details["pictures_without_a_score"]:
        asked = lost + details["pictures"]
        lines.append(f"{lost} of {asked} pictures have no score and enter no average")
    return lines


# ---- files for people, and for the reference's scorer --------------------------------------------


def write_verdicts(
    pictures: Iterable[Answered], found: Mapping[str, Judgement], path: Path
) -> None:
    """One line a picture: its score, and the questions that cost it something."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for each in pictures:
            worth = with_parents(each.questions, each.answers)
            lost = [q for q in each.questions if worth[q.id] is False]
            line = {
                "id": each.id,
                "score": each.score,
                "answered_no": [q.text for q in lost if each.answers[q.id] is False],
                "lost_with_a_parent": [q.text for q in lost if each.answers[q.id]],
                "not_answered": {
                    q.text: found[_asked(each.id, q)].reason
                    for q in each.questions
                    if each.answers[q.id] is None
                },
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def export(drawn: Iterable[Drawn], folder: Path) -> None:
    """Lay pictures out as the reference's scorer reads them: ``{item_id}.png``, a grid of 2 x 2.

    A prompt with one picture has that alone; a place without a picture is black; of more than four
    the first four are taken. What lay there before is replaced.
    """
    shutil.rmtree(folder, ignore_errors=True)
    of_item: dict[str, list[Drawn]] = {}
    for each in drawn:
        if each.number < GRID**2:
            of_item.setdefault(each.item.id, []).append(each)
    for id, group in of_item.items():
        if Path(id).name != id:
            continue  # it would lie in another folder
        images = {}
        for each in group:
            with suppress(CorruptImage):  # the judge says so of it
                images[each.number] = each.open()
        if images:
            folder.mkdir(parents=True, exist_ok=True)
            _grid(images, single=group[0].item.samples == 1).save(
                folder / f"{id}.png", compress_level=1
            )


def _grid(images: Mapping[int, Image.Image], *, single: bool) -> Image.Image:
    """Pictures in rows of two, by number; all have the size of the first one."""
    if single:
        return images[0]
    width, height = next(iter(images.values())).size
    grid = Image.new("RGB", (GRID * width, GRID * height))
    for number, image in images.items():
        row, column = divmod(number, GRID)
        grid.paste(image, (column * width, row * height))
    return grid
