"""WISE: pictures of things that are named indirectly, so that drawing them takes knowledge.

Legacy WISE (2025), which UniGame's paper reports: 1,000 prompts in six categories, one picture
each, drawn from the prompt verbatim; a judge who also reads an explanation gives three scores.
Data: ``Yuwei-Niu/WISE`` on the Hub, or the three lists of ``WISE_legacy/data`` in
PKU-YuanGroup/WISE. The repository's default is now WISE_Verified: other prompts under the same
numbers, another judge, other categories; its files are refused. Rules and sources: ``rules.py``.

Deviations, all about pictures without a score:

1. lmms-eval counts a judge that failed and a picture that is missing as 0, TorchUMM as 9.9, the
   official script refuses the whole set. Here such pictures enter no average; they are counted,
   with reasons, and the record also says what the score would be if they were 0.
2. Scores outside 0 to 2 count as unreadable (``rules.usable``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from unigame.errors import UserError
from unigame.evaluation.base import (
    Benchmark,
    DatasetInfo,
    DataSource,
    Item,
    Loaded,
    Prediction,
    Scored,
)
from unigame.evaluation.items import by_group, collect, loaded
from unigame.evaluation.scorers.judges import (
    SPELLINGS,
    Judge,
    JudgeRequest,
    Rubric,
    parse_judge,
)
from unigame.evaluation.scorers.judging import UNREADABLE, Judgement, Retry
from unigame.evaluation.scorers.judging import collect as judge_all
from unigame.evaluation.source import BadRow, field, read_json, read_rows
from unigame.evaluation.store import JsonlStore
from unigame.evaluation.tasks.wise.rules import (
    CATEGORY_IDS,
    READERS,
    SCORES,
    UNKNOWN_CATEGORY,
    category,
    overall_metric,
    usable,
    wiscore,
)
from unigame.reports.metrics import Metric, Unit, value_of

HUB_ID: Final = "Yuwei-Niu/WISE"
LISTS: Final = (
    "cultural_common_sense.json",
    "spatio-temporal_reasoning.json",
    "natural_science.json",
)
COLUMNS: Final = ("Prompt", "Explanation", "prompt_id")
FOLDERS: Final = ("", "data", "WISE_legacy/data")  # where the lists lie in the repository
FIRST_PROMPT: Final = "Traditional food of the Mid-Autumn Festival"
PROMPTS_SHA256: Final = "c50f17a35c733f3ee8f2cae0b7b75e14ec89f156180bacfa5658cd3c26084621"
"""Of the 1,000 legacy prompts in the order of their ids, joined by newlines."""

FULL_SIZE: Final = sum(map(len, CATEGORY_IDS.values()))
SMALLEST_LIST: Final = 300

# The data's own names of the categories, in lower case.
_LABELS = {
    "cultural knowledge": "culture",
    "physical knowledge": "physics",
    **{name: name for name in CATEGORY_IDS},
}
NO_PICTURE: Final = "no picture"


class WISE(Benchmark):
    """See the module docstring.

    Args:
        prompt: ``"verbatim"`` is the only variant.
        parser: how a judge's reply is read and what an incomplete set is worth; see
            ``rules.py``. ``official`` gives a score for all 1,000 prompts or none at all.
        judge: who scores the pictures, or its spelling. There is no default: scores by different
            judges are not comparable, so the choice is the user's.
        rubric: what the judge is told; None: the package's own.
        retry: how failures of the judge are met; None: the defaults.
        progress: called with the number of judged pictures and their total.
    """

    name = "wise"
    title = "WISE"
    group = "consistency"
    task = "draw"
    prompt_variants = ("verbatim",)
    parser_variants = tuple(READERS)

    def __init__(
        self,
        *,
        prompt: str | None = None,
        parser: str | None = None,
        judge: Judge | str | None = None,
        rubric: Rubric | None = None,
        retry: Retry | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        super().__init__(prompt=prompt, parser=parser)
        self.judge = parse_judge(judge) if isinstance(judge, str) else judge
        self.rubric = rubric or Rubric()
        self.retry, self.progress = retry, progress

    def prepare(self) -> None:
        """See that there is a judge and that it can work, before anything is drawn."""
        self._chosen_judge().check()

    def _chosen_judge(self) -> Judge:
        if self.judge is None:
            raise UserError(f"wise needs a judge for its pictures; pass --judge {SPELLINGS}")
        return self.judge

    # ---- data ------------------------------------------------------------------------------------
    def load(self, source: DataSource, limit: int | None = None) -> Loaded:
        """Prompts in the data's order; their explanations are for the judge only."""
        rows, info = _read(source)
        _refuse_verified(rows)
        if not any(set(COLUMNS) <= row.keys() for row in rows):
            columns = ", ".join(dict.fromkeys(str(name) for row in rows for name in row)) or "none"
            raise UserError(
                f"no usable WISE prompt in {info.id}: its columns are {columns}, but "
                f"{', '.join(COLUMNS)} are needed: is this the right data set?"
            )
        items, skips = collect(rows, _item, where=info.id, id="prompt_id")
        _check_first_prompt(items)
        items = items if limit is None else items[:limit]
        if self.parser == "official" and len(items) < FULL_SIZE:
            raise UserError(
                "the official WISE score needs all 1,000 prompts and there are "
                f"{len(items)}; drop --limit, complete the data, or use the parser variant "
                "lmms_eval"
            )
        return loaded(items, info, skips)

    # ---- scoring ---------------------------------------------------------------------------------
    def score(
        self, items: Sequence[Item], predictions: Mapping[str, Prediction], folder: Path
    ) -> Scored:
        """Judge the pictures. Replies are kept in ``folder / "judgements.jsonl"``.

        The headline is the WiScore, 0 to 1; then each category's, and the judge's three scores
        (means, 0 to 2). No metric at all where no picture has a score.
        """
        judge = self._chosen_judge()
        found = self._judgements(judge, items, predictions, folder)
        scores = {id: judgement.scores for id, judgement in found.items() if judgement.scores}
        missing = [item.id for item in items if item.id not in scores]
        if missing and self.parser == "official":
            reasons = {found[id].reason if id in found else "no drawing" for id in missing}
            raise UserError(
                f"the official WISE score needs all pictures judged, and {len(missing)} are not "
                f"({', '.join(sorted(reasons))}); run again to judge those only, or use the parser "
                "variant lmms_eval"
            )
        return Scored(
            metrics=_metrics(items, scores) if scores else [],
            unscored={id: found[id].reason for id in missing if id in found},
            scorer={
                "judge": judge.name,
                "judge_settings": judge.settings(),
                "rubric": {"name": self.rubric.name, "sha256": self.rubric.sha256},
            },
            details=_details(items, scores),
            warnings=_warnings(items, scores, self._unread(found)),
        )

    def _judgements(
        self,
        judge: Judge,
        items: Sequence[Item],
        predictions: Mapping[str, Prediction],
        folder: Path,
    ) -> dict[str, Judgement]:
        """What came of every item, but for those whose drawing failed with an error."""
        drawn = [i for i in items if i.id not in predictions or not predictions[i.id].error]
        found = {item.id: Judgement(None, NO_PICTURE) for item in drawn}
        requests = [
            JudgeRequest(item.id, item.prompt, item.reference["explanation"], picture)
            for item in drawn
            if (picture := _picture(predictions.get(item.id)))
        ]
        return found | judge_all(
            judge,
            requests,
            self.rubric,
            self._read_reply,
            JsonlStore(folder / "judgements.jsonl"),
            retry=self.retry,
            progress=self.progress,
        )

    def _unread(self, found: Mapping[str, Judgement]) -> int:
        """Replies that this reader cannot read and another one may; 0 by the most lenient one."""
        if self.parser == "lenient":
            return 0
        return sum(judgement.reason == UNREADABLE for judgement in found.values())

    def _read_reply(self, reply: str) -> Mapping[str, float] | None:
        scores = READERS[self.parser](reply)
        return scores if usable(scores) else None


