"""An S3 server for tests: moto's, in this process, over real HTTP; and a front that fails as often as it is told to."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count

import httpx2

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "us-east-1",
}


class S3Server:
    """`url(bucket)` is what DANQING_BLOB_URL takes."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer  # takes a while to load: not for every test

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self.endpoint = "http://{}:{}".format(*self._server.get_host_and_port())
        self._numbers = count()

    def stop(self) -> None:
        self._server.stop()

    def make_bucket(self) -> str:
        """A new, empty bucket; its name."""
        name = f"bucket-{next(self._numbers)}"
        httpx2.put(f"{self.endpoint}/{name}").raise_for_status()
        return name

    def url(self, bucket: str, endpoint: str | None = None) -> str:
        return f"s3://{bucket}/some/where?endpoint={endpoint or self.endpoint}"

    @contextmanager
    def checking_credentials(self) -> Iterator[None]:
        """From now on nobody's credentials are good."""
        reset = f"{self.endpoint}/moto-api/reset-auth"
        httpx2.post(reset, content=b"0").raise_for_status()
        try:
            yield
        finally:
            httpx2.post(reset, content=b"inf").raise_for_status()


class _Front(ThreadingHTTPServer):
    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.target = target
        self.failures = 0
        """Requests that are to fail from now on."""
        self.failed = 0


class _Passing(BaseHTTPRequestHandler):
    server: _Front

    def do_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.server.failures > 0:
            self.server.failures -= 1
            self.server.failed += 1
            self._answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
            return
        headers = dict(self.headers)  # with the host that was signed
        answer = httpx2.request(
            self.command, self.server.target + self.path, headers=headers, content=body
        )
        kept = {"etag", "last-modified", "content-range", "content-type", "content-length"}
        self._answer(
            answer.status_code,
            {name: value for name, value in answer.headers.items() if name in kept},
            b"" if self.command == "HEAD" else answer.content,
        )

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = do_any

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in ({"content-length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def failing_front(target: str) -> Iterator[tuple[str, _Front]]:
    """A server before another one; its address, and itself: `failures` more requests end with 503."""
    front = _Front(target)
    thread = threading.Thread(
        target=front.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    )
    thread.start()
    try:
        yield f"http://127.0.0.1:{front.server_address[1]}", front
    finally:
        front.shutdown()
        front.server_close()
