"""A judge behind any endpoint that speaks OpenAI's chat completions (vLLM, SGLang, Ollama, ...).

The client is ``openai``'s. It asks once: ``judging.py`` counts the failures of each picture, stops
when the judge is down, and ends its waits at Ctrl-C. What comes back is a stranger's text: it may
be anything, may never end, and may repeat the key.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import mimetypes
import os
import re
import time
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import openai
from PIL import Image

from unigame.errors import UserError
from unigame.evaluation.scorers.judges import Judge, JudgeUnavailable, Rubric
from unigame.system.say import warn

KEY_VARIABLE = "OPENAI_API_KEY"
OPENAI_URL = "https://api.openai.com/v1"
LARGEST_REPLY = 4 << 20
"""Bytes; a judgement of a few hundred tokens has some thousand."""

_RETRYABLE = (408, 409, 425, 429)
"""And every 5xx. Other 4xx are about the request itself, so asking again changes nothing."""
_SHOWN = 160  # characters of a server's message
_MESSAGE_BYTES = 1 << 16
_SHORTEST_SECRET = 3  # shorter "keys" are no secret, and taking them out would spoil replies
_LIKE_A_KEY = 8  # a dummy such as "vllm" may well be part of a model's name
CHECKS = 4
"""Requests before any drawing; two of them may only find out which options are wanted."""

_LONE_SURROGATES = re.compile("[\ud800-\udfff]")


class OpenAIJudge(Judge):
    """Asks ``BASE_URL/chat/completions``, picture inline, temperature 0.

    The key is read from ``OPENAI_API_KEY``; it is sent to the endpoint and nowhere else, and no
    message, record, log or stored reply holds it, also where the endpoint repeats it.

    Args:
        model: the endpoint's name for the model, or ``MODEL@BASE_URL``.
        base_url: address up to and without ``/chat/completions``.
        timeout: seconds for a whole request, from connecting to the last byte of the reply.
        max_tokens: longest reply.
        in_flight: requests at once.

    Raises:
        UserError: a malformed address, OpenAI's own without a key, or a key that cannot be one.
    """

    def __init__(
        self,
        model: str,
        base_url: str = OPENAI_URL,
        *,
        timeout: float = 120.0,
        max_tokens: int = 512,
        in_flight: int = 8,
    ) -> None:
        model, at, address = model.partition("@http")
        base_url = f"http{address}" if at else base_url
        if not model or "@" in model:
            # Without the address, which may hold a password.
            raise UserError(
                f"judge openai:{model.partition('@')[0]}: give a model and an address, as in "
                "openai:gpt-4o@https://api.openai.com/v1"
            )
        self._key = _key()
        self.model, self.base_url = model, _checked(base_url)
        if len(self._key) >= _LIKE_A_KEY and self._key in model + self.base_url:
            raise UserError(
                f"the judge's model or address holds the key in {KEY_VARIABLE}, and both go into "
                "the record; give them without it"
            )
        # Without the address: a server that comes back elsewhere is the same judge, and its
        # judgements so far still count.
        self.name = f"openai:{model}"
        self.timeout, self.in_flight = timeout, in_flight
        # Newer OpenAI models rename or refuse these two; see _adapt.
        self._options: dict[str, float | int] = {"temperature": 0, "max_tokens": max_tokens}
        if not self._key and self.base_url.startswith(OPENAI_URL):
            raise UserError(f"{self.name} needs a key; set the variable {KEY_VARIABLE}")

    def settings(self) -> dict[str, Any]:
        """Address, and the options of the requests as the endpoint took them."""
        return {"base_url": self.base_url, **self._options}

    def check(self) -> None:
        """One short request with a picture: what is wrong with it is known before hours of drawing.

        A server that is only busy is taken for one that works. One that is away is warned of: what
        was judged before needs no judge.

        Raises:
            UserError: the key, the model or the address is wrong, or pictures are not taken.
        """
        failed = JudgeUnavailable("judge: no reply")
        for tried in range(CHECKS):
            try:
                asyncio.run(self._ask(_probe()))
                return
            except JudgeUnavailable as error:
                if "HTTP" in error.reason and error.retryable:
                    return
                failed = error
                if not error.retryable:
                    break
                time.sleep(0 if error.retry_after == 0 else tried)
        reason = failed.reason.removeprefix("judge: ")
        said = f"{self.name}@{self.base_url} judges no picture now ({reason})"
        if failed.retryable:
            warn(f"{said}; what is not judged yet will have no score: see that it is up")
            return
        raise UserError(f"{said}; see that it takes pictures, and that the address is right")

    def reply(self, prompt: str, explanation: str, picture: Path, rubric: Rubric) -> str:
        """One request. See ``Judge.reply``; 401, 403 and 404 are errors of the user."""
        content = [
            {"type": "text", "text": rubric.fill(prompt, explanation)},
            {"type": "image_url", "image_url": {"url": _inline(picture)}},
        ]
        messages = [{"role": "user", "content": content}]
        return self._hidden(_text_of(asyncio.run(self._ask(messages))))

    def say(self, text: str) -> str:
        """One request with a text alone. Errors as of ``reply``."""
        messages = [{"role": "user", "content": text}]
        return self._hidden(_text_of(asyncio.run(self._ask(messages))))

    async def _ask(self, messages: list[dict[str, Any]]) -> bytes:
        """The body of the reply; ``timeout`` is for all of it, to the last byte."""
        sent = dict(self._options)

        async def refuse(response: Any) -> None:
            """What is no success is judged here, before the client reads all that is sent."""
            if not response.is_success:
                said = self._message(await _read(response.aiter_bytes(), _MESSAGE_BYTES))
                raise self._failure(response.status_code, response.headers, said, sent)

        request: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "extra_headers": {} if self._key else {"Authorization": openai.Omit()},
            "timeout": None,
            **sent,
        }
        http = openai.DefaultAsyncHttpxClient(
            follow_redirects=False,
            timeout=None,
            event_hooks={"response": [refuse]},
            verify=self.base_url.startswith("https"),  # spares reading certificates for plain http
        )
        client = openai.AsyncOpenAI(
            api_key=self._key or "none", base_url=self.base_url, max_retries=0, http_client=http
        )
        asked = client.chat.completions.with_streaming_response
        try:
            async with asyncio.timeout(self.timeout), client, asked.create(**request) as response:
                body = await _read(response.iter_bytes(), LARGEST_REPLY + 1)
        except TimeoutError:
            raise JudgeUnavailable(f"judge: no reply within {self.timeout:g} s") from None
        except (UserError, JudgeUnavailable):
            raise
        except Exception as error:  # the client has several types for a broken connection
            cause = error.__cause__ or error
            if isinstance(cause, UserError | JudgeUnavailable):
                raise cause from None
            if not isinstance(error, openai.OpenAIError) and "httpx" not in type(error).__module__:
                raise
            lost = "no connection" if "Connect" in type(cause).__name__ else "connection lost"
            raise JudgeUnavailable(f"judge: {lost}") from None
        if len(body) > LARGEST_REPLY:
            said = f"judge: a reply of more than {LARGEST_REPLY >> 20} MiB"
            raise JudgeUnavailable(said, retryable=False)
        return body

    def _failure(
        self, status: int, headers: Any, said: str, sent: dict[str, float | int]
    ) -> Exception:
        """What a status means for the run."""
        where = f"judge {self.name}@{self.base_url} answered {status}"
        if status in (401, 403):
            return UserError(f"{where}: it does not take the key in {KEY_VARIABLE}; set another")
        if status == 404:
            return UserError(f"{where}: no such model or address ({said}); check the spelling")
        if status == 400 and self._adapt(said, sent):
            return JudgeUnavailable("judge: other options wanted", retry_after=0)
        if 300 <= status < 400:
            elsewhere = self._hidden(_origin(headers.get("Location", "")))
            return JudgeUnavailable(
                f"judge: HTTP {status}, a redirect to {elsewhere}, which is never followed; "
                "give the judge's own address",
                retryable=False,
            )
        if status in _RETRYABLE or status >= 500:
            wait = _retry_after(headers.get("Retry-After"))
            return JudgeUnavailable(f"judge: HTTP {status}", retry_after=wait)
        return JudgeUnavailable(f"judge: HTTP {status} ({said})", retryable=False)

    def _message(self, body: bytes) -> str:
        """What the server says, without the key, which some of them repeat."""
        text = body.decode("utf-8", "replace")
        try:
            said = json.loads(text)
        except (ValueError, RecursionError):
            said = text
        try:
            said = said["error"]["message"]
        except (KeyError, IndexError, TypeError):
            pass
        text = said if isinstance(said, str) else _as_text(said)
        return " ".join(self._hidden(text).split())[:_SHOWN] or "no reason given"

    def _hidden(self, text: str) -> str:
        """A text without the key, and without half characters that no file could hold."""
        if len(self._key) >= _SHORTEST_SECRET:
            for form in (self._key, quote(self._key, safe="")):
                text = text.replace(form, "***")
        return _LONE_SURROGATES.sub("\ufffd", text)

    def _adapt(self, said: str, sent: dict[str, float | int]) -> bool:
        """Change an option that the server names as unsupported; whether to ask again."""
        if "max_tokens" in sent and "max_completion_tokens" in said:
            changed = {k: v for k, v in sent.items() if k != "max_tokens"}
            changed["max_completion_tokens"] = sent["max_tokens"]
        elif "temperature" in sent and "temperature" in said:
            changed = {k: v for k, v in sent.items() if k != "temperature"}
        else:
            return False
        self._options = changed
        return True


def _probe() -> list[dict[str, Any]]:
    """A question about a small grey picture."""
    file = io.BytesIO()
    Image.new("RGB", (56, 56), (128, 128, 128)).save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    content = [
        {"type": "text", "text": "Say yes."},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    return [{"role": "user", "content": content}]


async def _read(chunks: AsyncIterator[bytes], most: int) -> bytes:
    """At most so many bytes, whatever else is sent."""
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) >= most:
            break
    return bytes(body[:most])


def _key() -> str:
    """The key, if there is one."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(
            f"the key in {KEY_VARIABLE} holds a blank, a line break or a letter beyond ASCII, as "
            "no key does; copy it again"
        )
    return key


