"""Questions by noun phrases from captions as people write them: short ones, and descriptions."""

from __future__ import annotations

import pytest

from unigame.methods.drawings.phrases import (
    MOST_QUESTIONS,
    PhraseQuestions,
    existence,
    noun_phrases,
)

ASKED: dict[str, tuple[list[str], list[str]]] = {
    "A man sits on a bench next to a red car parked nearby.": (
        ["is there a man?", "is there a bench?", "is there a red car?"],
        [],
    ),
    "A child plays nearby with a yellow ball.": (
        ["is there a child?", "is there a yellow ball?"],
        [],
    ),
    "A woman in a red shirt holds a blue umbrella.": (
        ["is there a woman?", "is there a red shirt?", "is there a blue umbrella?"],
        ["is there a red umbrella?", "is there a blue shirt?"],
    ),
    "Two birds fly over the calm water.": (["are there two birds?", "is there calm water?"], []),
    "a busy city street on a rainy evening": (
        ["is there a busy city street?", "is there a rainy evening?"],
        [],
    ),
    "A black and white dog and a brown cat sleep together on a red couch.": (
        ["is there a black and white dog?", "is there a red couch?"],  # a cat, or a "cat sleep"
        ["is there a black and white couch?", "is there a red dog?"],
    ),
    "A large, fluffy dog lies outside a wooden door.": (
        ["is there a fluffy dog?", "is there a wooden door?"],
        [],
    ),
    "Several people stand around a large dining table filled with food.": (
        ["are there people?", "is there a large dining table?", "is there food?"],
        [],
    ),
    "A fire hydrant painted red stands beside a parked truck.": (
        ["is there a fire hydrant?", "is there a parked truck?"],
        [],
    ),
    "A half eaten pizza sits on a white plate with two forks.": (
        ["is there a half eaten pizza?", "is there a white plate?", "are there two forks?"],
        [],
    ),
    "A young smiling woman rides a brown horse past a white fence.": (
        ["is there a woman?", "is there a brown horse?", "is there a white fence?"],
        ["is there a brown fence?", "is there a white horse?"],
    ),
    "A fruit stand displays ripe bananas and green apples.": (
        ["is there a fruit stand?", "are there ripe bananas?", "are there green apples?"],
        [],
    ),
    "A seal juggles red balls outside.": (["is there a seal?"], []),
    "A sports car drives past a bus stop.": (
        ["is there a sports car?", "is there a bus stop?"],
        [],
    ),
    "There are three sheep and two yellow taxis near a stone wall.": (
        ["are there three sheep?", "are there two yellow taxis?", "is there a stone wall?"],
        [],
    ),
    "A wooden bowl on a metal table in a two story house": (
        ["is there a wooden bowl?", "is there a metal table?"],
        ["is there a wooden table?", "is there a metal bowl?"],
    ),
    "Two men watch a tennis match; a man hit a ball, and people watched cars.": (
        [
            "are there two men?",
            "is there a tennis match?",
            "is there a man?",
            "is there a ball?",
            "are there people?",
            "are there cars?",
        ],
        [],
    ),
}
STREET = (
    "A wide city intersection is filled with people crossing in several directions. A man in a "
    "gray coat carries a black umbrella, and a woman beside him pushes a blue stroller. On the "
    "left, two yellow taxis wait behind a white van, while a cyclist in a red helmet rides past a "
    "row of parked motorcycles. Tall brick buildings rise behind them, with green awnings over the "
    "shops. A small brown dog sits outside a bakery. Above the street hang three metal lanterns, "
    "and a large clock stands near the corner, where an old man sells flowers from a wooden cart."
)
KITCHEN = (
    "The photograph shows a cozy kitchen with white cabinets and a long wooden counter. A bowl of "
    "green apples sits next to a silver toaster. A tabby cat sleeps on a blue rug that lies in "
    "front of the oven, and a young girl wearing a yellow dress stirs something in a copper pot. "
    "Two glass jars stand on a metal shelf together with a stack of plates. There is no microwave, "
    "but a television hangs above the table. A bouquet of purple tulips leans against a vase."
)


@pytest.mark.parametrize("caption", ASKED)
def test_a_caption_asks_for_its_things(caption: str) -> None:
    yes, no = ASKED[caption]
    (asked,) = PhraseQuestions()([caption])
    assert asked == [*((text, "yes") for text in yes), *((text, "no") for text in no)]