def _picture(prediction: Prediction | None) -> Path | None:
    if prediction is None or prediction.error or not prediction.pictures:
        return None
    return prediction.pictures[0]


# ---- figures -------------------------------------------------------------------------------------


def _metrics(items: Sequence[Item], scores: Mapping[str, Mapping[str, float]]) -> list[Metric]:
    """Headline, the categories that have a score, the judge's three scores."""
    rated = [item for item in items if item.id in scores]
    units = [_unit(item, wiscore(**scores[item.id])) for item in rated]
    metrics = [overall_metric(units)]
    groups = by_group(units)
    for name in CATEGORY_IDS:
        if name in groups:
            metrics.append(Metric(name, f"WiScore, {name}", groups[name], scale=1.0))
    for name in SCORES:
        values = tuple(_unit(item, scores[item.id][name]) for item in rated)
        metrics.append(Metric(name, name.replace("_", " "), values, scale=1.0))
    return metrics


def _unit(item: Item, value: float) -> Unit:
    return Unit(item.id, (value,), group=item.reference["category"])


def _details(items: Sequence[Item], scores: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    zero = dict.fromkeys(SCORES, 0.0)
    all_units = [_unit(item, wiscore(**scores.get(item.id, zero))) for item in items]
    return {
        "prompts": identity(items),
        # What lmms-eval would report.
        "wiscore_with_unscored_as_0": value_of(overall_metric(all_units)) if items else None,
    }


def _warnings(
    items: Sequence[Item], scores: Mapping[str, Mapping[str, float]], unread: int
) -> list[str]:
    warnings = []
    if len(scores) < len(items):
        zero = _details(items, scores)["wiscore_with_unscored_as_0"]
        warnings.append(
            f"{len(items) - len(scores)} of {len(items)} prompts have no score and enter no "
            f"average (counted as 0 the WiScore is {zero:.3f}); run again for those only"
        )
    present = {item.reference["category"] for item in items if item.id in scores}
    missing = [name for name in CATEGORY_IDS if name not in present]
    if missing and present:
        warnings.append(
            f"no score in {', '.join(missing)}; the weights of the other categories were "
            "renormalised, so this is not WISE's overall score"
        )
    if unread:
        warnings.append(
            f"{unread} replies of the judge are not in the form that was asked for, and one that "
            "always says the same will say so again; --parser wise=lenient reads more of them, "
            "without asking"
        )
    if (which := identity(items)) not in ("legacy WISE", "part of legacy WISE"):
        warnings.append(f"{which}: not comparable with published scores")
    return warnings


# ---- reading the data ----------------------------------------------------------------------------


def _read(source: DataSource) -> tuple[Sequence[Mapping[str, Any]], DatasetInfo]:
    """Rows of the three lists where a folder has them, else of whatever table is there."""
    if source.root is not None:
        root = source.root.expanduser()
        for folder in FOLDERS:
            if found := [path for name in LISTS if (path := root / folder / name).is_file()]:
                info = DatasetInfo(id=root.name, split=source.split or "test")
                return [row for path in found for row in _list_of(path)], info
        if any(root.glob("*verified*")) and not any(root.glob("*.parquet")):
            raise UserError(
                f"{root} holds WISE_Verified, whose prompts and scores are others; the paper's "
                "WISE is in the folder WISE_legacy/data of the same repository"
            )
    rows = read_rows(source, hub_id=HUB_ID, config=None, split="test", required=COLUMNS)
    return rows.rows, rows.info


def _list_of(path: Path) -> list[Mapping[str, Any]]:
    rows = read_json(path)
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path} is not a list of prompts; download WISE_legacy/data again")
    return [row if isinstance(row, dict) else {} for row in rows]


