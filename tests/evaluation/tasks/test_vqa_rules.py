"""The VQA score where the references differ, or where their code does something unexpected."""

from __future__ import annotations

import pytest

from unigame.evaluation.tasks.vqav2.rules import clean_reply, normalise, soft_score

TEN = ["yes"] * 10


@pytest.mark.parametrize(
    ("raw", "lmms_eval", "official", "textvqa"),
    [
        ("", "", "", ""),
        (" \n\t ", "", "", ""),
        # One comma within a number makes every mark vanish, wherever it stands.
        ("black/white 1,000", "blackwhite 1000", "blackwhite 1000", "black white 1000"),
        # Only lmms-eval and MMF take two commas for one within a number.
        ("a-b 1,,000", "ab 1000", "b 1 000", "b 1000"),
        # A blank beside one mark decides for that mark only, everywhere in the text.
        ("x- y-z/w", "x yz w", "x yz w", "x yz w"),
        # The blank that a mark turned into is not one that the next mark stands beside.
        ("p/q;/r", "p q r", "p q r", "p q r"),
        # A tab is a blank before the marks are looked at, and a line's end at the rim is nothing.
        ("x-\ty-z", "x yz", "x yz", "x yz"),
        ("x-\n", "x", "x", "x"),
        ("(- b)", "b", "b", "b"),
        ("7.0.", "7.0", "7.0", "7.0"),
        ("...5", ".5", ".5", ".5"),
        ("." * 40, "." * 8, "." * 8, "." * 8),
        ("None", "0", "0", "0"),
        ("Im ok", "im ok", "im ok", "im ok"),
        ("id've", "id've", "id've", "id've"),
        ("its the man's", "its man's", "its man's", "its man 's"),
        ("caf\u00e9\u00a0au lait", "caf\u00e9 au lait", "caf\u00e9 au lait", "caf\u00e9 au lait"),
        # Any script's digits count as digits.
        ("\u0663,\u0664-x", "\u0663\u0664x", "\u0663\u0664x", "\u0663\u0664 x"),
    ],
)
def test_normalise(raw, lmms_eval, official, textvqa):
    assert normalise(raw, "lmms_eval") == lmms_eval
    assert normalise(raw, "official") == official
    assert normalise(raw, "textvqa") == textvqa


@pytest.mark.parametrize("votes", range(11))
def test_each_vote_counts_by_leaving_one_out(votes):
    answers = ["2"] * votes + [f"other {i}" for i in range(10 - votes)]
    expected = {0: 0.0, 1: 0.3, 2: 0.6, 3: 0.9}.get(votes, 1.0)
    for variant in ("lmms_eval", "official", "textvqa"):
        assert soft_score("two", answers, variant) == pytest.approx(
            # Where all ten agree, the official scorer compares the raw texts.
            0.0 if variant == "official" and votes == 10 else expected
        )


def test_official_normalises_only_where_annotators_differ():
    assert soft_score("Yes.", TEN, "official") == 0.0
    assert soft_score("Yes.", TEN, "lmms_eval") == 1.0
    assert soft_score("Yes.", [*TEN[:9], "no"], "official") == 1.0
    # Blanks and line ends at the rim go first: these ten agree.
    assert soft_score("Yes.", [*TEN[:9], "yes\n"], "official") == 0.0
    assert soft_score(" yes\n", TEN, "official") == 1.0


def test_equal_mappings_are_one_annotator():
    bare = [{"answer": "2"}] * 5 + [{"answer": "3"}] * 5
    assert soft_score("2", bare) == 0.5
    assert soft_score("2", bare, "textvqa") == 1.0
    numbered = [{**answer, "answer_id": i} for i, answer in enumerate(bare)]
    assert soft_score("2", numbered) == 1.0
    # Whatever else differs keeps annotators apart, also where the answers become equal.
    mixed = [{"answer": "two"}, {"answer": "2", "answer_confidence": "no"}, *[{"answer": "3"}] * 8]
    assert soft_score("2", mixed) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    same = [{"answer": "two"}, {"answer": "2"}, *[{"answer": "3"}] * 8]
    assert soft_score("2", same) == pytest.approx((2 * 0 + 8 * 2 / 3) / 10)


def test_a_score_needs_answers():
    with pytest.raises(ValueError, match="needs the annotators"):
        soft_score("yes", [])


@pytest.mark.parametrize(
    ("reply", "cleaned"),
    [
        ("", ""),
        ("Answer: the answer is: red", "red"),
        ("Final answer: yes!", "yes!"),
        ("Wow! Red. Really", "Wow! Red"),
        ("Really? Yes", "Really"),
        ("red, ANSWER the question using a single word or phrase. blue", "red"),
        ("\u2581two\u2581dogs", "two dogs"),
    ],
)
def test_clean_reply(reply, cleaned):
    assert clean_reply(reply) == cleaned