def test_a_long_description_asks_a_few_questions_from_its_begin_to_its_end() -> None:
    street, kitchen = PhraseQuestions()([STREET, KITCHEN])
    assert street == [
        ("is there a wide city intersection?", "yes"),
        ("is there a woman?", "yes"),
        ("are there parked motorcycles?", "yes"),
        ("are there three metal lanterns?", "yes"),
        ("is there a gray umbrella?", "no"),
        ("is there a blue umbrella?", "no"),
        ("is there a red van?", "no"),
        ("are there brown awnings?", "no"),
    ]
    assert kitchen == [
        ("is there a cozy kitchen?", "yes"),
        ("are there green apples?", "yes"),
        ("is there a young girl?", "yes"),
        ("is there a metal shelf?", "yes"),
        ("are there white apples?", "no"),
        ("is there a green rug?", "no"),
        ("is there a blue dress?", "no"),
        ("is there a purple dress?", "no"),
    ]
    assert PhraseQuestions()([STREET]) == [street], "the same ones each time"


@pytest.mark.parametrize(
    ("things", "yes", "no"), [(1, 1, 0), (2, 2, 2), (4, 4, 4), (9, 4, 4), (30, 4, 4)]
)
def test_no_more_than_eight_and_half_of_them_no(things: int, yes: int, no: int) -> None:
    colours = ("red", "blue", "green")
    caption = ", ".join(f"a {colours[number % 3]} thing{number}" for number in range(things))
    (asked,) = PhraseQuestions()([caption])
    answers = [answer for _, answer in asked]
    assert (answers.count("yes"), answers.count("no")) == (yes, no) and yes + no <= MOST_QUESTIONS
    (plain,) = PhraseQuestions()([", ".join(f"a thing{number}" for number in range(things))])
    assert len(plain) == min(things, MOST_QUESTIONS)
    last = plain[-1][0].removeprefix("is there a thing").removesuffix("?")
    assert int(last) >= things - -(-things // MOST_QUESTIONS), "spread to the end"


@pytest.mark.parametrize(
    ("caption", "things"),
    [
        ("a man sits", ["man"]),
        ("the man sits on it", ["man"]),
        ("a child plays nearby", ["child"]),
        ("a child nearby plays", ["child"]),
        ("red shirt holds a bag", ["red shirt", "bag"]),
        ("the bird flies", ["bird"]),
        ("a red car parked nearby", ["red car"]),
        ("a cat outside", ["cat"]),
        ("a man and a woman stand there", ["man"]),
        ("above the street hang three lamps", ["three lamps"]),
        ("a man who plays and sings", ["man"]),
        ("he sits", []),
        ("a large, brown dog", ["brown dog"]),
        ("a red and white bus", ["red and white bus"]),
        ("the wall is white", ["wall"]),
        ("a man dressed in black", ["man"]),
        ("one dog", ["dog"]),
        ("a couple of dogs", ["dogs"]),
        ("a few dogs", ["dogs"]),
        ("a two story house", []),
        ("the dog is the man's", ["dog"]),
        ("a man happily eats", ["man"]),
        ("jumping in the air", []),
        ("the bird perches on a branch", ["bird", "branch"]),
        ("the sun sets behind a hill", ["sun", "hill"]),
        ("trees line both sides of the street", ["trees", "street"]),
        ("a couple of sheep stand in a field", ["sheep", "field"]),
        ("three deer graze", ["three deer"]),
        ('a sign that reads "Main St" on a pole', ["sign", "pole"]),
        ("a close-up of a red apple", ["red apple"]),
    ],
)
def test_what_is_no_thing_is_not_asked_for(caption: str, things: list[str]) -> None:
    assert noun_phrases(caption) == things


@pytest.mark.parametrize(
    ("caption", "denied"),
    [
        ("a red rose and white flowers", []),
        ("a red car and a yellow taxi", []),
        ("a brick building beside a wooden house", []),
        ("a black bear cub follows a brown bear", ["is there a brown bear cub?"]),
        ("a white clock on a black clock tower", ["is there a white clock tower?"]),
        ("a white puppy and an orange cat", ["is there a white cat?", "is there an orange puppy?"]),
    ],
)
def test_what_another_word_may_name_is_not_denied(caption: str, denied: list[str]) -> None:
    (asked,) = PhraseQuestions()([caption])
    assert [question for question, answer in asked if answer == "no"] == denied


@pytest.mark.parametrize(
    ("phrase", "asked"),
    [
        ("men", "are there men?"),
        ("two sheep", "are there two sheep?"),
        ("skis", "are there skis?"),
        ("green grass", "is there green grass?"),
        ("bus", "is there a bus?"),
        ("open window", "is there an open window?"),
    ],
)
def test_one_or_many(phrase: str, asked: str) -> None:
    assert existence(phrase) == asked
