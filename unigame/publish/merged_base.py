"""Whether a merge would take the adapter's own base, known before a repository is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from unigame.backbones.common.adapter_files import read_adapter
from unigame.backbones.loading import load_backbone
from unigame.backbones.merging import base_of, require_own_base


def require_its_base(
    folder: str | Path,
    *,
    model: str | None = None,
    dtype: str = "auto",
    device: str | torch.device | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> str:
    """Read the base's weights before anything is merged, made or written.

    Merging compares the merged model with base and adapter as they were loaded, so that a wrong
    base agrees with itself. An adapter without a digest is only warned of, as it is loaded.

    Args:
        folder: of the adapter.
        model: the base; None: what the adapter names.
        dtype: to load it in; a digest is the same in each.
        device: where to load it.
        say: takes a line on what is done now.

    Returns:
        The digest of the base that is there.

    Raises:
        UserError: no adapter or no base is there, or the base has another digest than the adapter
            says.
    """
    read_adapter(folder)
    base = base_of(Path(folder), model)
    say(f"checking that {base} is what the adapter was made for")
    digest = load_backbone(base, dtype=dtype, device=device).weights_digest()
    require_own_base(Path(folder), base, digest)
    return digest
