"""A small HTTP proxy that stands before an S3 server and makes mistakes on demand."""

import contextlib
import http.client
import socket
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

STATUS = {
    "AccessDenied": (403, "Access Denied"),
    "ExpiredToken": (400, "The provided token has expired."),
    "InternalError": (500, "We encountered an internal error. Please try again."),
    "InvalidAccessKeyId": (403, "The AWS Access Key Id you provided does not exist in our records."),
    "RequestTimeTooSkewed": (403, "The difference between the request time and the current time is too large."),
    "ServiceUnavailable": (503, "Service is unable to handle request."),
    "SignatureDoesNotMatch": (
        403,
        "The request signature we calculated does not match the signature you provided. Check your key and signing method.",
    ),
    "SlowDown": (503, "Please reduce your request rate."),
}
"""HTTP status and message that S3 itself sends with its error codes."""

Act = Literal["error", "delay", "cut request", "cut answer", "no answer"]


@dataclass
class Fault:
    """What happens to the next `times` requests of a method whose path has `path` in it."""

    act: Act
    method: str
    path: str
    times: int
    code: str = "InternalError"
    seconds: float = 0.0


@dataclass(frozen=True)
class Seen:
    """One request and how many bytes of body went each way."""

    method: str
    path: str
    received: int
    sent: int
    fault: Act | None


class Proxy:
    """A proxy before `upstream` (http://HOST:PORT); it is a proxy like any other until a fault is asked for."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.seen: list[Seen] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def error(self, code: str, method: str = "", path: str = "", times: int = 10**9) -> None:
        """Answer with S3's XML error of this code; the server behind never hears of the request."""
        self._add(Fault("error", method, path, times, code))

    def delay(self, seconds: float, method: str = "", path: str = "", times: int = 10**9) -> None:
        """Answer correctly, but late."""
        self._add(Fault("delay", method, path, times, seconds=seconds))

    def cut_request(self, method: str = "", path: str = "", times: int = 10**9) -> None:
        """Close the connection when half of the request's body has gone through to the server."""
        self._add(Fault("cut request", method, path, times))

    def cut_answer(self, method: str = "", path: str = "", times: int = 10**9) -> None:
        """Close the connection when half of the answer's body has been sent."""
        self._add(Fault("cut answer", method, path, times))

    def no_answer(self, method: str = "", path: str = "", times: int = 10**9) -> None:
        """Let the server do what was asked, then close the connection without a word."""
        self._add(Fault("no answer", method, path, times))

    def heal(self) -> None:
        """Forget all faults and all that was seen."""
        with self._lock:
            self._faults, self.seen = [], []

    def count(self, fault: Act) -> int:
        """How many requests met this fault."""
        return sum(seen.fault == fault for seen in self.seen)

    def _add(self, fault: Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    def take(self, method: str, path: str) -> Fault | None:
        """The fault that this request meets; one of its times is then used up."""
        with self._lock:
            for fault in self._faults:
                if fault.times > 0 and fault.method in ("", method) and fault.path in path:
                    fault.times -= 1
                    return fault
        return None

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self) -> None:
        fault = self.proxy.take(self.command, self.path)
        act = fault.act if fault else None
        length = int(self.headers.get("Content-Length") or 0)
        assert "Transfer-Encoding" not in self.headers, "a body of unknown length"
        if act == "cut request":
            half = self.rfile.read(length // 2)
            with contextlib.closing(self._ask()) as server:
                server.send(half)
            self._note(len(half), 0, act)
            return self._cut()
        body = self.rfile.read(length)
        if fault and act == "error":
            status, message = STATUS[fault.code]
            xml = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{fault.code}</Code><Message>{message}</Message></Error>'
            self._note(length, len(xml), act)
            return self._answer(status, {"Content-Type": "application/xml"}, xml.encode())
        with contextlib.closing(self._ask()) as server:
            server.send(body)
            answer = server.getresponse()
            data = answer.read()
            headers = {k: v for k, v in answer.getheaders() if k.lower() not in ("transfer-encoding", "connection", "date", "server")}
        if fault and act == "delay":
            time.sleep(fault.seconds)
        self._note(length, 0 if act == "no answer" else len(data) // 2 if act == "cut answer" else len(data), act)
        if act == "no answer":
            return self._cut()
        self._answer(answer.status, headers, data, cut=act == "cut answer")

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _handle

    def _ask(self) -> http.client.HTTPConnection:
        """A connection to the server on which this request's headers have been sent."""
        server = http.client.HTTPConnection(urlsplit(self.proxy.upstream).netloc)
        server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("expect", "connection"):
                server.putheader(name, value)
        server.endheaders()
        return server

    def _answer(self, status: int, headers: dict[str, str], data: bytes, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() != "content-length":
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
        if status != 204:
            self.send_header("Content-Length", length)
        self.end_headers()
        with contextlib.suppress(OSError):  # the client gave up waiting
            if self.command != "HEAD":
                self.wfile.write(data[: len(data) // 2] if cut else data)
            self.wfile.flush()
        if cut:
            self._cut()

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _note(self, received: int, sent: int, fault: Act | None) -> None:
        self.proxy.seen.append(Seen(self.command, self.path, received, 0 if self.command == "HEAD" else sent, fault))
