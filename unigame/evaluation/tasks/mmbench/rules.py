"""MMBench's prompts, and which option a reply names, without a model: the references' rules.

``lmms_eval`` is ``MMBench_Evaluator.can_infer`` of lmms-eval 0.7.3; ``vlmevalkit`` is what TorchUMM
083395e took over from VLMEvalKit. None means that the rules do not decide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

REFUSED = "Z"
"""VLMEvalKit's letter for a reply that refuses, or names no option: never the answer."""

_LETTERS = "ABCDE"
_TEXT_LETTERS = "ABCD"

# What may stand around a letter, in the order of the tests.
_FORMS = (
    "{}.",
    "{},",
    "{}:",
    "{})",
    "{}).",
    "({})",
    "({}).",
    ":{}",
    ":{},",
    ":{}.",
    ":{})",
    ":{}).",
)

_NO_REPLY = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_AS_BLANKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))

Parser = Callable[[str, Mapping[str, str]], str | None]
"""Reply, option texts by letter -> the letter named, or None."""


def lmms_eval(reply: str, options: Mapping[str, str]) -> str | None:
    """lmms-eval's rules: a letter as a token, in one of its forms, or else an option's text.

    Letters are A to E whatever the options are. Of a reply with more than three tokens the token
    ``A`` is taken for an article.
    """
    if _NO_REPLY not in reply:
        tokens = reply.split()
        found = [letter for letter in _LETTERS if letter in tokens]
        if len(found) == 1 and (found[0] != "A" or len(tokens) <= 3):
            return found[0]
        for form in _FORMS:
            found = [letter for letter in _LETTERS if form.format(letter) in tokens]
            if len(found) == 1:
                return found[0]
    return _by_text(reply, {k: text for k, text in options.items() if k in _TEXT_LETTERS})


def vlmevalkit(reply: str, options: Mapping[str, str]) -> str | None:
    """VLMEvalKit's rules: a refusal, one option's letter among the last four tokens, or its text.

    A text counts only if the reply is at most twice as long as all options together.
    """
    if _NO_REPLY not in reply:
        if any(phrase in reply for phrase in _REFUSALS):
            return REFUSED
        tokens = reply.translate(_AS_BLANKS).split()
        found = [letter for letter in options if letter in tokens]
        # The first place of the letter counts: "B is right, so B" does not have it at the end.
        if len(found) == 1 and tokens.index(found[0]) >= len(tokens) - 4:
            return found[0]
        if not found and REFUSED in tokens:
            return REFUSED
    # The reference lower-cases before it measures.
    if len(reply.lower()) > 2 * sum(len(text) for text in options.values()):
        return None
    return _by_text(reply, options)


def _by_text(reply: str, options: Mapping[str, str]) -> str | None:
    """The only option whose text is contained in the reply, whatever the case."""
    reply = reply.lower()
    found = [letter for letter, text in options.items() if text.lower() in reply]
    return found[0] if len(found) == 1 else None


PARSERS: dict[str, Parser] = {"lmms_eval": lmms_eval, "vlmevalkit": vlmevalkit}

_LETTER = "Answer with the option's letter from the given choices directly."
# The instruction of each variant in the Chinese sets.
_LETTER_CN = {
    "lmms_eval": "请直接使用所提供的选项字母作为答案回答。",
    "bagel": "请直接回答选项字母。",
}


def build_prompt(
    question: str, options: Mapping[str, str], hint: str, variant: str, config: str = "en"
) -> str:
    """What the model is asked.

    Args:
        question: as in the data.
        options: texts by letter, without the absent ones.
        hint: text to go before the question; empty: none. lmms-eval drops it in ``cc``.
        variant: ``lmms_eval``, ``vlmevalkit``, ``bagel``, or ``bare`` (the question alone).
        config: ``en``, ``cn`` or ``cc``; the last two have their instruction in Chinese, but for
            ``vlmevalkit``.
    """
    if variant == "bare":
        return question
    listed = "\n".join(f"{letter}. {text}" for letter, text in options.items())
    if variant == "vlmevalkit":
        head = f"Hint: {hint}\n" if hint else ""
        return (
            f"{head}Question: {question}\nOptions:\n{listed}\n"
            "Please select the correct answer from the options above. \n"
        )
    instruction = _LETTER if config == "en" else _LETTER_CN[variant]
    if variant == "bagel":
        head = f"{hint}\n" if hint else ""
        return f"{head}{question}\n{listed}\n{instruction}"
    head = f"{hint} " if hint and config != "cc" else ""
    listed = f"There are several options:\n{listed}".rstrip("\n")
    return f"{head}{question} {listed}\n\n{instruction}"


def circular_hit(answers: Sequence[str], letters: Sequence[str | None]) -> bool:
    """Whether all rotations of one question are right; a reply that named nothing is wrong."""
    return all(letter == answer for answer, letter in zip(answers, letters, strict=True))
