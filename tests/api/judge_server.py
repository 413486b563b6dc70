"""What an operator may have set up beside a server, in one: a moderation API and a chat model, over real HTTP."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class JudgeServer:
    """Words of a text decide: `apibad` scores 0.97, `apimild` 0.5, `apifail` answers 500, `apislow` takes its time.

    As a chat model it says what `chat` gives for the prompt. `requests` are paths and bodies.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.authorizations: set[str | None] = set()
        self.chat = lambda prompt: f"{prompt}, in soft morning light"
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.requests.append((self.path, body))
                server.authorizations.add(self.headers["authorization"])
                status, answer = server.answer(self.path, body)
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/moderations":
            return self._moderate(body["input"])
        said = self.chat(body["messages"][-1]["content"])
        if isinstance(said, tuple):
            return said
        return 200, {"choices": [{"message": {"role": "assistant", "content": said}}]}

    def _moderate(self, inputs: list[Any]) -> tuple[int, Any]:
        text = " ".join(one for one in inputs if isinstance(one, str))
        if "apislow" in text:
            time.sleep(9)
        if "apifail" in text:
            return 500, {"error": "no"}
        scores = [
            0.97 if "apibad" in str(one) else 0.5 if "apimild" in str(one) else 0.0
            for one in inputs
        ]
        results = [
            {"flagged": score > 0.9, "categories": {}, "category_scores": {"violence": score}}
            for score in scores
        ]
        return 200, {"results": results}

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
