"""Asking a judge about many pictures: again where it fails, and never twice where it did not.

Every reply is stored as it came, so that a second run asks only for what is missing and another
reading of the replies (a parser variant) needs no judge at all. A judgement belongs to one judge,
one rubric and one picture; those of others in the same file are left alone.
"""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from unigame.data.images import MISSING, CorruptImage, read_file
from unigame.evaluation.scorers.judges import Judge, JudgeRequest, JudgeUnavailable, Rubric
from unigame.evaluation.store import JsonlStore

Read = Callable[[str], Mapping[str, float] | None]
"""Scores in a reply; None: the reply cannot be read."""

UNREADABLE = "judge: unreadable reply"
GAVE_UP = "judge: gave up on it, nothing worked"


@dataclass(frozen=True)
class Retry:
    """How often and how patiently a judge is asked again.

    Attributes:
        attempts: calls that may fail, for one picture, before it counts as unscored.
        reply_attempts: replies that may be unreadable before it does, as in the references.
        first_wait: seconds; doubled after each failure, and up to as much again is added at
            random, so that requests that failed together do not come back together.
        longest_wait: no more than this. A judge that asks for a longer wait (``Retry-After``) is
            not asked again about that picture in this run.
        give_up_after: pictures in a row for which every call failed in ways that should pass; the
            rest is then left for another run, because the judge is down.
        sleep: waits some seconds; None: really waits, and ends at once when the run is stopped.
    """

    attempts: int = 6
    reply_attempts: int = 3
    first_wait: float = 1.0
    longest_wait: float = 120.0
    give_up_after: int = 10
    sleep: Callable[[float], object] | None = None

    def wait(self, failures: int, asked_for: float | None = None) -> float:
        """Seconds before the next call, after so many failed ones."""
        wait = min(self.first_wait * 2 ** (failures - 1), self.longest_wait)
        return max(min(wait * (1 + random.random()), self.longest_wait), asked_for or 0.0)


@dataclass(frozen=True)
class Judgement:
    """What came of one picture: scores, or the reason why there are none."""

    scores: Mapping[str, float] | None
    reason: str = ""


@dataclass
class _Outcome:
    """All that was tried for one picture."""

    request: JudgeRequest
    replies: list[str] = field(default_factory=list)
    calls: int = 0
    reason: str = ""
    unreachable: bool = False
    """No call was answered, although each might have been."""


def collect(
    judge: Judge,
    requests: Sequence[JudgeRequest],
    rubric: Rubric,
    read: Read,
    store: JsonlStore,
    *,
    retry: Retry | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Judgement]:
    """A judgement for every request, by its id; asks for those that the store does not have.

    Args:
        judge: who is asked.
        requests: the pictures; ids are unique.
        rubric: what the judge is told.
        read: finds the scores in a reply.
        store: where replies are kept.
        retry: how failures are met; None: the defaults.
        progress: called with the number of pictures done and their total.

    Raises:
        UserError: no request can succeed (a wrong key, an unknown model).
    """
    found: dict[str, Judgement] = {}
    keys: dict[str, str] = {}
    for request in requests:
        try:
            keys[request.id] = _key(judge, rubric, request)
        except CorruptImage:
            found[request.id] = Judgement(None, MISSING)
            continue
        stored = store.get(keys[request.id])
        if stored and (scores := _first_readable(stored["replies"], read)):
            found[request.id] = Judgement(scores)
    pending = [request for request in requests if request.id not in found]
    if progress:
        progress(len(found), len(requests))
    for batch in _Run(judge, rubric, read, retry or Retry()).outcomes(pending):
        rows = []
        for outcome in batch:
            id = outcome.request.id
            scores = _first_readable(outcome.replies, read)
            found[id] = Judgement(scores, "" if scores else outcome.reason)
            if outcome.calls:
                # With what earlier runs were told, which another parser may be able to read.
                earlier = store.get(keys[id], {}).get("replies", [])
                rows.append(_row(keys[id], outcome, judge, rubric, found[id], earlier))
        store.append(*rows)
        if progress:
            progress(len(found), len(requests))
    return {request.id: found[request.id] for request in requests}


def _key(judge: Judge, rubric: Rubric, request: JudgeRequest) -> str:
    """What a judgement belongs to."""
    picture = hashlib.sha256(read_file(request.picture)).hexdigest()
    asked = [judge.name, rubric.sha256, picture, request.prompt, request.explanation]
    return f"{request.id}@{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]}"


