"""Pictures behind links: fetched once and kept, and only where a source says ``fetch: true``."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from unigame.data.images import CorruptImage, decode_image

UNASKED = "link to a picture, and no fetch: true"
NO_PICTURE = "link that gives no picture"
SECONDS = 20.0
MOST_BYTES = 20_000_000
_LINK = re.compile(r"https?://", re.IGNORECASE)


class NotFetched(Exception):
    """A link without its picture; ``args`` are the reason, for counting, and the detail."""


class Links:
    """From the cell of a picture to the same without a link.

    Args:
        fetch: whether links may be followed.
        folder: where pictures are kept, by the digest of their link; by default the user's cache.
        seconds: for one picture.
        most_bytes: of one picture.
    """

    def __init__(
        self,
        fetch: bool,
        folder: str | Path | None = None,
        *,
        seconds: float = SECONDS,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        self.folder = Path(folder or Path(cache) / "unigame").expanduser() / "pictures"
        self.fetch, self.seconds, self.most_bytes = fetch, seconds, most_bytes
        self._failed: dict[str, str] = {}  # rows that share a dead link wait for it once

    def __call__(self, cell: Any) -> Any:
        """The cell itself, or the file of the picture that it links to.

        Raises:
            NotFetched: it is a link that may not be followed, or gives no picture.
        """
        if not isinstance(cell, str) or not _LINK.match(cell):
            return cell
        if not self.fetch:
            raise NotFetched(UNASKED, cell[:80])
        path = self.folder / hashlib.sha256(cell.encode("utf-8", "surrogatepass")).hexdigest()
        if path.is_file():
            return path
        if cell not in self._failed:
            try:
                self._keep(self._download(cell), path)
                return path
            except (OSError, ValueError, http.client.HTTPException, CorruptImage) as error:
                self._failed[cell] = f"{cell[:80]}: {error!s:.80}"
        raise NotFetched(NO_PICTURE, self._failed[cell])

    def _download(self, link: str) -> bytes:
        ends = time.monotonic() + self.seconds
        found = bytearray()
        asked = Request(link, headers={"User-Agent": "unigame"})
        with urlopen(asked, timeout=self.seconds) as answer:
            length = int(answer.headers.get("Content-Length") or 0)
            while length <= self.most_bytes and (piece := answer.read1(65_536)):
                found += piece
                if len(found) > self.most_bytes:
                    break
                if time.monotonic() > ends:
                    raise ValueError(f"not there after {self.seconds:g} s")
        if max(length, len(found)) > self.most_bytes:
            raise ValueError(f"more than {self.most_bytes} bytes")
        if len(found) < length:
            raise ValueError(f"cut short after {len(found)} of {length} bytes")
        decode_image(bytes(found))
        return bytes(found)

    def _keep(self, picture: bytes, path: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file:
            file.write(picture)
        os.replace(file.name, path)  # whole or not at all: other processes may fetch it, too
