"""The one rule by which a seed becomes many: hashed, never added.

With ``seed + number``, picture 5 of seed 0 would be picture 1 of seed 4, and runs that should be
independent would share their noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def derive_seed(seed: int, *parts: object) -> int:
    """A seed for one thing among many, from 0 to 2^63 - 1.

    It depends only on the run's seed and on what the parts name (a purpose, an item's id, a sample
    number), not on when or beside what the thing is made.

    Args:
        seed: of the whole run.
        parts: what tells this thing from all others of the run; told apart by their text.
    """
    text = "\0".join(str(part) for part in (seed, *parts))
    # File names that are no UTF-8 reach ids as lone surrogates.
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seeds_of_rows(rows: int, seed: int, given: Sequence[int] | None = None) -> list[int]:
    """A seed for each row of a batch: those given, or ``seed`` itself and others derived from it.

    So the one picture of seed 3 is the first of any number of them, and ``seeds=[3]`` draws it too.

    Raises:
        ValueError: no row, or another number of seeds than of rows.
    """
    if rows == 0:
        raise ValueError("prompts=[] draws nothing; give one prompt or more")
    if given is None:
        return [derive_seed(seed, row) if row else seed for row in range(rows)]
    if len(given) != rows:
        raise ValueError(f"{rows} prompts but {len(given)} seeds")
    return list(given)