def _checked(base_url: str) -> str:
    url = base_url.rstrip("/").removesuffix("/chat/completions")
    try:
        parts = urlsplit(url)
        whole = bool(parts.scheme in ("http", "https") and parts.hostname)
        parts.port  # noqa: B018  reading it checks it
    except ValueError:
        raise UserError("the judge's address is malformed; see that host and port are") from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(
            f"the judge's address at {parts.hostname} holds a user name, password, query or "
            "fragment, which would end up in the record; give the bare address and put the key in "
            f"{KEY_VARIABLE}"
        )
    if not whole or not (url.isascii() and url.isprintable()) or " " in url:
        raise UserError(f"no address {base_url!r}; give one such as http://localhost:8000/v1")
    return url


def _origin(location: str) -> str:
    """Scheme and host of an address, without what else it may hold."""
    try:
        parts = urlsplit(location)
        host = (parts.hostname or "") + (f":{parts.port}" if parts.port else "")
    except ValueError:
        return "nowhere"
    return f"{parts.scheme}://{host}"[:_SHOWN] if host else "another path"


def _inline(picture: Path) -> str:
    """The file as a data URI."""
    kind = mimetypes.guess_type(picture.name)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(picture.read_bytes()).decode()}"


def _text_of(body: bytes) -> str:
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise JudgeUnavailable("judge: not a chat completion") from None
    if isinstance(text, list):  # some servers give a list of parts
        text = "".join(str(part.get("text", "")) for part in text if isinstance(part, dict))
    return text if isinstance(text, str) else ""  # null: a refusal, or all tokens spent thinking


def _as_text(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return ""


def _retry_after(value: str | None) -> float | None:
    """Seconds from the header's two forms, a number or a date."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None
