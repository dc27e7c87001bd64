"""The VQA score of one question: answers brought to one form, then a leave-one-out vote.

Three references differ in when and how they normalise:

    official    VQA's own ``vqaEval.py`` (GT-Vision-Lab/VQA a013f00): not at all where the ten raw
                answers agree
    lmms_eval   always (0.7.3)
    textvqa     always, with MMF's extra step (BAGEL, InternVL, TorchUMM's UniGame script)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

INSTRUCTION = "Answer the question using a single word or phrase."

Variant = Literal["lmms_eval", "official", "textvqa"]

_ECHOES = ("answer:", "answer is", "the answer is", "final answer:")
_SENTENCE_ENDS = (". ", "! ", "? ")
_LOOSE_ENDS = " .,:;"

# ---- the normaliser's tables: facts of the references, in their order ----------------------------

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBER_WORDS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
_ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # in the order in which they are removed or become blanks
# A full stop before anything but a digit; the reference's first group is a typo, never a limit.
_PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
_MAX_PERIODS = 32  # the reference passes ``re.UNICODE`` as the count
# Commas between digits; lmms-eval and MMF also see several in a row (``1,,000``).
_COMMA = {
    "official": re.compile(r"(\d)(\,)(\d)"),
    "lmms_eval": re.compile(r"(?<=\d)(\,)+(?=\d)"),
    "textvqa": re.compile(r"(?<=\d)(\,)+(?=\d)"),
}
# Apostrophes put back: word, then what it becomes. The reference's keys with capitals are left out:
# they never match, because words are lower-cased first.
_PAIRS = """
    aint ain't  arent aren't  cant can't  couldve could've  couldnt couldn't  couldn'tve couldn't've
    couldnt've couldn't've  didnt didn't  doesnt doesn't  dont don't  hadnt hadn't
    hadnt've hadn't've  hadn'tve hadn't've  hasnt hasn't  havent haven't  hed he'd  hed've he'd've
    he'dve he'd've  hes he's  howd how'd  howll how'll  hows how's  isnt isn't  itd it'd
    itd've it'd've  it'dve it'd've  itll it'll  maam ma'am  mightnt mightn't  mightnt've mightn't've
    mightn'tve mightn't've  mightve might've  mustnt mustn't  mustve must've  neednt needn't
    notve not've  oclock o'clock  oughtnt oughtn't  ow's'at 'ow's'at  'ows'at 'ow's'at
    'ow'sat 'ow's'at  shant shan't  shed've she'd've  she'dve she'd've  shouldve should've
    shouldnt shouldn't  shouldnt've shouldn't've  shouldn'tve shouldn't've  somebody'd somebodyd
    somebodyd've somebody'd've  somebody'dve somebody'd've  somebodyll somebody'll
    somebodys somebody's  someoned someone'd  someoned've someone'd've  someone'dve someone'd've
    someonell someone'll  someones someone's  somethingd something'd  somethingd've something'd've
    something'dve something'd've  somethingll something'll  thats that's  thered there'd
    thered've there'd've  there'dve there'd've  therere there're  theres there's  theyd they'd
    theyd've they'd've  they'dve they'd've  theyll they'll  theyre they're  theyve they've
    twas 'twas  wasnt wasn't  wed've we'd've  we'dve we'd've  weve we've  werent weren't
    whatll what'll  whatre what're  whats what's  whatve what've  whens when's  whered where'd
    wheres where's  whereve where've  whod who'd  whod've who'd've  who'dve who'd've  wholl who'll
    whos who's  whove who've  whyll why'll  whyre why're  whys why's  wont won't  wouldve would've
    wouldnt wouldn't  wouldnt've wouldn't've  wouldn'tve wouldn't've  yall y'all  yall'll y'all'll
    y'allll y'all'll  yall'd've y'all'd've  y'alld've y'all'd've  y'all'dve y'all'd've  youd you'd
    youd've you'd've  you'dve you'd've  youll you'll  youre you're  youve you've
""".split()
_CONTRACTIONS = dict(zip(_PAIRS[::2], _PAIRS[1::2], strict=True))


@lru_cache(maxsize=1 << 16)  # a few thousand answers make up most of two million annotations
def normalise(text: str, variant: Variant = "lmms_eval") -> str:
    """An answer or a reply in the form in which it is compared."""
    if variant == "textvqa":
        text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = _one_line(text)
    # Both tests look at the text as it came, so that the order of the marks decides nothing; one
    # comma within a number makes every mark vanish instead of leaving a blank.
    within_number = _COMMA[variant].search(text) is not None
    plain = text
    for mark in _PUNCTUATION:
        by_a_blank = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if by_a_blank or within_number else " ")
    plain = _PERIOD.sub("", plain, count=_MAX_PERIODS)
    words = (_NUMBER_WORDS.get(word, word) for word in plain.lower().split())
    return " ".join(_CONTRACTIONS.get(w, w) for w in words if w not in _ARTICLES)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def soft_score(
    prediction: str,
    answers: Sequence[str | Mapping[str, Any]],
    variant: Variant = "lmms_eval",
) -> float:
    """The share of the score that a reply earns, in [0, 1].

    Each annotator in turn is left out; the reply earns a third for every other annotator who gave
    it, at most 1; the mean over annotators counts. Of ten, 1, 2, 3 and 4 who agree earn 0.3, 0.6,
    0.9 and 1.

    Args:
        prediction: the model's reply.
        answers: what the annotators said: texts, which count as different annotators, or mappings
            with ``"answer"``. Equal mappings count as one annotator and are left out together, as
            in the references; an ``answer_id`` keeps them apart. (``textvqa`` goes by position.)
        variant: the reference that is followed.

    Raises:
        ValueError: no answers.
    """
    if not answers:
        raise ValueError("a VQA score needs the annotators' answers")
    texts = [_one_line(a if isinstance(a, str) else a["answer"]) for a in answers]
    said = _one_line(prediction)
    if variant != "official" or len(set(texts)) > 1:
        said, texts = normalise(said, variant), [normalise(text, variant) for text in texts]
    agreeing: list[Any] = [
        (number, text)
        if variant == "textvqa" or isinstance(answer, str)
        else {**answer, "answer": text}
        for number, (answer, text) in enumerate(zip(answers, texts, strict=True))
        if text == said
    ]
    earned = (len(texts) - len(agreeing)) * min(1.0, len(agreeing) / 3)
    earned += sum(min(1.0, (len(agreeing) - agreeing.count(vote)) / 3) for vote in agreeing)
    return earned / len(texts)


def clean_reply(reply: str) -> str:
    """What TorchUMM's UniGame script cuts a reply down to before it scores it (``textvqa``)."""
    # The two marks are blanks of byte-level and SentencePiece tokenizers.
    text = " ".join(reply.replace("Ġ", " ").replace("▁", " ").split())
    for echo in _ECHOES:  # one after the other, so "Answer: the answer is red" loses both
        if text.lower().startswith(echo):
            text = text[len(echo) :].strip(" :")
    instruction_at = text.lower().find(INSTRUCTION.lower())
    if instruction_at >= 0:
        text = text[:instruction_at].strip(_LOOSE_ENDS)
    for end in _SENTENCE_ENDS:
        if end in text:
            text = text.split(end, 1)[0].strip(_LOOSE_ENDS)
            break
    return text
