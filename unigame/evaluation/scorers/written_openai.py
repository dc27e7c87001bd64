"""Questions from captions by an endpoint that speaks OpenAI's chat completions.

The same templates, and the same strict reading, as for the trained model's own text branch. The
address is tried when a run begins, so that a wrong one is known before anything is trained.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from unigame.errors import UserError
from unigame.evaluation.scorers.judge_openai import OpenAIJudge
from unigame.evaluation.scorers.judges import JudgeUnavailable
from unigame.methods.drawings.written import WrittenQuestions

TRIES = 4
LONGEST_WAIT = 30.0  # seconds between two tries
FIRST_WAIT = 1.0


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
        self._reply("Say yes.")

    def _replies(self, texts: Sequence[str]) -> list[str]:
        with ThreadPoolExecutor(self.client.in_flight) as pool:
            return list(pool.map(self._reply, texts))

    def _reply(self, text: str) -> str:
        wait, reason = FIRST_WAIT, ""
        for number in range(TRIES):
            try:
                return self.client.say(text)
            except JudgeUnavailable as error:
                reason = error.reason.removeprefix("judge: ")
                if not error.retryable or number == TRIES - 1:
                    break
                asked = error.retry_after
                time.sleep(min(LONGEST_WAIT, wait if asked is None else asked))
                wait *= 2
        where = f"{self.client.model}@{self.client.base_url}"
        raise UserError(
            f"endpoint={where} wrote no question ({reason}); see that it is up, or set "
            "question_maker=rules"
        )
