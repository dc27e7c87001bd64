"""Questions from captions: by rules, written by a model, kept in a file; and what agrees."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.evaluation.scorers.judge_server import Answer, judge_server
from unigame.errors import UserError
from unigame.methods.drawings.phrases import PhraseQuestions, noun_phrases, swapped
from unigame.methods.drawings.questions import KeptQuestions, agrees, build_maker, held_out
from unigame.methods.drawings.written import OPEN, YES_NO, WrittenQuestions, parse

WORLD = "northwest red disc, south blue cross"


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        ("A photo of a red ball on two wooden boxes.", ["red ball", "two wooden boxes"]),
        ("a dog running across the wet grass, and an old man", ["dog", "wet grass", "old man"]),
        ("there is a tall building next to a king", ["tall building", "king"]),
        ("the picture", []),
        ("a red ball and a red ball", ["red ball"]),
        ("a plate with no fork", ["plate"]),
        ("a street without cars, and people", ["street"]),
        ("a man who isn\u2019t wearing a hat. A dog", ["man", "dog"]),
        ("the woman\u2019s hat", ["woman's hat"]),
        ("a dog - a well-fed cat \u2014 a cow", ["dog", "well-fed cat", "cow"]),
    ],
)
def test_noun_phrases(caption: str, phrases: list[str]) -> None:
    assert noun_phrases(caption) == phrases


def test_a_model_that_always_says_yes_confirms_nothing() -> None:
    (asked,) = PhraseQuestions()(["a red ball on two blue boxes"])
    assert asked == [
        ("is there a red ball?", "yes"),
        ("are there two blue boxes?", "yes"),
        ("are there two red boxes?", "no"),
        ("is there a blue ball?", "no"),
    ]
    assert swapped(["red ball", "blue ball"]) == [], "nothing that may be there is denied"
    assert swapped(["red ball", "red box"]) == []


@pytest.mark.parametrize(
    ("phrases", "denied"),
    [
        (["wooden table", "large wooden bowl"], []),
        (["blue shirt", "dark blue umbrella"], []),
        (["red ball", "two wooden boxes"], []),  # of wood, and red
        (["brown chair", "wooden table"], []),
        (["busy street", "rainy evening"], []),
        (["large red ball", "small bench"], []),
        (["gray cat", "grey dog"], []),
        (["black and white dog", "white cat"], []),
        (["black and white dog", "brown cat"], ["black and white cat", "brown dog"]),
        (["small ball", "red ball", "blue box"], ["red box"]),
        (["big red bus", "small blue car"], ["small red car", "big blue bus"]),
        (
            ["red glass vase", "blue metal box"],
            ["red metal box", "blue glass vase", "blue glass box", "red metal vase"],
        ),
        (["ball", "red ball", "blue box"], ["red box"]),
        (["three red boxes", "blue ball", "red box"], ["red ball", "three blue boxes", "blue box"]),
    ],
)
def test_what_may_be_there_is_not_denied(phrases: list[str], denied: list[str]) -> None:
    """A large wooden bowl is a wooden bowl; a ball without a description may be a blue one."""
    assert swapped(phrases) == denied


def test_rules_ask_the_worlds_captions_in_its_own_words() -> None:
    maker: Any = build_maker("rules", None, None)
    world, style, half, other = maker([WORLD, f"faint: {WORLD}", f"{WORLD}, a cat", "a red ball"])
    assert world == style and len(world) == 1 + 2 * 3
    assert ("how many shapes are there?", "2") in world
    assert ("what colour is the shape at south?", "blue") in world
    assert ("is there a red disc?", "yes") in world
    assert ("how many shapes are there?", "2") not in half, "half of a scene gives wrong counts"
    assert other == [("is there a red ball?", "yes")]
    old, general = maker.old([WORLD, "a red ball"], [1, 2])
    assert len(old) >= 5 and general == ["is there a red ball?"]
    assert maker.old([WORLD], [1]) == [old] != maker.old([WORLD], [5])


@pytest.mark.parametrize(
    ("reply", "answer", "same"),
    [
        ("Yes, there is one.", "yes", True),
        ("No.", "yes", False),
        ("not sure", "no", False),
        ("It is a red ball.", "red ball", True),
        ("red", "red ball", False),
        ("two", "2", True),
        ("There are two dogs.", "2", True),
        ("2 dogs", "two", True),
        ("two or three", "2", False),
        ("2, maybe 3", "2", False),
        ("two to three", "2", False),
        ("one of the three", "3", False),
        ("ten", "1", False),
        ("red or blue", "red", False),
        ("either red or blue", "blue", False),
        ("two hundred", "2", False),
        ("twenty two", "2", False),
        ("1 dog and 2 cats", "2", False),
        ("There are 2 cats", "two", True),
        ("red or blue", "red or blue", True),
        ("12", "2", False),
        ("The Red!", "red", True),
        ("red or blue or green or yellow or pink", "red", False),
        ("", "red", False),
        ("not red", "red", False),
        ("there is no red ball", "red ball", False),
        ("no hat", "no hat", True),
        ("It isn\u2019t a red ball", "red ball", False),
        ("There cannot be a red ball", "red ball", False),
        ("it can't be red", "red", False),
        ("none of them is red", "red", False),
        ("nothing", "nothing", True),
        ("none", "0", True),
        ("3.5", "3", False),
        ("3.5.", "3.5", True),
        ("1,000", "1000", True),
        ("Yes\u3002", "yes", True),
        ("yes\u2014there is", "yes", True),
        ("A", "a", True),
        ("(A)", "A", True),
        ("B", "A", False),
        ("", "A", False),
    ],
)
def test_a_reply_agrees_or_not(reply: str, answer: str, same: bool) -> None:
    assert agrees(reply, answer) is same


def test_numbers_up_to_ten_are_one_in_words_and_in_digits() -> None:
    words = "zero one two three four five six seven eight nine ten".split()
    for number, word in enumerate(words):
        assert agrees(word.capitalize() + ".", str(number)) and agrees(str(number), word)
        assert not agrees(word, str(number + 1)) and not agrees(str(number + 1), word)


@pytest.mark.parametrize(
    ("reply", "yes_no", "pair"),
    [
        ("Question: Is it red?\nAnswer: Yes", True, ("Is it red?", "yes")),
        ("question: What is it? answer: red ball.", False, ("What is it?", "red ball")),
        ("Question: Is it red?\nAnswer: maybe", True, None),
        ("Question: What is it?\nAnswer: no", False, None),
        ("Question: What?\nAnswer: a very long answer", False, None),
        ("Sure! Question: Is it red?\nAnswer: yes", True, None),
        ("Is it red?", True, None),
    ],
)
def test_replies_are_parsed_strictly(reply: str, yes_no: bool, pair: Any) -> None:
    assert parse(reply, yes_no) == pair


def _of_a_ball(texts: Any) -> list[str]:
    """Replies to both templates: a yes/no question, and an open one."""
    closed, open_one = "Question: Is it red?\nAnswer: yes", "Question: How many?\nAnswer: two"
    return [closed if "yes or no" in text else open_one for text in texts]


def test_open_questions_ask_for_a_word_and_the_file_says_so(tmp_path: Path) -> None:
    maker = KeptQuestions(WrittenQuestions(_of_a_ball), tmp_path, "verify")
    asked = [
        ("Is it red?", "yes"),
        ("How many? Answer the question using a single word or phrase.", "two"),
    ]
    assert maker(["a ball"]) == [asked] and maker(["boxes and a ball"]) == [asked], "each once"
    rows = [json.loads(line) for line in maker.file.read_text(encoding="utf-8").splitlines()]
    assert [row["questions"] for row in rows] == [[list(pair) for pair in asked]] * 2


def test_open_questions_of_before_are_asked_as_they_stand(tmp_path: Path) -> None:
    writer = WrittenQuestions(lambda texts: pytest.fail("they are known"), "a model")
    assert writer.key == "2ddc118466c1ac14", "as in files that were written before"
    row = {"caption": "a ball", "questions": [["How many?", "two"]], "maker": writer.key}
    file = tmp_path / "verify_questions.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert KeptQuestions(writer, tmp_path, "verify")(["a ball"]) == [[("How many?", "two")]]


def test_what_a_model_writes_is_kept_and_the_rest_counted(tmp_path: Path) -> None:
    texts: list[str] = []

    def reply(asked: Any) -> list[str]:
        texts.extend(asked)
        return ["Question: Is it red?\nAnswer: yes" if "yes or no" in t else "hm" for t in asked]

    maker = KeptQuestions(WrittenQuestions(reply), tmp_path, "verify")
    captions = ["a red ball and a cat", "a dog"]
    assert maker(captions) == [[("Is it red?", "yes")]] * 2
    assert maker.unparsed == 3
    assert texts[:2] == [
        template.format(caption=captions[0], phrase="red ball") for template in (YES_NO, OPEN)
    ]
    asked_once = len(texts)
    (tmp_path / "verify_questions_1.jsonl").write_text(
        '{"caption": "a cow", "questions": [["Moo?", "yes"]]}\nbroken', encoding="utf-8"
    )
    with maker.file.open("a", encoding="utf-8") as torn:
        torn.write('{"caption": "a run was killed as it wro')
    maker(["a white cat"])
    again = KeptQuestions(WrittenQuestions(reply), tmp_path, "verify", rank=1)
    assert "a white cat" in again.known, "its line is whole"
    asked_once = len(texts)
    assert again([*captions, "a cow"])[2] == [("Moo?", "yes")]
    assert len(texts) == asked_once, "what is known is not written again"
    assert again.unparsed == 3, "as of the run that wrote them"
    again(captions)
    assert again.unparsed == 3, "each caption once"
    other = '{"caption": "a cow", "questions": [["Milk?", "yes"]]}\n'
    (tmp_path / "verify_questions.jsonl").write_text(other, encoding="utf-8")
    own = KeptQuestions(WrittenQuestions(reply), tmp_path, "verify", rank=1)
    assert own(["a cow"]) == [[("Moo?", "yes")]], "a process goes on with its own words"


@pytest.mark.parametrize("number", ["null", '"x"', "Infinity"])
def test_a_line_that_was_mended_wrongly_is_made_again(tmp_path: Path, number: str) -> None:
    line = f'{{"caption": "a dog", "questions": [["Moo?", "yes"]], "unparsed": {number}}}'
    (tmp_path / "verify_questions.jsonl").write_text(line + "\n", encoding="utf-8")
    maker = KeptQuestions(WrittenQuestions(lambda texts: ["hm"] * len(texts)), tmp_path, "verify")
    assert maker(["a dog"]) == [[]] and maker.unparsed == 2


def test_of_a_maker_without_counts_by_caption_the_sum_is_kept(tmp_path: Path) -> None:
    class Foreign:
        unparsed = 0

        def __call__(self, captions: Any) -> Any:
            self.unparsed += 5
            return [[] for _ in captions]

    maker = KeptQuestions(Foreign(), tmp_path, "verify")
    maker(["a", "b"])
    maker(["c"])
    assert maker.unparsed == 10


def test_what_another_maker_wrote_is_not_asked(tmp_path: Path) -> None:
    def maker(word: str, writer: str) -> KeptQuestions:
        reply = [f"Question: {word}?\nAnswer: yes"]
        written = WrittenQuestions(lambda asked: reply * len(asked), writer)
        return KeptQuestions(written, tmp_path, "verify")

    assert maker("Moo", "a")(["a cow"]) == [[("Moo?", "yes")]]
    assert maker("Mee", "b")(["a cow"]) == [[("Mee?", "yes")]]
    assert maker("Maa", "a")(["a cow"]) == [[("Moo?", "yes")]], "its own are still there"


@pytest.mark.parametrize(
    ("answers", "left"),
    [
        (["2", "red", "disc", "yes", "blue", "box", "yes"], ["red", "blue"]),  # of the world
        (["yes", "red"], ["red"]),
        (["red", "blue"], ["blue"]),
        (["yes", "yes", "no", "no"], ["yes", "no"]),  # by noun phrases
        (["yes"], []),
        (["yes", "no"], []),
        (["red"], []),
        ([], []),
    ],
)
def test_some_questions_verify_and_the_others_are_left_to_learn(
    answers: list[str], left: list[str]
) -> None:
    asked = [(f"{number}?", answer) for number, answer in enumerate(answers)]
    verify, learn = held_out(asked)
    assert [answer for _, answer in learn] == left
    assert sorted([*verify, *learn]) == sorted(asked) and (verify or not asked)


def test_an_endpoint_writes_them_and_fails_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    failing = Answer(status=503)

    def answer(number: int, body: dict[str, Any]) -> Answer:
        if number == 1:  # asked again
            return Answer(status=503, headers={"Retry-After": "0"})
        asks = body["messages"][0]["content"]
        return Answer(content="Question: Is it red?\nAnswer: yes" if "yes or no" in asks else "no")

    with judge_server(answer) as server:
        settings = SimpleNamespace(endpoint=f"m@{server.url}")
        maker: Any = build_maker("endpoint", None, settings)
        assert maker(["a red ball"]) == [[("Is it red?", "yes")]]
        assert maker.unparsed == 1
    with judge_server(failing) as server, pytest.raises(UserError, match="endpoint=m@http"):
        monkeypatch.setattr("unigame.evaluation.scorers.written_openai.FIRST_WAIT", 0.0)
        build_maker("endpoint", None, SimpleNamespace(endpoint=f"m@{server.url}"))


def test_many_captions_are_written_and_kept_in_pieces(tmp_path: Path) -> None:
    asked: list[int] = []

    def reply(texts: Any) -> list[str]:
        asked.append(len(texts))
        if len(asked) == 3:
            raise UserError("the endpoint is gone")
        return ["Question: Is it red?\nAnswer: yes" if "yes or no" in t else "hm" for t in texts]

    captions = [f"a dog number{number}" for number in range(40)]
    maker = KeptQuestions(WrittenQuestions(reply), tmp_path, "verify")
    with pytest.raises(UserError, match="gone"):
        maker(captions)
    assert maker.unparsed == 0, "nothing was asked of a drawing yet"
    again = KeptQuestions(WrittenQuestions(reply), tmp_path, "verify")
    assert list(again.known) == captions[:32]
    assert again(captions) == [[("Is it red?", "yes")]] * 40
    assert again.unparsed == 40 and asked == [32, 32, 16, 16]
