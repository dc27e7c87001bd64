"""What the rounds of a run came to, over all processes, and what is wrong with them.

Every process counts the same, so that each finds the same. Whether anything is confirmed is judged
by the last rounds: a verifier that stops confirming late is not hidden by what it confirmed before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unigame.methods.drawings.readers import BASE, Honesty, Judged
from unigame.methods.drawings.settings import BY_QUESTIONS, BY_SIMILARITY, DrawingSettings
from unigame.methods.findings import Finding

FEW = 0.02  # share of drawings confirmed, below which a method has next to nothing to give
RECENT = 50  # drawings of the last rounds, at least, by which that is judged


class Tally:
    """Counts of rounds.

    Args:
        name: of the method.
        settings: of the method.

    Attributes:
        rounds: how many there were, with drawings or without.
        recent: [drawn, kept, unasked, untaught] of each of the last rounds with a drawing. Unasked
            ones had no question, untaught ones are confirmed and left nothing to learn.
        honesty: of the verifier.
    """

    def __init__(self, name: str, settings: DrawingSettings) -> None:
        self.name, self.settings = name, settings
        self.rounds = 0
        self.recent: list[list[int]] = []
        self.honesty = Honesty()

    def see(self, of_round: Sequence[int], judged: Judged) -> None:
        """Count a round.

        Args:
            of_round: as in ``recent``.
            judged: what the reader said of it.
        """
        self.rounds += 1
        self.honesty.see(judged)
        if not of_round[0]:
            return
        self.recent.append(list(of_round))
        while sum(drawn for drawn, *_ in self.recent[1:]) >= RECENT:
            self.recent.pop(0)

    @property
    def may_yet_draw(self) -> bool:
        """Whether only one batch has met a round, and it had no caption: the next one may."""
        return self.rounds == 1 and not self.recent

    def findings(self) -> list[Finding]:
        """Nothing drawn, nothing confirmed, or a verifier that drifts."""
        found = []
        if self.rounds and not self.recent:
            says = f"{self.rounds} rounds met no caption to draw"
            found.append(Finding("nothing confirmed", says, "give texts, or rows with captions"))
        columns = zip(*(self.recent or [[0, 0, 0, 0]]), strict=True)
        drawn, kept, unasked, untaught = map(sum, columns)
        taught = kept - untaught
        enough = RECENT if taught else 2 * self.settings.drawings  # none at all is soon told
        if drawn >= enough and taught < FEW * drawn:
            found.append(self._nothing_confirmed(drawn, kept, unasked, untaught))
        return found + self._drift()

    def _nothing_confirmed(self, drawn: int, kept: int, unasked: int, untaught: int) -> Finding:
        says = f"{kept} of the last {drawn} drawings were confirmed"
        if kept >= FEW * drawn:
            says += f", and {untaught} of these left no question to learn"
            knob = "give questions in texts, or captions that name several things"
        elif self.settings.verifier == BY_SIMILARITY:
            knob = f"lower clip_floor={self.settings.clip_floor:g} below {self.name}_similarity"
        elif self.settings.verifier not in BY_QUESTIONS:
            knob = f"lower temperature: verifier={self.settings.verifier} finds them wrong"
        else:
            says += f"; the captions of {unasked} gave no question"
            knob = (
                "take another question_maker, such as model"
                f"{' or given' if self.name == 'verify' else ''}"
                if 2 * unasked > drawn
                else "lower confirm or temperature, or see what the questions ask"
            )
        return Finding("nothing confirmed", says, knob, {f"{self.name}_kept": kept / drawn})

    def _drift(self) -> list[Finding]:
        drift = self.honesty.drift()
        if drift is None:
            return []
        early, late = drift
        by = "U" if self.settings.verifier in BY_QUESTIONS else f"verifier={self.settings.verifier}"
        says = (
            f"of the drawings that the reader ({self.settings.reader}) finds wrong {by} confirms "
            f"{late:.0%}, at first {early:.0%}"
        )
        knob = "set verifier=base, or lower learning_rate"
        if self.settings.verifier == BASE:  # it does not learn: drawings have changed
            says += (
                ", and U as verifier does not learn: what G still draws wrong is what U misreads"
            )
            knob = "stop earlier, lower learning_rate, or set verifier=clip"
        elif self.settings.verifier == BY_SIMILARITY:  # nor does this
            knob = "raise clip_floor, or set verifier=base"
        return [Finding("verifier drifts", says, knob, {f"{self.name}_false_confirmed": late})]

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "rounds": self.rounds,
            "recent": [list(one) for one in self.recent],
            "honesty": self.honesty.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.rounds, self.recent = state["rounds"], [list(one) for one in state["recent"]]
        self.honesty.load_state_dict(state["honesty"])