def _first_readable(replies: Sequence[str], read: Read) -> Mapping[str, float] | None:
    return next((scores for reply in replies if (scores := read(reply))), None)


def _row(
    key: str,
    outcome: _Outcome,
    judge: Judge,
    rubric: Rubric,
    judgement: Judgement,
    earlier: Sequence[str],
) -> dict[str, Any]:
    return {
        "id": key,
        "item": outcome.request.id,
        "judge": judge.name,
        "rubric": rubric.sha256,
        "replies": [*earlier, *outcome.replies],
        "calls": outcome.calls,
        "scores": dict(judgement.scores) if judgement.scores else None,
        "reason": judgement.reason,
    }


class _Run:
    """One pass over the pictures that are missing, from several threads at once."""

    def __init__(self, judge: Judge, rubric: Rubric, read: Read, retry: Retry) -> None:
        self.judge, self.rubric, self.read, self.retry = judge, rubric, read, retry
        self.stop = threading.Event()
        self.unreachable_in_a_row = 0

    def outcomes(self, pending: Sequence[JudgeRequest]) -> Iterator[list[_Outcome]]:
        """One outcome per request: those of a batch together, as batches are finished."""
        size = self.judge.batch_size
        batches = iter([pending[at : at + size] for at in range(0, len(pending), size)])
        with ThreadPoolExecutor(self.judge.in_flight, "judge") as pool:
            try:
                running = self._submit(pool, batches, self.judge.in_flight)
                while running:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in sorted(done, key=lambda future: future.exception() is not None):
                        yield self._counted(future.result())  # replies first, then errors
                    running |= self._submit(pool, batches, len(done))
            finally:
                # An error, Ctrl-C, or a caller that wants no more: wake who waits to ask again.
                self.stop.set()

    def _submit(
        self, pool: ThreadPoolExecutor, batches: Iterator[Sequence[JudgeRequest]], count: int
    ) -> set[Future[list[_Outcome]]]:
        return {pool.submit(self._judge, batch) for batch in islice(batches, count)}

    def _counted(self, outcomes: list[_Outcome]) -> list[_Outcome]:
        """The same outcomes; stops asking once too many in a row found the judge unreachable."""
        for outcome in outcomes:
            if outcome.unreachable:
                self.unreachable_in_a_row += 1
            elif outcome.replies:
                self.unreachable_in_a_row = 0
        if self.unreachable_in_a_row >= self.retry.give_up_after:
            self.stop.set()
        return outcomes

    def _judge(self, batch: Sequence[JudgeRequest]) -> list[_Outcome]:
        """A batch in one call; what is left without scores, alone."""
        outcomes = [_Outcome(request) for request in batch]
        if len(batch) > 1 and not self.stop.is_set():
            try:
                replies = self.judge.replies(batch, self.rubric)
            except JudgeUnavailable:
                pass  # perhaps because of one of them
            else:
                for outcome, reply in zip(outcomes, replies, strict=True):
                    outcome.replies, outcome.calls = [reply], 1
        for outcome in outcomes:
            self._judge_alone(outcome)
        return outcomes

    def _judge_alone(self, outcome: _Outcome) -> None:
        """Ask until a reply can be read, or the patience for this picture is at an end."""
        request, failures = outcome.request, 0
        while not self._settled(outcome):
            if self.stop.is_set():
                outcome.reason = outcome.reason or GAVE_UP
                return
            outcome.calls += 1
            try:
                reply = self.judge.reply(
                    request.prompt, request.explanation, request.picture, self.rubric
                )
            except JudgeUnavailable as error:
                failures += 1
                outcome.reason = error.reason
                wait = self.retry.wait(failures, error.retry_after)
                too_long = wait > self.retry.longest_wait
                if not error.retryable:
                    return  # this picture's fault, or the request's; others may fare better
                if too_long or failures >= self.retry.attempts:
                    outcome.unreachable = not outcome.replies
                    return
                self._sleep(wait)
            else:
                outcome.replies.append(reply)
                if not self._settled(outcome):
                    self._sleep(self.retry.wait(len(outcome.replies)))

    def _settled(self, outcome: _Outcome) -> bool:
        if not outcome.replies:
            return False
        if self.read(outcome.replies[-1]):
            return True
        outcome.reason = UNREADABLE
        enough = 1 if self.judge.deterministic else self.retry.reply_attempts
        return len(outcome.replies) >= enough

    def _sleep(self, seconds: float) -> None:
        (self.retry.sleep or self.stop.wait)(seconds)
