"""A judge endpoint that answers 429, 500, garbage, or nothing at all."""

from __future__ import annotations

import base64
import json
import threading
import time
from email.utils import formatdate
from urllib.parse import quote

import pytest
from PIL import Image

from tests.evaluation.scorers.judge_server import GOOD, Answer, judge_server, text_of
from unigame.errors import UserError
from unigame.evaluation.scorers.judge_openai import KEY_VARIABLE, LARGEST_REPLY, OpenAIJudge
from unigame.evaluation.scorers.judges import JudgeRequest, Rubric, parse_judge
from unigame.evaluation.scorers.judging import GAVE_UP, UNREADABLE, Retry, collect
from unigame.evaluation.store import JsonlStore
from unigame.evaluation.tasks.wise.rules import read_official, usable

KEY = "sk-secret-of-the-test"


def read(reply):
    scores = read_official(reply)
    return scores if usable(scores) else None


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, KEY)


class Bench:
    """Some pictures, a store, and a clock that only writes down how long it was to sleep."""

    def __init__(self, folder, count=3):
        self.slept = []
        self.store = folder / "judgements.jsonl"
        self.requests = []
        for i in range(count):
            picture = folder / f"{i}.png"
            Image.new("RGB", (4, 4), (i, 0, 0)).save(picture)
            self.requests.append(JudgeRequest(str(i), f"prompt {i}", f"note {i}", picture))

    def run(self, server, rubric=None, model="m", in_flight=1, timeout=5.0, reader=read, **retry):
        retry.setdefault("sleep", self.slept.append)
        judge = OpenAIJudge(model, server.url, timeout=timeout, in_flight=in_flight)
        store = JsonlStore(self.store)
        return collect(
            judge, self.requests, rubric or Rubric(), reader, store, retry=Retry(**retry)
        )

    def rows(self):
        return [json.loads(line) for line in self.store.read_text().splitlines()]


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_a_request_holds_rubric_picture_and_key(bench):
    with judge_server(Answer()) as server:
        found = bench.run(server)
    assert found["0"].scores == {"consistency": 2, "realism": 1, "aesthetic_quality": 1}
    body, headers = server.requests[0], server.headers[0]
    assert body["path"] == "/v1/chat/completions"
    assert (body["model"], body["temperature"]) == ("m", 0)
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert "Description: prompt 0\nNote: note 0\n" in text_of(body)
    url = body["messages"][0]["content"][1]["image_url"]["url"]
    assert url.startswith("data:image/png;base64,")
    assert base64.b64decode(url.partition(",")[2]) == bench.requests[0].picture.read_bytes()


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (Answer(429), "judge: HTTP 429"),
        (Answer(500), "judge: HTTP 500"),
        (Answer(503), "judge: HTTP 503"),
        (Answer(drop=True), "judge: connection lost"),
        (Answer(body=b"<html>garbage</html>"), "judge: not a chat completion"),
        (Answer(body=b'{"choices": []}'), "judge: not a chat completion"),
        (Answer(content="I cannot see."), UNREADABLE),
        (Answer(content=None), UNREADABLE),
    ],
)
def test_failures_are_retried_with_back_off_and_then_counted(bench, failure, reason):
    with judge_server(failure) as server:
        found = bench.run(server)
    assert {id: j.reason for id, j in found.items()} == dict.fromkeys("012", reason)
    assert all(j.scores is None for j in found.values())
    calls = 3 if reason == UNREADABLE else 6
    assert len(server.requests) == 3 * calls
    # An unreadable reply is asked for again too; after the last failure nobody waits.
    first = bench.slept[: calls - 1]
    assert len(bench.slept) == 3 * (calls - 1)
    for i, wait in enumerate(first):
        assert 2**i <= wait <= 2 ** (i + 1)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(401), "does not take the key"),
        (Answer(404), "no such model or address"),
        (Answer(400, body=b"no images"), "HTTP 400 .no images.*takes pictures"),
    ],
)
def test_a_judge_that_cannot_work_is_found_before_anything_is_drawn(answer, said, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with judge_server(answer) as server, pytest.raises(UserError, match=said):
        OpenAIJudge("m", server.url).check()


def test_a_judge_that_is_away_is_warned_of(monkeypatch, caplog):
    """What was judged before is read without it."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with judge_server(Answer(drop=True)) as server:
        OpenAIJudge("m", server.url).check()
    (line,) = caplog.messages
    assert "judges no picture now (connection lost)" in line


@pytest.mark.parametrize("status", [200, 429, 503])
def test_a_judge_that_answers_or_is_busy_is_taken(status):
    with judge_server(Answer(status)) as server:
        OpenAIJudge("m", server.url).check()
    (request,) = server.requests
    assert request["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/png")


def test_a_failure_that_passes_costs_nothing_but_time(bench):
    def answer(number, body):
        return [Answer(429), Answer(500), Answer(content="hm"), Answer()][number % 4]

    with judge_server(answer) as server:
        found = bench.run(server)
    assert all(j.scores for j in found.values())
    assert len(server.requests) == 12
    assert [row["calls"] for row in bench.rows()] == [4, 4, 4]
    assert bench.rows()[0]["replies"] == ["hm", GOOD]


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured(bench, as_date):
    def answer(number, body):
        value = formatdate(time.time() + 40, usegmt=True) if as_date else "40"
        return Answer() if number else Answer(429, headers={"Retry-After": value})

    with judge_server(answer) as server:
        found = bench.run(server)
    assert all(j.scores for j in found.values())
    assert len(bench.slept) == 1
    assert 38 <= bench.slept[0] <= 40


def test_a_judge_that_wants_an_hour_is_not_waited_for(bench):
    with judge_server(Answer(429, headers={"Retry-After": "3600"})) as server:
        found = bench.run(server)
    assert {j.reason for j in found.values()} == {"judge: HTTP 429"}
    assert len(server.requests) == 3
    assert bench.slept == []


def test_a_server_that_says_nothing_times_out(bench):
    with judge_server(Answer(hang=True)) as server:
        found = bench.run(server, timeout=0.5, attempts=2)
        assert {j.reason for j in found.values()} == {"judge: no reply within 0.5 s"}
        assert len(server.requests) == 6


def test_no_server_at_all(bench):
    with judge_server(Answer()) as server:
        pass
    found = bench.run(server)
    assert {j.reason for j in found.values()} == {"judge: no connection"}


def test_a_second_run_asks_only_for_what_is_missing(bench):
    with judge_server(
        lambda number, body: Answer(500) if "prompt 1" in text_of(body) else Answer()
    ) as server:
        first = bench.run(server)
    assert [id for id, j in first.items() if not j.scores] == ["1"]
    with judge_server(Answer()) as server:
        second = bench.run(server)
    assert [text_of(body).count("prompt 1") for body in server.requests] == [1]
    assert all(j.scores for j in second.values())
    with judge_server(Answer(500)) as server:
        assert bench.run(server) != {}
    assert server.requests == []


def test_another_reading_of_stored_replies_asks_nobody(bench):
    with judge_server(Answer(content="no idea")) as server:
        bench.run(server)
    with judge_server(Answer(500)) as server:
        bench.run(server)  # asks again, in vain; what was said before is kept
        server.requests.clear()
        found = bench.run(server, reader=lambda reply: {"idea": 0.0})
        assert server.requests == []
    assert found["2"].scores == {"idea": 0.0}


def test_judgements_of_others_are_not_mixed_in(bench):
    with judge_server(Answer()) as server:
        bench.run(server)
        bench.run(server, rubric=Rubric("{prompt} {explanation}", "mine"))
        assert len(server.requests) == 6, "another rubric"
        Image.new("RGB", (4, 4), (99, 0, 0)).save(bench.requests[0].picture)
        bench.run(server)
        assert len(server.requests) == 7, "another picture"
        bench.run(server, model="other")
        assert len(server.requests) == 10, "another judge"
        Image.new("RGB", (4, 4), (0, 0, 0)).save(bench.requests[0].picture)
        bench.run(server)
        assert len(server.requests) == 10, "the first judgements are still there"


def test_a_missing_picture_is_not_sent(bench):
    bench.requests[1].picture.unlink()
    with judge_server(Answer()) as server:
        found = bench.run(server)
    assert found["1"].reason == "missing image"
    assert len(server.requests) == 2
    assert len(bench.rows()) == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_no_request_can_mend_ends_the_run(tmp_path, status):
    bench = Bench(tmp_path, count=40)
    said = json.dumps({"error": {"message": f"no model m for {KEY}"}}).encode()
    with judge_server(Answer(status, body=said)) as server:
        with pytest.raises(UserError, match=str(status)) as caught:
            bench.run(server, in_flight=4)
    assert len(server.requests) <= 8
    assert KEY not in str(caught.value)
    assert KEY_VARIABLE in str(caught.value) or "no model m for ***" in str(caught.value)


def test_a_refused_picture_is_not_asked_about_again(bench):
    said = json.dumps({"error": {"message": f"unsafe picture, says {KEY}"}}).encode()
    with judge_server(
        lambda number, body: Answer(400, body=said) if "prompt 1" in text_of(body) else Answer()
    ) as server:
        found = bench.run(server)
    assert len(server.requests) == 3
    assert found["1"].reason == "judge: HTTP 400 (unsafe picture, says ***)"
    assert KEY not in bench.store.read_text()


def test_a_judge_that_is_down_is_left_alone(tmp_path):
    bench = Bench(tmp_path, count=40)
    with judge_server(Answer(500)) as server:
        found = bench.run(server, attempts=2, give_up_after=5)
    assert len(server.requests) == 10
    reasons = [j.reason for j in found.values()]
    assert (reasons.count("judge: HTTP 500"), reasons.count(GAVE_UP)) == (5, 35)
    with judge_server(Answer()) as server:
        again = bench.run(server)
    assert len(server.requests) == 40
    assert all(j.scores for j in again.values())


def test_refusals_do_not_mean_that_the_judge_is_down(tmp_path):
    bench = Bench(tmp_path, count=8)
    with judge_server(Answer(400, body=b"too large")) as server:
        found = bench.run(server, give_up_after=2)
    assert len(server.requests) == 8
    assert {j.reason for j in found.values()} == {"judge: HTTP 400 (too large)"}


def test_one_answer_in_between_shows_that_the_judge_is_up(tmp_path):
    bench = Bench(tmp_path, count=12)
    with judge_server(lambda number, body: Answer() if number % 4 == 3 else Answer(500)) as server:
        found = bench.run(server, attempts=1, give_up_after=4)
    assert len(server.requests) == 12
    assert sum(bool(j.scores) for j in found.values()) == 3


def test_several_requests_are_in_flight(tmp_path):
    bench = Bench(tmp_path, count=4)
    together = threading.Barrier(4, timeout=5)

    class Slow(OpenAIJudge):
        def reply(self, *args):
            together.wait()  # breaks, and fails the test, unless all four are asked at once
            return super().reply(*args)

    with judge_server(Answer()) as server:
        judge = Slow("m", server.url, in_flight=4)
        found = collect(judge, bench.requests, Rubric(), read, JsonlStore(bench.store))
    assert list(found) == ["0", "1", "2", "3"]
    assert all(j.scores for j in found.values())


def test_newer_models_take_other_options(bench):
    def answer(number, body):
        if "max_tokens" in body:
            said = "'max_tokens' is not supported; use 'max_completion_tokens' instead"
        elif "temperature" in body:
            said = "'temperature' does not support 0 with this model"
        else:
            return Answer()
        return Answer(400, body=json.dumps({"error": {"message": said}}).encode())

    with judge_server(answer) as server:
        judge = OpenAIJudge("m", server.url, in_flight=1)
        store = JsonlStore(bench.store)
        retry = Retry(sleep=bench.slept.append)
        found = collect(judge, bench.requests, Rubric(), read, store, retry=retry)
    assert all(j.scores for j in found.values())
    assert len(server.requests) == 5
    assert judge.settings() == {"base_url": server.url, "max_completion_tokens": 512}


def test_content_in_parts(bench):
    parts = [{"type": "text", "text": GOOD[:9]}, {"type": "text", "text": GOOD[9:]}]
    body = json.dumps({"choices": [{"message": {"content": parts}}]}).encode()
    with judge_server(Answer(body=body)) as server:
        assert bench.run(server)["0"].scores


# ---- what comes back is a stranger's text --------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_never_followed_and_never_counts_as_a_judgement(bench, status):
    with judge_server(Answer()) as elsewhere:
        there = {"Location": f"{elsewhere.url}/chat/completions?key={KEY}"}
        with judge_server(Answer(status, headers=there)) as server:
            found = bench.run(server)
    assert elsewhere.requests == [] and elsewhere.got == 0
    assert all(j.scores is None and str(status) in j.reason for j in found.values())
    assert elsewhere.url.removesuffix("/v1") in found["0"].reason
    assert KEY not in bench.store.read_text()


@pytest.mark.parametrize("location", ["", "/elsewhere", "http://[odd", "file:///etc/passwd"])
def test_a_redirect_to_nowhere_is_a_failed_request(bench, location):
    with judge_server(Answer(302, headers={"Location": location})) as server:
        found = bench.run(server)
    assert {j.scores for j in found.values()} == {None}
    assert len(server.requests) == 3


def flood():
    yield b"HTTP/1.1 200 OK\r\n\r\n"
    while True:
        yield b"x" * 65_536


def chunked_flood():
    yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    while True:
        yield b"10000\r\n" + b"x" * 65_536 + b"\r\n"


def announced_flood():
    yield b"HTTP/1.1 200 OK\r\nContent-Length: 3000000000\r\n\r\n"
    while True:
        yield b"x" * 65_536


def error_flood():
    yield b"HTTP/1.1 400 no\r\n\r\n"
    while True:
        yield b"x" * 65_536


@pytest.mark.parametrize("chunks", [flood, chunked_flood, announced_flood, error_flood])
def test_a_reply_without_end_is_not_read_to_its_end(bench, chunks):
    bench.requests = bench.requests[:1]
    with judge_server(Answer(chunks=chunks)) as server:
        found = bench.run(server, timeout=60)
    assert found["0"].scores is None and len(server.requests) == 1
    # What lies in the sockets' buffers comes on top.
    assert server.sent < LARGEST_REPLY + (16 << 20)


def slow_body():
    yield b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
    while True:
        yield b" "


def slow_header():
    yield b"HTTP/1.1 200 OK\r\nX-Slow: "
    while True:
        yield b"x"


@pytest.mark.parametrize("chunks", [slow_body, slow_header])
def test_a_server_that_trickles_is_left_after_the_whole_time(bench, chunks):
    bench.requests = bench.requests[:1]
    with judge_server(Answer(chunks=chunks, pause=0.01)) as server:
        found = bench.run(server, timeout=0.2, attempts=1)
    assert found["0"].reason == "judge: no reply within 0.2 s"


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"\xff\xfe\x00",
        b'{"choices": 1e999}',
        b'{"choices": {"0": 1}}',
        b"null",
    ],
)
@pytest.mark.parametrize("status", [200, 400, 500])
def test_json_that_no_one_means_is_a_failed_request(bench, body, status):
    with judge_server(Answer(status, body=body)) as server:
        found = bench.run(server, attempts=1)
    assert all(j.scores is None and j.reason.startswith("judge: ") for j in found.values())


def test_half_a_character_in_a_reply_is_stored_and_read_again(bench):
    broken = json.dumps({"choices": [{"message": {"content": f"\ud800 {GOOD} \udfff"}}]})
    with judge_server(Answer(body=broken.encode())) as server:
        found = bench.run(server)
        again = bench.run(server)
    assert all(j.scores for j in found.values()) and found == again
    assert len(server.requests) == 3
    bench.store.read_bytes().decode("utf-8")


@pytest.mark.parametrize("form", ["{key}", "Bearer {key}", '"{key}"', "https://h/?k={quoted}"])
@pytest.mark.parametrize("secret", [KEY, "sk/with+odd=signs"])
def test_the_key_is_neither_stored_nor_shown_where_a_server_repeats_it(
    bench, monkeypatch, form, secret
):
    monkeypatch.setenv(KEY_VARIABLE, secret)
    echoed = form.format(key=secret, quoted=quote(secret, safe=""))

    def answer(number, body):
        said = json.dumps({"error": {"message": echoed}}).encode()
        other = json.dumps({"detail": echoed}).replace("/", "\\/").encode()
        return [
            Answer(content=f"{echoed} {GOOD}"),
            Answer(400, body=said),
            Answer(400, body=other),
        ][number]

    with judge_server(answer) as server:
        found = bench.run(server)
    assert found["0"].scores
    shown = bench.store.read_text() + "".join(j.reason for j in found.values())
    assert secret not in shown and quote(secret, safe="") not in shown and "***" in shown


@pytest.mark.parametrize("secret", ["sk-two\nlines", "sk-\u201cquoted\u201d", "sk with blanks"])
def test_a_key_that_no_header_takes_is_named_by_its_variable_alone(monkeypatch, secret):
    monkeypatch.setenv(KEY_VARIABLE, secret)
    with pytest.raises(UserError, match=KEY_VARIABLE) as caught:
        OpenAIJudge("m", "http://localhost/v1")
    assert secret not in str(caught.value) and "sk" not in str(caught.value)


def test_a_key_in_the_address_or_the_model_is_refused_without_showing_it():
    for model, address in (("m", f"http://host/{KEY}/v1"), (KEY, "http://host/v1")):
        with pytest.raises(UserError, match=KEY_VARIABLE) as caught:
            OpenAIJudge(model, address)
        assert KEY not in str(caught.value)


def test_a_line_break_behind_the_key_is_no_part_of_it(bench, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, f"{KEY}\n")
    with judge_server(Answer()) as server:
        assert bench.run(server)["0"].scores
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_progress_counts_what_was_there_already(bench):
    seen = []
    with judge_server(Answer()) as server:
        bench.run(server)
        judge = OpenAIJudge("m", server.url)
        bench.requests[0].picture.write_bytes(bench.requests[1].picture.read_bytes())
        collect(
            judge,
            bench.requests,
            Rubric(),
            read,
            JsonlStore(bench.store),
            progress=lambda done, total: seen.append((done, total)),
        )
    assert seen == [(2, 3), (3, 3)]


# ---- spelling ------------------------------------------------------------------------------------


def test_an_endpoint_is_spelled_model_at_url():
    judge = parse_judge("openai:Qwen/Qwen2.5-VL-72B@https://host:8000/v1/")
    assert isinstance(judge, OpenAIJudge)
    assert judge.name == "openai:Qwen/Qwen2.5-VL-72B"
    assert judge.settings()["base_url"] == "https://host:8000/v1"
    assert parse_judge("openai:gpt-4o").settings()["base_url"] == "https://api.openai.com/v1"
    assert KEY not in repr(judge.settings()) + judge.name


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gpt-4o", "hf:ID"),
        ("hf:", "hf:ID"),
        ("claude:opus", "openai:MODEL@BASE_URL"),
        ("openai:@http://localhost/v1", "a model and an address"),
        ("openai:gpt-4o@localhost:8000", "a model and an address"),
        ("openai:m@http://", "http://localhost:8000/v1"),
        ("openai:m@http://me:pw@host/v1", KEY_VARIABLE),
        ("openai:m@http://host/v1?key=1", KEY_VARIABLE),
        ("openai:m@http://host/v1#pw", KEY_VARIABLE),
        ("openai:a@b@http://me:pw@host/v1", "a model and an address"),
        ("openai:m@http://[::1", "malformed"),
        ("openai:m@http://host:port/v1", "malformed"),
        ("openai:m@http://ho st/v1", "http://localhost:8000/v1"),
        ("openai:m@http://h\u00f6st/v1", "http://localhost:8000/v1"),
        ("hf:not-a-folder-or-hub-id", "no such folder"),
    ],
)
def test_misspelled_judges(text, says):
    with pytest.raises(UserError, match=says) as caught:
        parse_judge(text)
    assert "pw" not in str(caught.value)


def test_openai_itself_needs_a_key(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(UserError, match=KEY_VARIABLE):
        parse_judge("openai:gpt-4o")
    assert parse_judge("openai:m@http://localhost:8000/v1").name == "openai:m"


# ---- rubric --------------------------------------------------------------------------------------


def test_a_rubric_from_a_file(tmp_path):
    file = tmp_path / "official.txt"
    file.write_text('{"P": "{prompt}"} {explanation} {other}')
    rubric = Rubric.from_file(file)
    assert rubric.fill("a {explanation}", "b") == '{"P": "a {explanation}"} b {other}'
    assert (rubric.name, len(rubric.sha256)) == ("official.txt", 64)
    assert rubric.sha256 != Rubric().sha256


@pytest.mark.parametrize(
    ("text", "says"), [("{prompt}", "no {explanation}"), ("x", "no {prompt} and no {explanation}")]
)
def test_a_rubric_without_its_slots(tmp_path, text, says):
    file = tmp_path / "r.txt"
    file.write_text(text)
    with pytest.raises(UserError, match=says):
        Rubric.from_file(file)


def test_a_rubric_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot read the rubric"):
        Rubric.from_file(tmp_path / "none.txt")


def test_our_rubric_does_not_answer_itself():
    """A judge that repeats its instructions must not be read as having scored."""
    assert read(Rubric().fill("a", "b")) is None
