"""What stands before the routes: who may ask, how much, how long; and nothing of a request in a log."""

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

from starlette.exceptions import HTTPException

import mcis

HEADERS = (
    (b"content-security-policy", b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
     b"img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
    (b"notice", mcis.NOTICE.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)  # fmt: skip
"""Of every answer: the page loads nothing from elsewhere and is framed by nobody, no findings stay in a cache, and what
they are good for is said."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may be.

    Attributes:
      size: bytes, of the upload, and again of what its archives hold. On disk an upload lies twice meanwhile.
      scans: pictures, frames and slices counted.
      seconds: from its first byte to the last of its answer.
      silence: seconds that an upload may pause.
      linger: seconds for which the rest of an upload is still taken, and thrown away, once it has its answer: a line
        that is closed on a client who sends is reset, and the answer lost with it.
      requests: of all clients at once.
      reading: seconds for one picture.
    """

    size: int = 1 << 30
    scans: int = 4096
    seconds: float = 1800.0
    silence: float = 60.0
    linger: float = 5.0
    requests: int = 64
    reading: float = 20.0


BROKEN = "something broke here, which is our fault; the server's log says where"


class Refused(HTTPException):
    """A request that is not answered: an HTTP status, and why."""


class Guard:
    """An ASGI application that lets through to another what is allowed.

    Args:
      app: the other.
      limits: of a request.
      hosts: names by which the server may be called, lower case: on loopback no others, or a page elsewhere whose name
        is made to point here could read what it answers (DNS rebinding). None for any.
      token: what requests below /v1 have to bring, as `Authorization: Bearer TOKEN`; None for nothing.
    """

    def __init__(self, app: Any, limits: Limits, hosts: Sequence[str] | None, token: str | None):
        self.app, self.limits, self.hosts, self.token = app, limits, hosts, token
        self._now = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request (ASGI 3)."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None
        begun, body = False, _Body(receive, self.limits)
        counted = scope["path"].startswith("/v1/") and scope["method"] == "POST"

        def give_back() -> None:
            nonlocal counted
            self._now -= counted
            counted = False

        async def sending(message: Any) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            elif body.more and not message.get("more_body"):
                await send({**message, "more_body": True})
                give_back()
                await body.throw_away()
                message = {"type": "http.response.body"}
            await send(message)

        self._now += counted
        status, why = 500, BROKEN
        try:
            self._check(scope, counted)
            async with asyncio.timeout(self.limits.seconds):
                return await self.app(scope, body.receive, sending)
        except Refused as refused:
            status, why = refused.status_code, refused.detail
        except TimeoutError:
            status, why = 408, f"a request may take {self.limits.seconds:g} s; send less at once"
        except asyncio.CancelledError:
            status, why, body.more = 503, "the server is being ended", False
        except Exception as error:
            _log(error)
        finally:
            give_back()
        if not begun:  # else the line is closed on half an answer, by which it is known to be none
            await _say(sending, status, why)

    def _check(self, scope: Any, counted: bool) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "").lower()
        if self.hosts is not None and host.rpartition(":")[0] not in self.hosts and host not in self.hosts:
            raise Refused(421, f"this server answers to {', '.join(self.hosts)} alone")
        origin = headers.get(b"origin")
        if origin is not None and origin.lower().partition("://")[2] != host:
            raise Refused(403, "pages of other places may not ask this server")
        if self.token is not None and scope["path"].startswith("/v1/"):
            brought = headers.get(b"authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(brought.encode(), self.token.encode()):
                raise Refused(401, "a token is needed: Authorization: Bearer TOKEN, as the server printed it")
        size = headers.get(b"content-length", "0")
        if not size.isdigit() or int(size) > self.limits.size:
            raise Refused(413, too_large(self.limits))
        if counted and self._now > self.limits.requests:
            raise Refused(503, f"{self.limits.requests} requests are being answered already; ask again in a while")


class _Body:
    """The messages of a request, counted and waited for not too long; `more` says whether there are any yet."""

    def __init__(self, receive: Any, limits: Limits):
        self._receive, self._limits = receive, limits
        self._left, self.more = limits.size, True

    async def receive(self) -> Any:
        if not self.more:
            return await self._receive()  # of who leaves
        try:
            async with asyncio.timeout(self._limits.silence):
                message = await self._receive()
        except TimeoutError:
            raise Refused(408, "the upload paused for too long") from None
        self._left -= len(message.get("body", b""))
        self.more = message.get("more_body", False)
        if self._left < 0:
            raise Refused(413, too_large(self._limits))
        return message

    async def throw_away(self) -> None:
        """Take the rest, for as long as one lingers."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.linger):
                while self.more:
                    self.more = (await self._receive()).get("more_body", False)


def too_large(limits: Limits) -> str:
    """What is said of an upload that is."""
    return f"more than the {limits.size >> 20} MiB that a request may have; send less at once"


CLOSES = (408, 413)
"""Statuses after which the line is closed: the rest of the upload may not have been read."""


async def _say(send: Any, status: int, why: str) -> None:
    body = json.dumps({"error": why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 503:
        headers.append((b"retry-after", b"1"))
    if status in CLOSES:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _log(error: BaseException) -> None:
    """Where it broke, without the error's own words, which may name a file and so a patient."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    print(f"{time.strftime('%F %T')} {type(error).__name__} at\n{frames}", file=sys.stderr, flush=True)
