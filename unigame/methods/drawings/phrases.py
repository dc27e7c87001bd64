"""Questions from any caption by rules: is there each thing that its noun phrases name?

    "a red ball on two blue boxes"  ->  is there a red ball?        yes
                                        are there two blue boxes?   yes
                                        are there two red boxes?    no
                                        is there a blue ball?       no

Phrases end at marks, prepositions, conjunctions, adverbs and verbs: lists of words, no parser. It
is English, and misses much; what it does find is mostly right. After "no", "without" or "not"
nothing is taken from the rest of the sentence: what is not there is not asked for.

The questions with "no" exchange the colours of two things, or their materials, so that a model that
says yes to everything confirms nothing where a caption names two coloured things. Nothing else is
exchanged: a street on a rainy evening is a rainy street, and a wooden table may be a white one.
Nor is anything between words that may name one thing, a red rose and white flowers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from unigame.methods.drawings.texts import QA

MOST_QUESTIONS = 8
"""About a caption. All must agree, so that of a long description with more nothing is confirmed."""
_LONGEST = 5  # words of a phrase

# ---- words ---------------------------------------------------------------------------------------
# Where a word is in doubt it is taken for none of a thing: a thing that is missed costs a question,
# and one that is misread confirms nothing that is right.
COLOURS = frozenset("black blue brown gray green grey orange pink purple red white yellow".split())
MATERIALS = frozenset("brick concrete glass leather metal plastic stone wooden".split())

_ENDS = frozenset(
    "about above across after against along among and are around as at atop be because been "
    "before behind being below beneath beside besides between but by can could did do does down "
    "during each everyone everything except for from front had has have he herself him himself "
    "how if in inside into is it it's itself like may me middle might must near next of off on "
    "one's onto or other out over past per she side since so someone something than that that's "
    "them themselves there there's they through throughout to top toward towards under underneath "
    "until up upon us via was we were what when where which while who whose why will with within "
    "without would yet you".split()
)
_SINGULAR = frozenset("a an another one".split())
_DETERMINERS = _SINGULAR | frozenset(
    "any both dozen dozens every few her his its many multiple my numerous our several some the "
    "their these this those various your".split()
)
_DENIALS = frozenset("no not none never nor neither without nothing nobody cannot".split())
_MANY = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
# Names of the picture itself, of a part or a number of something, and of what nobody can see.
_NO_THINGS = frozenset(
    "air back background baseball basketball bottom bunch camera captivity center centre "
    "close-up closeup collection couple crowd day distance drawing edge end flock football "
    "foreground group half herd illustration image kind left lot lots night number painting "
    "pair part photo photograph picture piece pile portrait rendering right row scene selfie "
    "set shot side sides sketch soccer sort stack tennis time trick type variety view way".split()
)
_NOUNS_IN_ING = frozenset(
    "building ceiling clothing earring king morning evening painting ring sibling spring string "
    "wedding wing thing fencing awning railing lightning".split()
)
_ADJECTIVES_IN_ING = frozenset("dining living parking shopping swimming".split())
_NOUNS_IN_ED = frozenset(
    "bed biped bobsled breed feed flatbed flowerbed moped reed seed shed sled speed steed sunbed "
    "thoroughbred weed".split()
)
_NOUNS_IN_LY = frozenset(
    "assembly belly butterfly dragonfly family firefly fly gully jelly lily".split()
)
# They look like plurals and are none; and those that stand before the noun of "a sports car".
_SINGULAR_IN_S = frozenset("canvas christmas gas lens pancreas series species swiss".split())
_BEFORE_NOUNS = frozenset("arts clothes goods sales savings sports".split())
_PLURALS = {
    "children": "child",
    "feet": "foot",
    "firemen": "fireman",
    "fishermen": "fisherman",
    "geese": "goose",
    "men": "man",
    "mice": "mouse",
    "people": "person",
    "policemen": "policeman",
    "skis": "ski",
    "taxis": "taxi",
    "teeth": "tooth",
    "women": "woman",
}
_NOT_COUNTED = frozenset(
    "bread broccoli butter cereal cheese clothing coffee dirt foliage food fruit furniture "
    "graffiti grass greenery hair ice jewelry juice ketchup lettuce luggage meat milk mud "
    "mustard pasta rain rice sand smoke snow soup steam sunlight tea traffic water wine".split()
)
_PLURAL_TOO = frozenset("aircraft bison deer fish sheep".split())
# Words of one line may name one thing: what is said of one may be true of another.
_ALIKE = tuple(
    frozenset(line.split())
    for line in (
        "dog puppy",
        "cat kitten",
        "foal horse pony",
        "lamb sheep",
        "calf cow",
        "bird chick chicken crow dove duck eagle goose gull owl parrot pigeon rooster seagull swan",
        "barn building cabin church home house shop skyscraper store tower",
        "automobile cab car jeep suv taxi truck van vehicle",
        "bicycle bike moped motorbike motorcycle scooter",
        "blouse coat dress hoodie jacket jersey shirt suit sweater t-shirt top uniform vest",
        "boy child girl guy kid lady man person player rider skateboarder skier surfer woman",
        "armchair bench chair couch recliner seat sofa stool",
        "bag backpack handbag luggage purse suitcase",
        "bloom blossom bouquet daisy flower lily orchid rose sunflower tulip",
        "boat canoe kayak sailboat ship vessel",
        "bowl cup dish glass jar mug plate pot vase",
        "cap hat helmet",
        "airplane jet plane",
        "locomotive train tram",
        "counter desk table",
    )
)
_ADVERBS = frozenset(
    "again ahead almost alone already also always apart aside away close downhill even ever "
    "forward here indoors just maybe nearby now often only outdoors outside overhead perhaps "
    "quite rather sideways still then together too upright upside very".split()
)
_ADJECTIVES = frozenset(
    "alive antique asleep available awake bare beautiful beige big blonde blurry bright busy calm "
    "clean clear cloudy cold colorful colourful cool curly cute dark deep delicious different "
    "dirty dry elderly empty fancy flat fluffy foggy fresh friendly full furry fuzzy giant golden "
    "grassy hairy half happy hard healthy heavy high hot huge large leafy little lonely long "
    "lovely low main metallic modern muddy narrow new nice old open own pale pretty quiet rainy "
    "ready ripe rocky round rural sad same sandy shiny shirtless short similar single small snowy "
    "soft steep stormy sunny tall tan tasty thick thin tiny ugly urban vintage visible warm wet "
    "whole wide wooden young".split()
)
# Not those whose forms are rather things of a picture: parks, lights, plants, signs, waves, faces.
_VERBS = frozenset(
    "appear approach arrive bark become begin bend bite blow bring build buy carry catch "
    "celebrate chase check chew clean climb come compete contain cook cover crash crawl cross "
    "crouch cut dance dangle depict display dive do drag drink drive eat enjoy enter examine "
    "explore fall feature feed fill float fly follow gather gaze get give glide glow go grab "
    "graze grow hang have help hit hold hover hug include jump keep kick kneel land laugh lay "
    "lead lean leap learn lick lie lift line listen look make march meet melt move munch nap "
    "observe open overlook pass pedal peek peer perch perform play point pose pour prepare "
    "pull push race raise reach read receive recline reflect relax rest ride rise run sail "
    "say see seem sell serve set share shine show sing sip sit sleep slide smile sniff soar "
    "speak spray spread squat stand stare start stay stop stretch stroll surround swim swing "
    "take talk throw toss touch travel try turn use wag wait walk wander watch wear work "
    "write".split()
)
_PASTS = frozenset(
    "ate bent bitten blew blown bought broke broken brought built came caught cut dove drank "
    "drawn driven drove eaten fallen fed fell flew flown found gave given gone got grew grown "
    "held hid hidden hit hung kept knelt knew laid lain lay leapt lit made met put ran read "
    "ridden rode rose sang sat seen set shone shown slept slid sold spent spoke spread stood "
    "stuck swam swept swung taken taught threw thrown told took torn went woke won wore worn "
    "wound woven written wrote".split()
)


def _third_person(verb: str) -> str:
    """``carries``, ``watches``, ``sits`` of a verb."""
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + ("es" if verb.endswith(("ch", "sh", "ss", "x", "o")) else "s")


_THIRD_PERSONS = frozenset(map(_third_person, _VERBS))
_FORMS = _VERBS | _THIRD_PERSONS | _PASTS


def _is_plural(noun: str) -> bool:
    if noun in _PLURALS:
        return True
    return noun.endswith("s") and not (
        noun.endswith(("ss", "us", "is", "'s")) or noun in _SINGULAR_IN_S
    )


def _singular(noun: str) -> str:
    """Of a noun, roughly: enough to see that "boxes" and "box" are one thing."""
    if noun in _PLURALS or not _is_plural(noun):
        return _PLURALS.get(noun, noun)
    if noun.endswith("ies"):
        return noun[:-3] + "y"
    if noun.endswith(("ses", "xes", "zes", "ches", "shes")):
        return noun[:-2]
    return noun.removesuffix("s")


def _is_ing(word: str) -> bool:
    """Whether it is a verb's form in -ing."""
    known = word in _NOUNS_IN_ING or word in _ADJECTIVES_IN_ING or word in _VERBS
    return word.endswith("ing") and len(word) > 4 and not known


