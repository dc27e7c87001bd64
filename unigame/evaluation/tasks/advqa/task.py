"""AdVQA: questions that people wrote to make a VQA model fail (Sheng et al. 2021, 2106.02280).

Not the similarly named Adversarial VQA of Li et al. The licence (CC BY-NC 4.0) and the data are
the user's to fetch: the Hub has a loading script only. Put these into one folder, with COCO's
val2014 or val2017 pictures beside them:

    v1_OpenEnded_mscoco_val2017_advqa_questions.json
    v1_mscoco_val2017_advqa_annotations.json

Prompts, normalisation and score are VQAv2's; no reference has its own for AdVQA.
"""

from __future__ import annotations

from typing import ClassVar

from unigame.evaluation.tasks.vqav2.task import VQAv2


class AdVQA(VQAv2):
    """As :class:`VQAv2`, from VQA-style json or from rows with VQAv2's columns."""

    name = "advqa"
    title = "AdVQA"
    group = "adversarial"
    hub_id: ClassVar[str | None] = None
