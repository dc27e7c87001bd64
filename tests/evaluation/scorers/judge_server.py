"""A local endpoint that speaks OpenAI's chat completions, or fails in the ways they do."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GOOD = "Consistency: 2\nRealism: 1\nAesthetic Quality: 1"


@dataclass
class Answer:
    """What the server does with one request."""

    status: int = 200
    content: str | None = GOOD  # of the chat completion
    body: bytes | None = None  # sent instead
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False  # says nothing until the server is stopped
    drop: bool = False  # closes the connection without a word
    pause: float = 0.0  # between chunks
    chunks: Callable[[], Iterator[bytes]] | None = None  # sent instead, without an announced length


@dataclass
class JudgeServer:
    """Requests seen so far, and what to do with the next one."""

    answer: Callable[[int, dict[str, Any]], Answer]
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""
    sent: int = 0  # bytes of chunks
    got: int = 0  # GET requests
    stopping: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, body: dict[str, Any], headers: dict[str, str]) -> Answer:
        with self.lock:
            self.requests.append(body)
            self.headers.append(headers)
            return self.answer(len(self.requests) - 1, body)


def text_of(body: dict[str, Any]) -> str:
    """What a request tells the judge."""
    return body["messages"][0]["content"][0]["text"]


@contextmanager
def judge_server(
    answer: Answer | Callable[[int, dict[str, Any]], Answer],
) -> Iterator[JudgeServer]:
    """A server that answers every request so; a function gets the request's number and body."""
    server = JudgeServer(answer if callable(answer) else lambda number, body: answer)
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        http.shutdown()
        http.server_close()
        thread.join()


def _handler(server: JudgeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.got += 1  # what a followed redirect makes of a POST
            self.send_response(200)
            self.end_headers()

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = server.take(
                {**body, "path": self.path}, {k.title(): v for k, v in self.headers.items()}
            )
            if answer.hang:
                server.stopping.wait()
            if answer.hang or answer.drop:
                self.close_connection = True
                return
            if answer.chunks is not None:
                self.close_connection = True
                _send(self.wfile, server, answer.chunks(), answer.pause)
                return
            message = {"role": "assistant", "content": answer.content}
            completion = json.dumps({"choices": [{"index": 0, "message": message}]}).encode()
            data = completion if answer.body is None else answer.body
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    return Handler


def _send(file: Any, server: JudgeServer, chunks: Iterator[bytes], pause: float) -> None:
    """Send chunks until the client or the server has had enough."""
    try:
        for chunk in chunks:
            file.write(chunk)
            file.flush()
            server.sent += len(chunk)
            if server.stopping.wait(pause):
                return
    except OSError:
        pass
