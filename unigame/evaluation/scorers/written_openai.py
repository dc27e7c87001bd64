"""Questions from captions by an endpoint that speaks OpenAI's chat completions.

The same templates, and the same strict reading, as for the trained model's own text branch. The
address is tried when a run begins, so that a wrong one is known before anything is trained. Later
an endpoint may be away for about two minutes, and may refuse single texts: such a text counts as a
reply that is no question. It ends the run where it refuses what it took at the beginning.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any

from unigame.errors import UserError
from unigame.evaluation.scorers.judge_openai import OpenAIJudge
from unigame.evaluation.scorers.judges import JudgeUnavailable
from unigame.methods.drawings.written import WrittenQuestions
from unigame.system.say import warn

TRIES = 9  # with the waits between them two minutes: a server that was restarted is back
FIRST_TRIES = 4  # as a run begins, where an address is rather wrong than away
LONGEST_WAIT = 30.0  # seconds between two tries
FIRST_WAIT = 1.0
PATIENCE = 120.0  # seconds after which there are no more than FIRST_TRIES: each may take as long
PROBE = "Say yes."


@dataclass
class _Call:
    """What the texts of one call have in common.

    Attributes:
        tries: of each text.
        over: set where an error or Ctrl-C ends the call: nobody waits to ask again.
        said: what a person was told already.
    """

    tries: int
    over: threading.Event = field(default_factory=threading.Event)
    said: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def say(self, what: str, line: str) -> None:
        """A line, once."""
        with self.lock:
            if what in self.said:
                return
            self.said.add(what)
        warn(line)


class EndpointQuestions(WrittenQuestions):
    """Question maker ``endpoint``.

    Args:
        backbone: not used.
        settings: the method's; ``endpoint`` is MODEL@ADDRESS.

    Raises:
        UserError: the address, the key or the model is wrong, or nobody answers there.
    """

    def __init__(self, backbone: Any, settings: Any) -> None:
        self.client = OpenAIJudge(settings.endpoint, max_tokens=128)
        super().__init__(self._replies, f"endpoint {settings.endpoint}")
        try:
            self._ask(_Call(FIRST_TRIES), PROBE)
        except JudgeUnavailable as error:
            raise self._gone(error) from None

    @property
    def _where(self) -> str:
        return f"{self.client.model}@{self.client.base_url}"

    def _replies(self, texts: Sequence[str]) -> list[str]:
        """One for each text.

        Raises:
            UserError: the endpoint is away for longer than it is waited for, or takes nothing.
        """
        call = _Call(TRIES)
        with ThreadPoolExecutor(self.client.in_flight) as pool:
            try:
                return list(pool.map(partial(self._reply, call), texts))
            finally:
                call.over.set()

    def _reply(self, call: _Call, text: str) -> str:
        """What is said to a text; nothing where it is refused, and another one is not."""
        try:
            return self._ask(call, text)
        except UserError as error:  # some servers refuse a text as others refuse a key
            reason = str(error)
        except JudgeUnavailable as error:
            if error.retryable:
                raise self._gone(error) from None
            reason = _reason(error)
        try:
            self._ask(call, PROBE)
        except JudgeUnavailable as error:  # no text will do
            raise self._gone(error) from None
        call.say("refused", f"{self._where} refuses a text, which counts as unparsed: {reason}")
        return ""

    def _ask(self, call: _Call, text: str) -> str:
        """The reply; asks again, and says so once, where that may help.

        Raises:
            JudgeUnavailable: there is none.
            UserError: the endpoint does not take the key, or does not know the model.
        """
        tried, wait, begun = 0, FIRST_WAIT, monotonic()
        while True:
            try:
                return self.client.say(text)
            except JudgeUnavailable as error:
                tried += 1
                long = tried >= FIRST_TRIES and monotonic() - begun > PATIENCE
                if not error.retryable or tried == call.tries or long:
                    raise
                if tried == 2 and call.tries == TRIES:  # not where the second try helps
                    call.say(
                        "wait",
                        f"{self._where} gives no reply ({_reason(error)}); it is asked again for "
                        f"up to {PATIENCE / 60:.0f} min",
                    )
                asked = error.retry_after
                if call.over.wait(min(LONGEST_WAIT, wait if asked is None else asked)):
                    raise
                wait *= 2

    def _gone(self, error: JudgeUnavailable) -> UserError:
        """What ends the run, with the ways on."""
        return UserError(
            f"endpoint={self._where} wrote no question ({_reason(error)}); see that it is up, or "
            "set question_maker=rules, and resume_anyway=true where a run goes on"
        )


def _reason(error: JudgeUnavailable) -> str:
    """Of a judge that judges nothing here."""
    return error.reason.removeprefix("judge: ")
