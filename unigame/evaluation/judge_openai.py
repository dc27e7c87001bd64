"""A judge behind any endpoint that speaks OpenAI's chat completions (vLLM, SGLang, Ollama, ...).

The standard library makes the request: it is one POST of JSON, huggingface_hub's client refuses all
requests, even local ones, under ``HF_HUB_OFFLINE=1``, and retrying is ours to count anyway.
"""

from __future__ import annotations

import base64
import json
import mimetypes
import os
import time
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from unigame.errors import UserError
from unigame.evaluation.judges import Judge, JudgeUnavailable, Rubric

KEY_VARIABLE = "OPENAI_API_KEY"
OPENAI_URL = "https://api.openai.com/v1"

_RETRYABLE = (408, 409, 425, 429)
"""And every 5xx. Other 4xx are about the request itself, so asking again changes nothing."""
_SHOWN = 160  # characters of a server's message


class OpenAIJudge(Judge):
    """Asks ``BASE_URL/chat/completions``, picture inline, temperature 0.

    The key is read from ``OPENAI_API_KEY``; it is sent to the endpoint and nowhere else, and no
    message, record or log holds it.

    Args:
        model: the endpoint's name for the model.
        base_url: address up to and without ``/chat/completions``.
        timeout: seconds to wait for the server to say anything.
        max_tokens: longest reply.
        in_flight: requests at once.

    Raises:
        UserError: a malformed address, or OpenAI's own without a key.
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
        if not model or "@" in model:
            raise UserError(
                f"judge openai:{model}@{base_url}: give a model and an address, as in "
                "openai:gpt-4o@https://api.openai.com/v1"
            )
        self.model, self.base_url = model, _checked(base_url)
        # Without the address: a server that comes back elsewhere is the same judge, and its
        # judgements so far still count.
        self.name = f"openai:{model}"
        self.timeout, self.in_flight = timeout, in_flight
        # Newer OpenAI models rename or refuse these two; see _adapt.
        self._options: dict[str, float | int] = {"temperature": 0, "max_tokens": max_tokens}
        self._key = os.environ.get(KEY_VARIABLE, "")
        if not self._key and self.base_url.startswith(OPENAI_URL):
            raise UserError(f"{self.name} needs a key; set the variable {KEY_VARIABLE}")

    def settings(self) -> dict[str, Any]:
        """Address, and the options of the requests as the endpoint took them."""
        return {"base_url": self.base_url, **self._options}

    def reply(self, prompt: str, explanation: str, picture: Path, rubric: Rubric) -> str:
        """One request. See ``Judge.reply``; 401, 403 and 404 are errors of the user."""
        content = [
            {"type": "text", "text": rubric.fill(prompt, explanation)},
            {"type": "image_url", "image_url": {"url": _inline(picture)}},
        ]
        sent = dict(self._options)
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], **sent}
        try:
            return _text_of(self._post(body))
        except HTTPError as error:
            with error:
                said = self._message(error)
            if error.code == 400 and self._adapt(said, sent):
                raise JudgeUnavailable("judge: other options wanted", retry_after=0) from None
            raise self._failure(error, said) from None
        except TimeoutError:
            raise JudgeUnavailable(f"judge: no reply within {self.timeout:g} s") from None
        except URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise JudgeUnavailable(f"judge: no reply within {self.timeout:g} s") from None
            raise JudgeUnavailable("judge: no connection") from None
        except (OSError, HTTPException):
            raise JudgeUnavailable("judge: connection lost") from None

    def _post(self, body: dict[str, Any]) -> bytes:
        request = Request(
            f"{self.base_url}/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        if self._key:
            # Unredirected: a server that sends us elsewhere must not send the key along.
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        with urlopen(request, timeout=self.timeout) as response:
            return response.read()

    def _failure(self, error: HTTPError, said: str) -> Exception:
        """What a status means for the run."""
        where = f"judge {self.name}@{self.base_url} answered {error.code}"
        if error.code in (401, 403):
            return UserError(f"{where}: it does not take the key in {KEY_VARIABLE}; set another")
        if error.code == 404:
            return UserError(f"{where}: no such model or address ({said}); check the spelling")
        if error.code in _RETRYABLE or error.code >= 500:
            wait = _retry_after(error.headers.get("Retry-After"))
            return JudgeUnavailable(f"judge: HTTP {error.code}", retry_after=wait)
        return JudgeUnavailable(f"judge: HTTP {error.code} ({said})", retryable=False)

    def _message(self, error: HTTPError) -> str:
        """What the server says, without the key, which some of them repeat."""
        try:
            text = error.read().decode("utf-8", "replace")
        except (OSError, HTTPException):
            text = ""
        try:
            text = json.loads(text)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            pass
        if self._key:
            text = text.replace(self._key, "***")
        return " ".join(str(text).split())[:_SHOWN] or "no reason given"

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


def _checked(base_url: str) -> str:
    url = base_url.rstrip("/").removesuffix("/chat/completions")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"no address {base_url!r}; give one such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query:
        raise UserError(
            f"the judge's address at {parts.hostname} holds a user name, password or query, which "
            f"would end up in the record; give the bare address and put the key in {KEY_VARIABLE}"
        )
    return url


def _inline(picture: Path) -> str:
    """The file as a data URI."""
    kind = mimetypes.guess_type(picture.name)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(picture.read_bytes()).decode()}"


def _text_of(body: bytes) -> str:
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise JudgeUnavailable("judge: not a chat completion") from None
    if isinstance(text, list):  # some servers give a list of parts
        text = "".join(str(part.get("text", "")) for part in text if isinstance(part, dict))
    return text if isinstance(text, str) else ""  # null: a refusal, or all tokens spent thinking


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
    except (TypeError, ValueError):
        return None