def _item(row: Mapping[str, Any]) -> Item:
    prompt_id = field(row, "prompt_id", int)
    prompt = field(row, "Prompt", str)
    explanation = field(row, "Explanation", str)
    if category(prompt_id) == UNKNOWN_CATEGORY:
        raise BadRow("prompt_id is not between 1 and 1000")
    if not prompt.strip():
        raise BadRow("empty Prompt")
    reference = {
        "explanation": explanation,
        "category": category(prompt_id),
        "subcategory": str(row.get("Subcategory") or ""),
    }
    return Item(id=str(prompt_id), prompt=prompt, reference=reference)


# ---- which WISE is this? -------------------------------------------------------------------------


def _refuse_verified(rows: Iterable[Mapping[str, Any]]) -> None:
    """Categories that contradict the legacy numbering: time ends at 567, in WISE_Verified at 520.

    With it, a full set has the legacy counts 400, 167, 133, 100, 100 and 100.
    """
    for row in rows:
        label = _LABELS.get(str(row.get("Category")).strip().lower())
        try:
            prompt_id = field(row, "prompt_id", int)
        except BadRow:
            continue
        if label and category(prompt_id) not in (label, UNKNOWN_CATEGORY):
            raise UserError(
                f"prompt {prompt_id} is of category {row['Category']!r}, but in legacy WISE it is "
                f"{category(prompt_id)}: this looks like WISE_Verified, whose scores are not "
                "comparable; use the files of WISE_legacy/data"
            )


def _check_first_prompt(items: Sequence[Item]) -> None:
    """A set as long as one of the lists must begin as legacy WISE does; small ones may be others'.

    The ``*_rewrite.json`` lists and WISE_Verified have another prompt 1.
    """
    first = next((item.prompt for item in items if item.id == "1"), FIRST_PROMPT)
    if first.strip() != FIRST_PROMPT and len(items) >= SMALLEST_LIST:
        raise UserError(
            f"prompt 1 is {first!r}, in legacy WISE it is {FIRST_PROMPT!r}: these are rewritten "
            "prompts or WISE_Verified, whose scores are not comparable; use WISE_legacy/data"
        )


def identity(items: Sequence[Item]) -> str:
    """Which prompts were drawn, for the record."""
    by_id = {int(item.id): item.prompt for item in items}
    if by_id.get(1, FIRST_PROMPT).strip() != FIRST_PROMPT:
        return "not WISE's prompts"
    if len(by_id) < FULL_SIZE:
        return "part of legacy WISE"
    text = "\n".join(by_id[id] for id in sorted(by_id))
    same = hashlib.sha256(text.encode()).hexdigest() == PROMPTS_SHA256
    return "legacy WISE" if same else "legacy WISE with changed prompts"
