"""A gap between two accuracies, its standard error over pictures, and what may be said of it.

A picture is the unit: candidates of one picture resemble each other. Where both accuracies are of
the same pictures, the error is that of the paired difference.

    P  pictures    K  candidates of each    E  values, several of a picture
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from unigame.methods.selfplay.verifier_check import placements

ENOUGH = 0.02  # of accuracy: smaller gaps are not worth a long run
USUAL = 96
"""Pictures that are taken by default."""
ROUND = 50  # numbers of pictures that are advised are multiples of it
Verdict = Literal["yes", "no", "unknown"]


def error_of_mean(values_P: Tensor, pictures: int | None = None) -> float:
    """Standard error of the mean of one value a picture; nan where there are fewer than two.

    It is never below that of one picture which came out otherwise, 1 / P: where all pictures of a
    few agree, the spread of 0 would pass for certainty.

    Args:
        values_P: one a picture.
        pictures: of them that say something. Default: all.
    """
    pictures = len(values_P) if pictures is None else pictures
    if pictures < 2:
        return math.nan
    return max(values_P.double().std().item() / math.sqrt(len(values_P)), 1 / pictures)


def compared(before_P: Tensor, after_P: Tensor) -> dict[str, float]:
    """Two accuracies on the same pictures: how much larger the first is, and its error."""
    gap_P = before_P.double() - after_P.double()
    gap = gap_P.mean().item() if len(gap_P) else math.nan
    return {"gap": gap, "error": error_of_mean(gap_P)}


class Share(NamedTuple):
    """A share of what is kept, over pictures.

    Attributes:
        value: None where nothing is kept.
        part_P: each picture's part in its error.
        pictures: of which something is kept.
    """

    value: float | None
    part_P: Tensor
    pictures: int

    @property
    def error(self) -> float:
        """Standard error; nan where fewer than two pictures say something."""
        return error_of_mean(self.part_P, self.pictures)

    def gap_to(self, other: Share) -> dict[str, float]:
        """How much smaller it is than another share of the same pictures, and the error."""
        if self.value is None or other.value is None:
            return {"gap": math.nan, "error": math.nan}
        pictures = min(self.pictures, other.pictures)
        error = error_of_mean(other.part_P - self.part_P, pictures)
        return {"gap": other.value - self.value, "error": error}


def share_of(right_PK: Tensor, kept_PK: Tensor) -> Share:
    """The share of kept candidates that are right.

    A ratio of two sums over pictures, whose error is that of the linearised ratio (Cochran 1977,
    Sampling Techniques, section 6.3).
    """
    number_P = kept_PK.double().sum(1)
    right_P = (right_PK & kept_PK).double().sum(1)
    if not number_P.any():
        return Share(None, torch.zeros_like(number_P), 0)
    value = (right_P.sum() / number_P.sum()).item()
    part_P = (right_P - value * number_P) / number_P.mean()
    return Share(value, part_P, int((number_P > 0).sum()))


def auc_and_error(same_P: Tensor, other_E: Tensor, made_of_E: Tensor) -> dict[str, float] | None:
    """AUC of one value a picture against several, and its error over pictures.

    The error is that of DeLong's placements, summed by picture (Obuchowski 1997, Biometrics 53).

    Args:
        same_P: one of each picture.
        other_E: those that should be smaller.
        made_of_E: the picture that each of these belongs to.

    Returns:
        None where there is nothing to compare with.
    """
    if not len(other_E):
        return None
    above_P = placements(same_P, other_E)
    found = above_P.mean().item()
    below_E = 1 - placements(other_E, same_P)
    of_others_P = torch.zeros_like(above_P).index_add(0, made_of_E, below_E - found)
    part_P = above_P - found + of_others_P * (len(same_P) / len(other_E))
    return {"auc": found, "error": error_of_mean(part_P)}


def judged(gap: float, error: float, enough: float = ENOUGH) -> Verdict:
    """Whether a gap is worth something: above ``enough`` and above two standard errors.

    "unknown": an interval of two standard errors holds both no gap and one that is enough, or
    there is no error.
    """
    if math.isnan(error) or math.isnan(gap):
        return "unknown"
    if gap > max(enough, 2 * error):
        return "yes"
    return "unknown" if gap - 2 * error <= 0 and gap + 2 * error > enough else "no"


def needed(pictures: int, gap: float, error: float, enough: float = ENOUGH) -> int:
    """So many pictures would tell, if the gap stays as it is."""
    if math.isnan(error) or math.isnan(gap):
        return max(USUAL, 2 * pictures)
    times = (2 * error / max(gap, enough - gap, 0.25 * ENOUGH)) ** 2
    return ROUND * math.ceil(max(times * pictures, pictures + 1) / ROUND)
