"""What stands before a question in a conversation, in the text of the question.

A question may carry what stands before it: ``"Which?␟red␞Sure?"`` asks "Sure?" after "Which?" was
answered "red", and ``"␟Be brief.␞Sure?"`` has a system prompt, as the answer to nothing.
``"␝␝Which is red?␟the left one␞Sure?"`` shows two pictures before "Which". Where nothing says where
a picture stands, it stands before the first question. So everything that keeps questions keeps
their context, and each family's layout makes turns of it in its own way. No text of data holds
these symbols otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

PICTURE, TURN, REPLY = "\u241d", "\u241e", "\u241f"


class Asked(NamedTuple):
    """A question with what stands before it.

    Attributes:
        earlier: questions with their answers, in order.
        question: the one to be answered.
        system: what the conversation begins with; often empty.
    """

    earlier: list[tuple[str, str]]
    question: str
    system: str = ""

    @property
    def texts(self) -> list[str]:
        """What user and assistant say in turn, the user first and last."""
        return [text for pair in self.earlier for text in pair] + [self.question]


def join_turns(earlier: Iterable[tuple[str, str]], question: str, system: str = "") -> str:
    """A question that carries a system prompt, and earlier questions with their answers."""
    pairs = [("", system), *earlier] if system else earlier
    turns = [f"{without_marks(asked)}{REPLY}{without_marks(said)}" for asked, said in pairs]
    return TURN.join([*turns, without_marks(question)])


def split_turns(question: str) -> Asked:
    """The question, and what it carries."""
    *turns, last = question.split(TURN)
    pairs = [(asked, said) for asked, _, said in (turn.partition(REPLY) for turn in turns)]
    system = pairs.pop(0)[1] if pairs and not pairs[0][0] else ""
    whole = all(asked and said for asked, said in pairs)
    return Asked(pairs, last, system) if whole else Asked([], question)


def without_marks(text: str) -> str:
    """A text without the symbols around turns; places of pictures stay."""
    return text.replace(TURN, " ").replace(REPLY, " ")


def without_places(text: str) -> str:
    """A text without the symbol that says where a picture stands."""
    return text.replace(PICTURE, " ").strip() if PICTURE in text else text
