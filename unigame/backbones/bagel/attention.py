"""Who sees whom: the blocks of a row, and the dense attention mask that follows from them.

A row is a sequence of blocks. Each token of text is a block of its own. The tokens of a picture,
with the mark before and the mark behind it, are one block. The authors' rules are then

1. a block sees itself and all blocks before it (so text is causal, and a picture sees itself in
   both directions),
2. but a picture that is being drawn from noise is seen by no other block.

Blocks are numbered along the row. A block takes one rotary position, so in rows where the picture
that is drawn comes last, positions are these numbers.

Shape suffixes: B rows, Q tokens that look, K tokens that are seen (a cache's first).
"""

from __future__ import annotations

import torch
from torch import Tensor


def visible(block_BQ: Tensor, real_BK: Tensor, drawn: slice | None = None) -> Tensor:
    """The mask (B, 1, Q, K), True where a token is seen.

    Padding sees whatever block its number may see: at number 0 that is never nothing, which would
    be a softmax over nothing.

    Args:
        block_BQ: number of each token's block.
        real_BK: 0 at padding. More tokens than look stand for a cache: whole blocks, none of them
            drawn from noise, all of them before the tokens that look.
        drawn: tokens of the picture that is drawn from noise, the same in each row.
    """
    cached = real_BK.shape[1] - block_BQ.shape[1]
    before = block_BQ.new_full((len(block_BQ), cached), -1)
    block_BK = torch.cat([before, block_BQ], dim=1)
    seen_BQK = block_BK[:, None, :] <= block_BQ[:, :, None]
    seen_BQK &= real_BK[:, None, :].bool()
    if drawn is not None:
        noised_B1 = block_BQ[:, drawn.start, None]
        hidden_BK, inside_BQ = block_BK == noised_B1, block_BQ == noised_B1
        seen_BQK &= ~hidden_BK[:, None, :] | inside_BQ[:, :, None]
    return seen_BQK[:, None]
