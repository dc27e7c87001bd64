"""Judges: models that look at a drawing and score it in words.

A judge gives the raw text of its reply; reading scores out of it is the benchmark's business, and
asking again, storing and counting failures are ``judging.py``'s. Three kinds come with the
package, spelled as on the command line:

    hf:Qwen/Qwen2.5-VL-7B-Instruct           a vision-language model on this machine
    openai:MODEL@http://localhost:8000/v1    any endpoint that speaks OpenAI's chat completions
    unigame:runs/merged                      the U of a model that this package loads
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unigame.errors import UserError
from unigame.evaluation.scorers.registry import SCORERS, is_scorer, open_scorer

SPELLINGS = (
    "hf:ID (a model on this machine), openai:MODEL@BASE_URL (an endpoint) or unigame:MODEL (a U)"
)

OWN_RUBRIC = """\
You are grading one picture that a computer drew from a short description. Grade strictly.

The description often names a thing indirectly, so that drawing it takes knowledge. The note says
what a correct picture shows. Whoever drew the picture saw the description only.

Description: {prompt}
Note: {explanation}

Give three grades, each a whole number: 0, 1 or 2.

Consistency - does the picture show what the description means, as the note spells it out?
  0: the main thing is missing, wrong, or contradicts the note.
  1: the main thing is there, but a detail that was asked for is missing or wrong.
  2: everything that was asked for is there, and nothing contradicts it.

Realism - could it be a photograph of something that exists?
  0: impossible shapes, broken bodies, or plainly artificial.
  1: believable at a glance, but light, texture, anatomy or perspective give it away.
  2: hardly to be told from a photograph.

Aesthetic Quality - is it a good picture?
  0: ugly, cluttered or badly framed.
  1: acceptable and no more.
  2: well composed, harmonious, a pleasure to look at.

Give 2 only where you find no fault; when in doubt between two grades, give the lower one.

Reply with exactly these three lines, a number after each colon, and nothing else:
Consistency:
Realism:
Aesthetic Quality:
"""

_SLOT = re.compile(r"\{(prompt|explanation)\}")


class JudgeUnavailable(Exception):
    """A judge gave no reply this time.

    Attributes:
        reason: short and the same for like cases, because such failures are counted by it.
        retryable: whether the same request may succeed later.
        retry_after: seconds that the judge asks to wait; None: it did not say.
    """

    def __init__(
        self, reason: str, *, retryable: bool = True, retry_after: float | None = None
    ) -> None:
        super().__init__(reason)
        self.reason, self.retryable, self.retry_after = reason, retryable, retry_after


@dataclass(frozen=True)
class Rubric:
    """What a judge is told to do, with ``{prompt}`` and ``{explanation}`` to be filled in.

    Attributes:
        text: the instruction.
        name: for the record: ``"unigame"``, or the name of the file it came from.
    """

    text: str = OWN_RUBRIC
    name: str = "unigame"

    def fill(self, prompt: str, explanation: str) -> str:
        """The instruction for one picture; braces elsewhere in the text stay as they are."""
        values = {"prompt": prompt, "explanation": explanation}
        return _SLOT.sub(lambda slot: values[slot.group(1)], self.text)

    @property
    def sha256(self) -> str:
        """Of the text: judgements under different texts are never mixed."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @classmethod
    def from_file(cls, path: str | Path) -> Rubric:
        """Read a rubric such as WISE's official protocol, which this package cannot include.

        Raises:
            UserError: not a readable text file, or without its two slots.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the rubric {path}: {error}") from None
        missing = [slot for slot in ("{prompt}", "{explanation}") if slot not in text]
        if missing:
            raise UserError(
                f"the rubric {path} has no {' and no '.join(missing)}; write them where the "
                "picture's prompt and its explanation belong"
            )
        return cls(text, path.name)


@dataclass(frozen=True)
class JudgeRequest:
    """One picture to be judged.

    Attributes:
        id: of the item.
        prompt: what was to be drawn.
        explanation: what a right picture shows; whoever drew it did not see this.
        picture: the file.
    """

    id: str
    prompt: str
    explanation: str
    picture: Path


class Judge(ABC):
    """Scores pictures in words. Subclass it to plug in another judge.

    Attributes:
        name: for the record, such as ``"hf:Qwen/Qwen2.5-VL-7B-Instruct@66285546d2b8"``. It says
            which weights: what a judge of this name said before is not asked for again.
        in_flight: calls made at once, from as many threads.
        batch_size: pictures given to one call of ``replies``.
        deterministic: the same request always gets the same reply, so an unreadable one is final.
    """

    name: str
    in_flight: int = 1
    batch_size: int = 1
    deterministic: bool = False

    @abstractmethod
    def reply(self, prompt: str, explanation: str, picture: Path, rubric: Rubric) -> str:
        """The raw text of the judge's reply about one picture.

        Raises:
            JudgeUnavailable: there is no reply; says whether it is worth asking again.
            UserError: no request can succeed, such as for a wrong key or model.
        """

    def replies(self, requests: Sequence[JudgeRequest], rubric: Rubric) -> list[str]:
        """Replies about several pictures, in order; override it where a batch is faster."""
        return [self.reply(r.prompt, r.explanation, r.picture, rubric) for r in requests]

    def check(self) -> None:  # noqa: B027  most judges have nothing to check
        """Called before the model under test is asked anything, which may take hours.

        Raises:
            UserError: the judge cannot work as it is set up.
        """

    def settings(self) -> dict[str, Any]:
        """What else belongs in the record, such as a revision."""
        return {}


def parse_judge(text: str) -> Judge:
    """A judge from its spelling: see the module docstring, or ``scorers/registry.py`` for others.

    Nothing is loaded or contacted yet.

    Raises:
        UserError: not such a spelling, or an endpoint that needs a key and gets none.
    """
    kind, _, argument = text.strip().partition(":")
    if not is_scorer(text.strip()) or (kind in ("hf", "openai", "unigame") and not argument):
        names = ", ".join(SCORERS.names())
        raise UserError(f"no judge {text!r}; give {SPELLINGS}, or another of {names}")
    judge: Judge = open_scorer(text, "reply")
    return judge
