"""An endpoint that writes questions and fails in the middle of a run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.evaluation.scorers.judge_server import Answer, JudgeServer, judge_server
from unigame.errors import UserError
from unigame.evaluation.scorers import written_openai
from unigame.methods.drawings.questions import KeptQuestions, build_maker

GOOD = "Question: Is it red?\nAnswer: yes"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(written_openai, "FIRST_WAIT", 0.0)


def asked(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"])


def written(body: dict[str, Any]) -> Answer:
    """Half of the replies are questions: of the template for yes and no."""
    return Answer(content=GOOD if "yes or no" in asked(body) else "hm")


def made(server: JudgeServer) -> Any:
    return build_maker("endpoint", None, SimpleNamespace(endpoint=f"m@{server.url}"))


def refuse(status: int, said: str = "no") -> Answer:
    return Answer(status, body=json.dumps({"error": {"message": said}}).encode())


@pytest.mark.parametrize("down", [Answer(503), Answer(drop=True), Answer(429)])
def test_an_endpoint_that_is_restarted_is_waited_for(
    down: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    away = 1 + 7  # the probe, and tries enough for a minute and a half

    with judge_server(lambda n, body: down if 0 < n < away else written(body)) as server:
        maker = made(server)
        maker.client.in_flight = 1
        assert maker(["a red ball"]) == [[("Is it red?", "yes")]]
    said = [line for line in caplog.messages if "gives no reply" in line]
    assert len(said) == 1 and "2 min" in said[0]


def test_it_is_waited_for_two_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(written_openai, "FIRST_WAIT", 1.0)
    with judge_server(lambda n, body: Answer(500) if n else written(body)) as server:
        maker = made(server)
        call = written_openai._Call(written_openai.TRIES)
        monkeypatch.setattr(call.over, "wait", slept.append)
        with pytest.raises(UserError, match="HTTP 500"):
            maker._reply(call, "a text")
    assert 110 <= sum(slept) <= 130


def test_who_waits_for_the_endpoint_does_not_hold_up_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One text is refused for good while another one waits to be asked again."""
    monkeypatch.setattr(written_openai, "FIRST_WAIT", 60.0)

    def answer(number: int, body: dict[str, Any]) -> Answer:
        if not number:
            return written(body)
        return Answer(503) if "later" in asked(body) else refuse(401)

    with judge_server(answer) as server:
        maker, begun = made(server), time.monotonic()
        with pytest.raises(UserError, match="401"):
            maker._replies(["a text", "a later text"])
    assert time.monotonic() - begun < 25


def test_while_it_is_away_for_longer_the_message_names_the_ways_on() -> None:
    with judge_server(lambda n, body: Answer(503) if n else written(body)) as server:
        maker = made(server)
        with pytest.raises(UserError, match=r"HTTP 503.*question_maker=rules.*resume_anyway=true"):
            maker(["a red ball"])


def test_what_was_paid_for_before_it_failed_is_kept(tmp_path: Path) -> None:
    captions = [f"a red ball number{number}" for number in range(40)]

    def failing(number: int, body: dict[str, Any]) -> Answer:
        return Answer(503) if "number35" in asked(body) else written(body)

    with judge_server(failing) as server, pytest.raises(UserError):
        KeptQuestions(made(server), tmp_path, "verify")(captions)
    with judge_server(lambda n, body: written(body)) as server:
        maker = made(server)
        maker.key = kept_key(tmp_path)  # another port is another endpoint
        kept = KeptQuestions(maker, tmp_path, "verify")
        assert len(kept.known) == 32
        assert kept(captions) == [[("Is it red?", "yes")]] * 40
        assert kept.unparsed == 40 * 1
        again = [body for body in server.requests if "number" in asked(body)]
        assert len(again) == 8 * 2


def kept_key(folder: Path) -> str:
    first = (folder / "verify_questions.jsonl").read_text(encoding="utf-8").splitlines()[0]
    return str(json.loads(first)["maker"])


@pytest.mark.parametrize("status", [400, 403, 413, 422])
def test_a_text_that_is_refused_counts_as_unparsed(
    tmp_path: Path, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(number: int, body: dict[str, Any]) -> Answer:
        return refuse(status, "content filter") if "gun" in asked(body) else written(body)

    captions = ["a red ball", "a gun", "a cat"]
    with judge_server(answer) as server:
        kept = KeptQuestions(made(server), tmp_path, "verify")
        pair = ("Is it red?", "yes")
        assert kept(captions) == [[pair], [], [pair]]
    assert [kept.failed[caption] for caption in captions] == [1, 2, 1]
    assert kept.unparsed == 4
    assert len([line for line in caplog.messages if "counts as unparsed" in line]) == 1


@pytest.mark.parametrize("status", [401, 402, 404, 302])
def test_an_endpoint_that_takes_nothing_any_more_ends_the_run(tmp_path: Path, status: int) -> None:
    """Else every caption would be written down as one without questions."""
    with judge_server(lambda n, body: refuse(status) if n else written(body)) as server:
        kept = KeptQuestions(made(server), tmp_path, "verify")
        with pytest.raises(UserError, match=str(status)):
            kept(["a red ball"])
    assert not kept.file.exists() and not kept.known


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_an_endpoint_that_refuses_from_the_beginning_is_an_error(status: int) -> None:
    with judge_server(refuse(status)) as server, pytest.raises(UserError, match=str(status)):
        made(server)
    assert len(server.requests) == 1


def test_one_that_is_not_there_as_a_run_begins_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with judge_server(Answer(503)) as server, pytest.raises(UserError, match="see that it is up"):
        made(server)
    assert len(server.requests) == written_openai.FIRST_TRIES


def test_a_server_that_hangs_is_not_asked_nine_times(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100_000, 200))
    monkeypatch.setattr(written_openai, "monotonic", lambda: float(next(clock)))
    with judge_server(lambda n, body: Answer(504) if n else written(body)) as server:
        maker = made(server)
        with pytest.raises(UserError):
            maker._replies(["a text"])
    assert len(server.requests) == 1 + written_openai.FIRST_TRIES
