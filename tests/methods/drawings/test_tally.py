"""What rounds came to: when nothing is confirmed, and what is advised."""

from __future__ import annotations

import pytest

from unigame.methods.drawings.readers import Judged
from unigame.methods.drawings.tally import Tally
from unigame.methods.verify import VerifySettings

NOBODY = Judged(0, 0, 0, 0)


def found(rounds: list[list[int]], **settings: object) -> list[str]:
    tally = Tally("verify", VerifySettings(**settings))  # type: ignore[arg-type]
    for of_round in rounds:
        tally.see(of_round, NOBODY)
    return [f"{finding.says}; {finding.knob}" for finding in tally.findings()]


@pytest.mark.parametrize(
    ("rounds", "settings", "said"),
    [
        ([[64, 0, 0, 0]], {}, "lower confirm or temperature"),
        ([[64, 0, 60, 0]], {}, "another question_maker"),
        ([[64, 0, 0, 0]], {"verifier": "reader", "reader": "world"}, "lower temperature: verifier"),
        # One that left nothing to learn is not what ails 63 that were not confirmed.
        ([[64, 1, 0, 1]], {}, "lower confirm or temperature"),
        ([[64, 40, 0, 40]], {}, "give questions in texts"),
    ],
)
def test_the_advice_fits_what_is_wrong(
    rounds: list[list[int]], settings: dict[str, object], said: str
) -> None:
    (line,) = found(rounds, **settings)
    assert said in line


def test_a_few_drawings_say_nothing_of_a_small_share() -> None:
    assert found([[8, 0, 0, 0]]), "none at all, of two captions' drawings"
    assert not found([[7, 0, 0, 0]])
    assert not found([[40, 1, 0, 0]]) and not found([[100, 2, 0, 0]])
    assert found([[100, 1, 0, 0]])