def _is_participle(word: str) -> bool:
    return word.endswith("ed") and len(word) > 4 and word not in _NOUNS_IN_ED


def _is_adverb(word: str) -> bool:
    known = word in _NOUNS_IN_LY or word in _ADJECTIVES
    return word in _ADVERBS or (word.endswith("ly") and not known)


def _begins(word: str) -> bool:
    """Whether a phrase begins with a word: an article or its like, or a number."""
    return word in _DETERMINERS or word in _MANY


def _needs_noun(before: str) -> bool:
    """Whether a noun is still to come after a word."""
    return _begins(before) or before in _ADJECTIVES or before in COLOURS


def _in_doubt(word: str, before: str) -> bool:
    """Whether a word behind a noun in the singular may be a verb or a noun, by its form.

    It is asked where the subject may be plural all the same: "a cat and a dog sleep", "above the
    street hang three lamps".
    """
    known = word in _PASTS or _needs_noun(before) or _is_plural(before)
    return word in _VERBS and not known


def _is_finite(word: str, before: str) -> bool:
    """Whether a word that may be a verb or a noun is a verb here.

    Args:
        word: "stand", "sits", "held", "parked".
        before: the word before it in its phrase, or what the phrase begins with; "" for neither.
    """
    if not before:  # "and plays with it": no article says that a noun follows
        return word in _FORMS
    if _needs_noun(before):
        return False  # "a stand", "two drinks", "a large broken window"
    if word in _VERBS or _is_participle(word):  # "two men stand", and not "a fruit stand"
        return _is_plural(before) or before in _PLURAL_TOO or word in _PASTS
    return word in _FORMS


