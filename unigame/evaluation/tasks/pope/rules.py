"""What a reply to a POPE question says, by two references, and what it counts as."""

from __future__ import annotations


def official_label(reply: str) -> str:
    """``no`` if the first sentence has the word "No", "no" or "not", else ``yes``.

    The spelling is exact: ``NO``, ``nope``, ``Not sure`` and an empty reply are ``yes``.
    """
    words = reply.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def lmms_eval_label(reply: str) -> str:
    """The reply in lower case; only exactly ``yes`` and ``no`` count as an answer."""
    return reply.lower().strip()


def confusion(label: str, truth: str) -> tuple[float, float, float, float]:
    """(tp, fp, fn, tn) of one question, "yes" being positive; all 0 where the reply is neither."""
    pairs = (("yes", "yes"), ("yes", "no"), ("no", "yes"), ("no", "no"))
    tp, fp, fn, tn = (float((label, truth) == pair) for pair in pairs)
    return tp, fp, fn, tn
