"""WISE: pictures of things that are named indirectly, so that drawing them takes knowledge.

Legacy WISE (2025), which UniGame's paper reports: 1,000 prompts in six categories, one picture
each, drawn from the prompt verbatim; a judge who also reads an explanation gives three scores.
Data: ``Yuwei-Niu/WISE`` on the Hub, or the three lists of ``WISE_legacy/data`` in
PKU-YuanGroup/WISE. Rules and their sources: ``rules.py``.

Deviations, all about pictures without a score:

1. lmms-eval counts a judge that failed and a picture that is missing as 0, TorchUMM as 9.9, the
   official script refuses the whole set. Here such pictures enter no average; they are counted,
   with reasons, and the record also says what the score would be if they were 0.
2. Scores outside 0 to 2 count as unreadable (``wise_rules.usable``).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from unigame.errors import UserError
from unigame.evaluation.base import Benchmark, DataSource, Item, Loaded, Prediction, Scored
from unigame.evaluation.scorers.judges import SPELLINGS, Judge, JudgeRequest, Rubric, parse_judge
from unigame.evaluation.scorers.judging import Judgement, Retry, collect
from unigame.evaluation.store import JsonlStore
from unigame.evaluation.tasks.wise.rows import FULL_SIZE, identity, load_prompts
from unigame.evaluation.tasks.wise.rules import (
    CATEGORY_IDS,
    READERS,
    SCORES,
    overall_metric,
    usable,
    wiscore,
)
from unigame.reports.metrics import Metric, Unit, value_of

NO_PICTURE: Final = "no picture"


class WISE(Benchmark):
    """See the module docstring.

    Args:
        prompt: ``"verbatim"`` is the only variant.
        parser: how a judge's reply is read and what an incomplete set is worth; see
            ``wise_rules``. ``official`` gives a score for all 1,000 prompts or none at all.
        judge: who scores the pictures. There is no default: scores by different judges are not
            comparable, so the choice is the user's.
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
        """See that there is a judge and that it can work, before anything is drawn.

        Raises:
            UserError: there is none, or its checkpoint cannot be had.
        """
        self._chosen_judge().check()

    def _chosen_judge(self) -> Judge:
        if self.judge is None:
            raise UserError(f"wise needs a judge for its pictures; pass --judge {SPELLINGS}")
        return self.judge

    # ---- data ------------------------------------------------------------------------------------
    def load(self, source: DataSource, limit: int | None = None) -> Loaded:
        """Prompts in the data's order. See ``Benchmark.load``.

        Raises:
            UserError: no such data, WISE_Verified or rewritten prompts, or a part of the set where
                the ``official`` variant needs all of it.
        """
        loaded = load_prompts(source, limit)
        if self.parser == "official" and len(loaded.items) < FULL_SIZE:
            raise UserError(
                "the official WISE score needs all 1,000 prompts and there are "
                f"{len(loaded.items)}; drop --limit, complete the data, or use the parser variant "
                "lmms_eval"
            )
        return loaded

    # ---- scoring ---------------------------------------------------------------------------------
    def score(
        self, items: Sequence[Item], predictions: Mapping[str, Prediction], folder: Path
    ) -> Scored:
        """Judge the pictures. Replies are kept in ``folder / "judgements.jsonl"``.

        The headline is the WiScore, 0 to 1; then each category's, and the judge's three scores
        (means, 0 to 2). No metric at all where no picture has a score.

        Raises:
            UserError: no judge, a judge that cannot work at all, or missing scores where the
                ``official`` variant needs all of them (the replies so far are kept).
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
            warnings=_warnings(items, scores),
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
        return found | collect(
            judge,
            requests,
            self.rubric,
            self._read_reply,
            JsonlStore(folder / "judgements.jsonl"),
            retry=self.retry,
            progress=self.progress,
        )

    def _read_reply(self, reply: str) -> Mapping[str, float] | None:
        scores = READERS[self.parser](reply)
        return scores if usable(scores) else None


def export_pictures(
    items: Iterable[Item], predictions: Mapping[str, Prediction], folder: str | Path
) -> int:
    """Copy the drawings to ``{prompt_id}.png``, as the official script wants them.

    Returns:
        How many there were.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    copied = 0
    for item in items:
        if picture := _picture(predictions.get(item.id)):
            shutil.copyfile(picture, folder / f"{item.id}.png")
            copied += 1
    return copied


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
    for name in CATEGORY_IDS:
        of_category = tuple(unit for unit in units if unit.group == name)
        if of_category:
            metrics.append(Metric(name, f"WiScore, {name}", of_category, scale=1.0))
    for name in SCORES:
        values = tuple(_unit(item, scores[item.id][name]) for item in rated)
        if values:
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


def _warnings(items: Sequence[Item], scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    warnings = []
    if len(scores) < len(items):
        warnings.append(
            f"{len(items) - len(scores)} of {len(items)} prompts have no score and enter no "
            "average; run again for those only"
        )
    present = {item.reference["category"] for item in items if item.id in scores}
    missing = [name for name in CATEGORY_IDS if name not in present]
    if missing and present:
        warnings.append(
            f"no score in {', '.join(missing)}; the weights of the other categories were "
            "renormalised, so this is not WISE's overall score"
        )
    if (which := identity(items)) not in ("legacy WISE", "part of legacy WISE"):
        warnings.append(f"{which}: not comparable with published scores")
    return warnings
