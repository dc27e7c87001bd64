"""What is said before a run draws anything: captions that are left, settings without effect."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from unigame.methods.drawings.questions import GIVEN, KeptQuestions
from unigame.methods.drawings.readers import BASE
from unigame.methods.drawings.settings import BY_QUESTIONS

LOOKED_AT = 1_000
"""Given answers, spread over the file, that are tokenized to see whether they are too long."""

if TYPE_CHECKING:
    from unigame.methods.drawings.method import DrawingMethod


def lines_at_start(method: DrawingMethod, max_steps: int) -> list[str]:
    """How much of the file a run of this length draws, and which settings do nothing.

    Args:
        method: after its ``setup``.
        max_steps: of the run.
    """
    found = [_not_drawn(method, max_steps)] if method.texts else []
    found += [f"method {method.name}: {line}" for line in _without_effect(method)]
    return [line for line in found if line]


def _not_drawn(method: DrawingMethod, max_steps: int) -> str:
    settings, reached = method.settings, method.choice.reached(max_steps)
    if reached >= len(method.texts):
        return ""
    number, knob = settings.captions, f"raise captions, or lower every={settings.every}"
    if number >= method.choice.own:  # a round takes no more
        number, knob = method.choice.own, f"lower every={settings.every}"
    return (
        f"method {method.name} will draw {reached} of the {len(method.texts)} captions in "
        f"{settings.texts}: {max_steps} steps have {-(-max_steps // settings.every)} rounds of "
        f"{number}; {knob}"
    )


def _without_effect(method: DrawingMethod) -> list[str]:
    """What of the settings does nothing in this run, or throws something away."""
    settings, found = method.settings, []
    if idle := settings.inert():
        found.append(f"without effect: {', '.join(idle)}")
    if settings.per_caption < settings.drawings:
        found.append(
            f"per_caption={settings.per_caption} below drawings={settings.drawings}: further "
            "confirmed drawings of a caption are thrown away"
        )
    if (most := settings.captions * settings.drawings) > settings.capacity:
        found.append(
            f"capacity={settings.capacity} below captions * drawings = {most}: what a round may "
            "confirm beyond it is thrown away"
        )
    found += _fewer_captions(method)
    if unasked := _bare_though_given(method):
        found.append(
            f"{unasked} captions in {settings.texts} give no question by question_maker="
            f"{settings.question_maker}, so that none of their drawings is confirmed; the file "
            "has some of its own: set question_maker=given"
        )
    if method.latents and method.temperature != 1:
        found.append(
            f"temperature={method.temperature:g} scales the noise that latents begin with, which "
            "this model has not seen in training; leave it at 1"
        )
    if method.goes_on and method.asks_base():
        found.append(
            "base is the model without any adapter, and this run goes on with a trained one: "
            "what that one taught is not asked; merge it first (unigame merge) to make it the "
            "base"
        )
    asked = settings.verifier in BY_QUESTIONS or settings.reader == BASE
    if asked and (line := _cut_answers(method)):
        found.append(line)
    if not asked and "answer" not in method.losses and isinstance(method.maker, KeptQuestions):
        found.append(
            f"question_maker={settings.question_maker} writes questions, and verifier="
            f"{settings.verifier} asks none; only challenge_drawings of selfplay uses them"
        )
    if not method.texts and getattr(method.run.args, "gradient_accumulation_steps", 1) > 1:
        found.append("of a step's micro-batches, the captions of the first one are drawn")
    return found


def _fewer_captions(method: DrawingMethod) -> list[str]:
    """Numbers of captions, of those that were set, that no round reaches."""
    most = method.choice.own if method.texts else method.batch_size
    of = "a process's part of the file" if method.texts else "a batch"
    defaults = {item.name: item.default for item in fields(method.settings)}
    return [
        f"{name}={value} is more than the {most} captions of {of}, so that a round draws {most}"
        for name in ("captions", "first_captions")
        if (value := getattr(method.settings, name)) not in (None, defaults[name]) and value > most
    ]


def _cut_answers(method: DrawingMethod) -> str:
    """Given answers are longer than replies may be."""
    pairs = [pair for text in method.texts for pair in text.questions]
    most = method.settings.answer_tokens
    if method.settings.question_maker != GIVEN or not pairs:
        return ""
    looked = pairs[:: -(-len(pairs) // LOOKED_AT)]
    questions, answers = ([pair[place] for pair in looked] for place in (0, 1))
    lengths = method.run.backbone.answer_lengths(questions, answers) - 1  # without the end mark
    cut, longest = int((lengths > most).sum()), int(lengths.max())
    if not cut:
        return ""
    return (
        f"{cut} of the {len(looked)} answers in {method.settings.texts} that were looked at are "
        f"longer than answer_tokens={most}, where replies are cut, so that no reply agrees with "
        f"them; raise it to {longest}"
    )


def _bare_though_given(method: DrawingMethod) -> int:
    """Captions of the file that verify by no question though the file has some."""
    maker = method.maker
    if maker is None or isinstance(maker, KeptQuestions) or "answer" in method.losses:
        return 0  # the first uses them, the second takes time, and imagine learns them
    given = [text.caption for text in method.texts if text.questions]
    return sum(not asked for asked in maker(given)) if given else 0