# ---- phrases -------------------------------------------------------------------------------------
def noun_phrases(caption: str) -> list[str]:
    """Things that a caption names, without articles, in order, each once.

    A phrase has five words at most; one that only names the picture itself is no thing.
    """
    found: dict[str, None] = {}
    caption = re.sub(r'"[^"]*"|\u201c[^\u201d]*\u201d', ",", caption)  # what a sign says
    for sentence in re.split(r"[.;!?]", caption.lower().replace("\u2019", "'")):
        # Marks and dashes that stand alone end a phrase; those inside a word belong to it.
        for piece in re.split(r"[^\w\s'-]|(?<!\w)-+|-+(?!\w)", _until_denied(sentence)):
            for phrase, determiner in _between_ends(piece.split()):
                thing = _thing(phrase, determiner in _SINGULAR)
                if thing:
                    found[" ".join(thing)] = None
    return list(found)


def _until_denied(sentence: str) -> str:
    """What stands before the first word that denies something."""
    for word in re.finditer(r"[\w'-]+", sentence):
        if word[0] in _DENIALS or word[0].endswith("n't"):
            return sentence[: word.start()]
    return sentence


def _between_ends(words: Sequence[str]) -> Iterator[tuple[list[str], str]]:
    """Words between those that end a phrase, each with the determiner before them, "" for none."""
    phrase: list[str] = []
    determiner, joined = "", False  # joined: by "and" to what stands before
    for word, following in pairwise([*words, ""]):
        before = phrase[-1] if phrase else determiner
        if word == "and" and before in COLOURS and following in COLOURS:
            phrase.append(word)  # "a black and white dog" is one thing
        elif not phrase and (_is_adverb(word) or _is_ing(word)):
            continue  # "a very large dog", "a smiling man"
        elif (joined or _begins(following)) and phrase and _in_doubt(word, before):
            # "a man and a woman stand", or "an apple and a fruit stand": nobody knows.
            phrase, determiner = [], ""
        elif _begins(word):
            joined = joined and not phrase
            yield phrase, determiner
            phrase, determiner = ([word] if word in _MANY else []), word
        elif word in _ENDS or _is_adverb(word) or _is_ing(word) or _is_finite(word, before):
            yield phrase, determiner
            phrase, determiner, joined = [], "", word == "and"
        else:
            phrase.append(word)
            if word.endswith("'s"):  # of "a woman's legs" the article is the woman's
                determiner = "the"
    yield phrase, determiner


