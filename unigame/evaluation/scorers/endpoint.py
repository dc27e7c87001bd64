"""One POST of JSON to an endpoint that may misbehave: a deadline, a limit, and no redirects.

urllib alone follows a redirect with a GET that lacks the body, waits ``timeout`` for every single
byte, and reads whatever it is sent. A server that trickles, floods or sends us elsewhere must cost
no more than one failed request.
"""

from __future__ import annotations

import io
import socket
import time
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.request import (
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    Request,
    build_opener,
)

LARGEST_REPLY = 4 << 20
"""Bytes; a judgement of a few hundred tokens has some thousand."""


class ReplyTooLarge(Exception):
    """A reply of more than ``LARGEST_REPLY`` bytes; it was not read to its end."""


def post_json(request: Request, timeout: float) -> bytes:
    """The body of the reply.

    Args:
        request: with its data and headers. Proxies are taken from the environment, as by urllib.
        timeout: seconds for all of it: connecting, sending, waiting, and reading to the last byte.

    Raises:
        ReplyTooLarge: more than ``LARGEST_REPLY`` bytes.
        HTTPError: any other status than 2xx, redirects among them.
        OSError: no connection, or none any more; ``TimeoutError`` (or ``URLError`` of one) after
            ``timeout``.
        HTTPException: not HTTP.
    """
    opener = build_opener(_Timed, _TimedTLS, _StayHere)
    with opener.open(request, timeout=timeout) as response:
        if isinstance(response, HTTPResponse) and (response.length or 0) > LARGEST_REPLY:
            raise ReplyTooLarge
        body: bytes = response.read(LARGEST_REPLY + 1)
    if len(body) > LARGEST_REPLY:
        raise ReplyTooLarge
    return body


class _StayHere(HTTPRedirectHandler):
    """A redirect is an error like any other: who answers elsewhere was not shown the picture."""

    def http_error_302(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any) -> None:
        """Not handled, so that it becomes an ``HTTPError``."""

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302  # type: ignore[assignment]


# ---- a deadline on every byte --------------------------------------------------------------------


class _DeadlineReader(io.RawIOBase):
    """What a socket receives, each wait no longer than what is left of the time."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._socket, self._deadline = connection, deadline
        self._raw = connection.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._socket.settimeout(_left(self._deadline))
        return self._raw.readinto(buffer)  # type: ignore[attr-defined, no-any-return]

    def close(self) -> None:
        self._raw.close()
        super().close()


class _DeadlineSocket:
    """The part of a socket that http.client uses, with a deadline for all of it."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._socket, self._deadline = connection, deadline

    def sendall(self, data: Any) -> None:
        self._socket.settimeout(_left(self._deadline))
        self._socket.sendall(data)

    def makefile(self, mode: str, *_: Any, **__: Any) -> io.BufferedReader:
        return io.BufferedReader(_DeadlineReader(self._socket, self._deadline))

    def close(self) -> None:
        self._socket.close()


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


class _Connection(HTTPConnection):
    def connect(self) -> None:
        deadline = time.monotonic() + float(self.timeout or 0)
        super().connect()
        self.sock = _DeadlineSocket(self.sock, deadline)


class _ConnectionTLS(HTTPSConnection):
    def connect(self) -> None:
        deadline = time.monotonic() + float(self.timeout or 0)
        super().connect()
        self.sock = _DeadlineSocket(self.sock, deadline)


class _Timed(HTTPHandler):
    def http_open(self, req: Request) -> Any:
        return self.do_open(_Connection, req)


class _TimedTLS(HTTPSHandler):
    def https_open(self, req: Request) -> Any:
        return self.do_open(_ConnectionTLS, req, context=self._context)  # type: ignore[attr-defined]
