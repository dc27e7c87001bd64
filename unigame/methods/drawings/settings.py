"""Settings that methods of verified drawings share: drawing, verifying, the store.

A round: every so many steps G draws each of some captions several times, and U says which of the
drawings show what their caption says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from unigame.errors import UserError
from unigame.methods.drawings.questions import GIVEN, MAKERS
from unigame.methods.drawings.readers import BASE, READERS
from unigame.settings.rules import Number, Text, Whole, check_fields, setting

MOST = 2**31 - 1  # of steps and rows: what every library counts with
BY_QUESTIONS = ("base", "current")
"""Verifiers that are asked a drawing's questions."""
BY_SIMILARITY = "clip"
"""The verifier that compares a drawing with its caption."""
_COUNT = Whole(low=1, high=MOST)
_COUNT_OR_NONE = Whole(low=1, high=MOST, optional=True)


@dataclass
class DrawingSettings:
    """What ``verify`` and ``imagine`` have in common.

    Raises:
        UserError: for a value outside its range, or two settings that contradict each other.
    """

    # ---- drawing -------------------------------------------------------------------------------
    texts: str | None = setting(
        None,
        Text(optional=True),
        "File of captions to draw, .txt (one a line), .json or .jsonl ({caption: .., questions: "
        "[{question: .., answer: ..}]}). Default: the captions of the batch.",
    )
    every: int = setting(50, _COUNT, "A round on every n-th optimizer step, the first included.")
    captions: int = setting(16, _COUNT, "Captions of a round, on each process.")
    first_captions: int | None = setting(
        None, _COUNT_OR_NONE, "Captions of the first round. Default: as many as of any."
    )
    drawings: int = setting(4, _COUNT, "Drawings of each caption in a round (K).")
    temperature: float | None = setting(
        1.0,
        Number(low=0, above=True),
        "Of drawing. Of latents it is the size of the noise that they begin with, and other values "
        "than 1 draw what no training has seen.",
    )
    guidance_scale: float = setting(
        5.0, Number(low=0), "Of classifier-free guidance in drawing; 1 is none."
    )
    # Free: each drawing has a seed of its own, and each question is asked by itself. Other rows and
    # padding beside them round otherwise, as in any batch of another size; that turns a code or a
    # word only where two were all but equal.
    draw_batch: int = setting(
        64,
        _COUNT,
        "Pictures drawn, and questions asked, at a time. Halved, which is said, where they do not "
        "fit into memory.",
        free=True,
    )

    # ---- verifying -----------------------------------------------------------------------------
    verifier: str = setting(
        "base",
        Text(choices=(*BY_QUESTIONS, BY_SIMILARITY, "reader", "none")),
        "Who confirms drawings: base, the model as it was before training; current, the model as "
        "it is; clip, an image-text model (similarity_model); reader, the independent one; none, "
        "everything is confirmed.",
    )
    similarity_model: str | None = setting(
        None,
        Text(optional=True),
        "CLIP or SigLIP checkpoint of verifier=clip: a folder, a Hub id, or janus-nano-clip, the "
        "bundled model's.",
    )
    clip_floor: float = setting(
        0.3,
        Number(low=-1, high=1),
        "Least cosine of a drawing and its caption for verifier=clip. Each checkpoint has its own: "
        "unigame doctor --game names a best one.",
    )
    confirm: float = setting(
        1.0,
        Number(low=0, above=True, high=1),
        "Share of a drawing's questions that the answers from the picture must agree in.",
    )
    question_maker: str = setting(
        "rules",
        Text(),
        "Questions from captions: rules (of the synthetic world, else by noun phrases), phrases, "
        "world, model (the model's text branch writes them), endpoint, or given (those of the "
        "texts file).",
    )
    endpoint: str | None = setting(
        None,
        Text(optional=True),
        "MODEL@http://.../v1, what speaks OpenAI's chat completions, for question_maker=endpoint.",
    )
    answer_tokens: int = setting(8, _COUNT, "Longest answer to a question, in tokens.")
    reader: str | None = setting(
        None,
        Text(optional=True),
        "Independent reader that says how far the verifier can be trusted: world (the synthetic "
        "world's), base (the model before training), or a package's. It decides nothing.",
    )

    # ---- the store -----------------------------------------------------------------------------
    capacity: int = setting(4096, _COUNT, "Most confirmed drawings that are kept.")
    per_caption: int = setting(4, _COUNT, "Most drawings of one caption that are kept.")
    max_age: int | None = setting(
        None,
        _COUNT_OR_NONE,
        "Steps after which a drawing is dropped, as many as every or more. Default: never.",
    )
    rows: int | None = setting(
        None,
        _COUNT_OR_NONE,
        "Rows of drawings in each step. Default: as many as the batch has.",
    )
    weight: float = setting(
        1.0, Number(low=0, above=True), "Of the mean over these rows, in the loss."
    )

    def __post_init__(self) -> None:
        """Check every value, and what they need of each other."""
        check_fields(self)
        if self.question_maker != GIVEN:
            MAKERS.require(self.question_maker)
        elif self.texts is None:
            raise UserError("question_maker=given without texts: name the file that gives them")
        if self.question_maker == "endpoint" and self.endpoint is None:
            raise UserError(
                "question_maker=endpoint without an endpoint; set endpoint=MODEL@http://HOST/v1"
            )
        if self.reader not in (None, BASE):
            READERS.require(str(self.reader))
        if self.verifier == "reader" and self.reader in (None, BASE):
            raise UserError(
                f"verifier=reader with reader={self.reader}: name an independent reader, or set "
                "verifier=base"
            )
        if self.verifier == BY_SIMILARITY and self.similarity_model is None:
            raise UserError(
                "verifier=clip without similarity_model: name a CLIP or SigLIP checkpoint (folder "
                "or Hub id), or set verifier=base"
            )
        if self.verifier == self.reader == BASE:
            raise UserError(
                "reader=base with verifier=base compares the model with itself; set reader=null, "
                "or verifier=current"
            )
        if self.max_age is not None and self.max_age < self.every:
            raise UserError(
                f"max_age={self.max_age} below every={self.every}: drawings would be dropped "
                f"before the next round; raise max_age to {self.every}, or lower every"
            )

    def inert(self) -> list[str]:
        """Settings that are not at their defaults and have no effect here, each with the reason."""
        idle = []
        if self.verifier not in BY_QUESTIONS and self.reader != BASE:
            why = f"verifier={self.verifier} asks nothing"
            idle += [("confirm", why), ("answer_tokens", why)]
        if self.verifier != BY_SIMILARITY:
            why = f"verifier={self.verifier} compares nothing"
            idle += [("similarity_model", why), ("clip_floor", why)]
        if self.question_maker != "endpoint":
            idle.append(("endpoint", f"question_maker={self.question_maker}"))
        return self._named(idle)

    def _named(self, idle: Sequence[tuple[str, str]]) -> list[str]:
        defaults = {item.name: item.default for item in fields(self)}
        return [
            f"{name}={getattr(self, name)} ({why})"
            for name, why in idle
            if getattr(self, name) != defaults[name]
        ]

    def rows_of(self, batch: int) -> int:
        """Rows of a step, beside a batch of this size."""
        return self.rows or batch