def _thing(phrase: Sequence[str], singular: bool) -> list[str]:
    """The words of a phrase that name a thing; none where it names none.

    Args:
        phrase: words without the article.
        singular: whether "a", "an", "one" or "another" stands before it. Then what looks like a
            plural is a verb that no list has: "a seal juggles".
    """
    words = list(phrase)
    if singular:
        for place, word in enumerate(words):
            before_noun = word in _BEFORE_NOUNS or place == 0
            if _is_plural(word) and (not before_noun or place == len(words) - 1):
                words = words[:place]
                break
    while words and _cannot_end(words[-1]):
        words.pop()
    if not words or len(words) > _LONGEST or words[-1] in _NO_THINGS or words[-1] in _MANY:
        return []
    countable = _is_plural(words[-1]) or words[-1] in _PLURAL_TOO
    return [] if words[0] in _MANY and not countable else words  # "a two story house"


def _cannot_end(word: str) -> bool:
    """Whether a noun must follow: colours, adjectives, participles, "man's", and numbers."""
    known = word in COLOURS or word in _ADJECTIVES or word in _ADJECTIVES_IN_ING or word == "and"
    return known or _is_participle(word) or word.endswith(("'s", "s'")) or word.isdigit()


# ---- questions -----------------------------------------------------------------------------------
def existence(phrase: str) -> str:
    """Whether it is there: is there a red ball?, are there two boxes?, is there wet grass?"""
    words = phrase.split()
    if words[0] in _MANY or _is_plural(words[-1]):
        return f"are there {phrase}?"
    if words[-1] in _NOT_COUNTED:
        return f"is there {phrase}?"
    return f"is there {'an' if phrase[0] in 'aeiou' else 'a'} {phrase}?"


def swapped(phrases: Sequence[str]) -> list[str]:
    """What is not there: two things with each other's colour, or with each other's material.

    What may be there is not denied: a "dark blue" shirt is a blue one, and a "ball" whose colour is
    not said may be a red one. A colour is not exchanged for a material: plastic has any colour.

    Args:
        phrases: of one caption, as ``noun_phrases`` gives them.
    """
    found: dict[str, None] = {}
    every = [phrase.split() for phrase in phrases]
    for kind in (COLOURS, MATERIALS):
        said = [words for words in every if _of_kind(words, kind)]
        for first, second in pairwise(said):
            for one, other in ((first, second), (second, first)):
                asked, named = set(_of_kind(one, kind)), _names(other[-1:])
                known = [set(_of_kind(own, kind)) for own in every if named & _names(own)]
                if not any(asked <= own or own <= asked for own in known):
                    found[" ".join(_exchanged(other, one, kind))] = None
    return list(found)


def _names(words: Sequence[str]) -> set[str]:
    """What things of these words may be called: of "a bear cub" both, and what is like either."""
    own = set(map(_singular, words))
    return own.union(*(alike for alike in _ALIKE if alike & own))


def _of_kind(words: Sequence[str], kind: frozenset[str]) -> list[str]:
    """What a phrase says of its noun's colour, or its material, in one spelling."""
    return ["gray" if word == "grey" else word for word in words[:-1] if word in kind]


def _exchanged(words: Sequence[str], by: Sequence[str], kind: frozenset[str]) -> list[str]:
    """A phrase with the colour or material of another one: all else stays, its number too."""
    places = [place for place, word in enumerate(words[:-1]) if word in kind]
    described = " and ".join(_of_kind(by, kind)).split()
    return [*words[: places[0]], *described, *words[places[-1] + 1 :]]


T = TypeVar("T")


def _spread(many: Sequence[T], number: int) -> list[T]:
    """So many of them at most, from the first on in even steps."""
    number = min(number, len(many))
    return [many[place * len(many) // number] for place in range(number)]


class PhraseQuestions:
    """Yes/no questions about noun phrases; see the module docstring."""

    def __init__(self, *_: Any) -> None:
        pass

    def __call__(self, captions: Sequence[str]) -> list[list[QA]]:
        """Questions with answers of each caption; none where it names no thing.

        At most ``MOST_QUESTIONS`` of each: half of them with "no" where there are so many, and
        spread over the caption.
        """
        made = []
        for caption in captions:
            phrases = noun_phrases(caption)
            denied = _spread(swapped(phrases), MOST_QUESTIONS // 2)
            named = _spread(phrases, MOST_QUESTIONS - len(denied))
            made.append(
                [(existence(phrase), "yes") for phrase in named]
                + [(existence(phrase), "no") for phrase in denied]
            )
        return made
