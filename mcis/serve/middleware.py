"""The layer in front of the routes: access control, limits of size, time and number, and logs without request data."""

import asyncio
import contextlib
import dataclasses
import hmac
import json
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

import h11
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

import mcis
from mcis.imaging.archives import MAX_BYTES, MAX_FILES

HEADERS = (
    (b"content-security-policy", b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
     b"img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
    (b"notice", mcis.NOTICE.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)  # fmt: skip
"""Headers of every response: the page loads nothing from other servers and cannot be framed, and nothing is cached."""
CLOSING = (408, 413)
"""Statuses after which the connection is closed, because the rest of the upload may not have been read."""
INTERNAL_ERROR = "Internal server error; see the server log"


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one request.

    Attributes:
      size: bytes of the upload, and again of what its archives contain.
      scans: number of images, frames and slices.
      seconds: from the first byte of the request to the last byte of the response.
      silence: longest pause of an upload, seconds.
      linger: seconds for which the rest of an upload is read and discarded after an early response. If the connection
        closed while the client sends, it would be reset, and the client would lose the response.
      requests: concurrent requests of all clients.
      reading: seconds to read one image.
    """

    size: int = MAX_BYTES
    scans: int = MAX_FILES
    seconds: float = 1800.0
    silence: float = 60.0
    linger: float = 5.0
    requests: int = 64
    reading: float = 20.0

    @property
    def too_large(self) -> str:
        """The error of an upload that exceeds `size`."""
        return f"the request is larger than {self.size >> 20} MiB; send less per request"


class Rejected(HTTPException):
    """A request that is rejected: an HTTP status and a reason."""


class Guard:
    """ASGI middleware that passes allowed requests to an application.

    Args:
      app: the application.
      limits: limits of a request.
      hosts: allowed host names, lower case; None allows any. On loopback they prevent DNS rebinding: a foreign page
        whose name resolves to this machine could otherwise read responses.
      token: token that requests below /v1 must send, as `Authorization: Bearer TOKEN`; None for no token.
    """

    def __init__(self, app: Any, limits: Limits, hosts: Sequence[str] | None, token: str | None):
        self.app, self.limits, self.hosts, self.token = app, limits, hosts, token
        self._active = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle a request (ASGI 3)."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None
        started, body = False, _Body(receive, self.limits)
        counted = scope["path"].startswith("/v1/") and scope["method"] == "POST"

        def release() -> None:
            nonlocal counted
            self._active -= counted
            counted = False

        async def guarded_send(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            elif body.more and not message.get("more_body"):
                await send({**message, "more_body": True})
                release()
                await body.discard()
                message = {"type": "http.response.body"}
            await send(message)

        self._active += counted
        status, reason = 500, INTERNAL_ERROR
        try:
            self._check(scope, counted)
            async with asyncio.timeout(self.limits.seconds):
                return await self.app(scope, body.receive, guarded_send)
        except Rejected as rejected:
            status, reason = rejected.status_code, rejected.detail
        except TimeoutError:
            status, reason = 408, f"the request took longer than {self.limits.seconds:g} s; send less per request"
        except asyncio.CancelledError:
            status, reason, body.more = 503, "the server is shutting down", False
        except Exception as error:
            _log(error)
        finally:
            release()
        if not started:  # otherwise the connection closes in the middle of the response, which marks it as incomplete
            await _respond(guarded_send, status, reason)

    def _check(self, scope: Any, counted: bool) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "").lower()
        if self.hosts is not None and host.rpartition(":")[0] not in self.hosts and host not in self.hosts:
            raise Rejected(421, f"wrong host name; this server accepts {', '.join(self.hosts)}")
        origin = headers.get(b"origin")
        if origin is not None and origin.lower().partition("://")[2] != host:
            raise Rejected(403, "cross-origin requests are not allowed")
        if self.token is not None and scope["path"].startswith("/v1/"):
            token = headers.get(b"authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(token.encode(), self.token.encode()):
                raise Rejected(401, "missing or wrong token; send the server's token as Authorization: Bearer TOKEN")
        size = headers.get(b"content-length", "0")
        if not size.isdigit() or int(size) > self.limits.size:
            raise Rejected(413, self.limits.too_large)
        if counted and self._active > self.limits.requests:
            raise Rejected(503, f"more than {self.limits.requests} concurrent requests; try again later")


class _Body:
    """The body of a request, limited in size and in the length of its pauses; `more` says whether it continues."""

    def __init__(self, receive: Any, limits: Limits):
        self._receive, self._limits = receive, limits
        self._left, self.more = limits.size, True

    async def receive(self) -> Any:
        if not self.more:
            return await self._receive()  # the client's disconnect
        try:
            async with asyncio.timeout(self._limits.silence):
                message = await self._receive()
        except TimeoutError:
            raise Rejected(408, f"the upload paused for more than {self._limits.silence:g} s") from None
        self._left -= len(message.get("body", b""))
        self.more = message.get("more_body", False)
        if self._left < 0:
            raise Rejected(413, self._limits.too_large)
        return message

    async def discard(self) -> None:
        """Read and discard the rest, for at most `linger` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.linger):
                while self.more:
                    self.more = (await self._receive()).get("more_body", False)


async def _respond(send: Any, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 503:
        headers.append((b"retry-after", b"1"))
    if status in CLOSING:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _log(error: BaseException) -> None:
    """Print the error's type and traceback without its message, which may contain a file name and so a patient."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    print(f"{time.strftime('%F %T')} {type(error).__name__} at\n{frames}", file=sys.stderr, flush=True)


class Protocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol, which after invalid HTTP also drops the response of the application.

    uvicorn answers invalid HTTP with status 400 and closes the connection by itself. If the application, which is not
    told, had begun its response or sent one later, both would be logged as errors, as many as a client likes.
    """

    def send_400_response(self, msg: str) -> None:
        """Send status 400 unless a response has begun, and close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
