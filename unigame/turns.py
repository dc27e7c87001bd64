"""Earlier turns of a conversation, in the text of a question.

A question may carry the turns before it: ``"Which?␟red␞Sure?"`` asks "Sure?" after "Which?" was
answered "red". So everything that keeps questions keeps their context, and each family's layout
makes turns of it in its own way. No text of data holds these two symbols otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable

TURN, REPLY = "\u241e", "\u241f"


def join_turns(earlier: Iterable[tuple[str, str]], question: str) -> str:
    """A question that carries earlier questions with their answers."""
    turns = [f"{without_marks(asked)}{REPLY}{without_marks(said)}" for asked, said in earlier]
    return TURN.join([*turns, without_marks(question)])


def split_turns(question: str) -> tuple[list[tuple[str, str]], str]:
    """The earlier questions with their answers, and the question itself."""
    *turns, last = question.split(TURN)
    pairs = [turn.partition(REPLY) for turn in turns]
    if not all(asked and reply and said for asked, reply, said in pairs):
        return [], question
    return [(asked, said) for asked, _, said in pairs], last


def without_marks(text: str) -> str:
    """A text without the two symbols."""
    return text.replace(TURN, " ").replace(REPLY, " ")
