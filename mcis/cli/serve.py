"""`mcis serve`: a page to drop scans on, and a REST API, on this machine."""

import dataclasses
import ipaddress
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import mcis
from mcis.inference.options import InferenceOptions
from mcis.inference.predictor import load

TOKEN = "MCIS_TOKEN"
"""The environment variable that may hold the token: a command line is seen by everybody on the machine."""
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def main(argv: Sequence[str]) -> int:
    """The command: it serves until it is interrupted. Exit status 1: the port is taken; 2: options are wrong."""
    import tyro

    from mcis.cli.common import exit_status, parse_dataclass

    @dataclasses.dataclass(frozen=True)
    class Serve:
        """A page to drop scans on, and a REST API (POST /v1/findings). Research use, not a medical device.

        Attributes:
          host: the address to listen at. On any but this machine's own a token is needed, which is taken from
            $MCIS_TOKEN or made up and printed. What goes over the network is not encrypted: put a proxy before it.
          port: 0 takes one that is free.
          weights: folder of a set of weights; by default those that come with mcis.
          asked: what the networks are asked.
          max_mib: MiB of one request, and of what its archives hold.
          max_scans: pictures, frames and slices of one request.
          max_seconds: of one request.
        """

        host: str = "127.0.0.1"
        port: int = 8000
        weights: str | None = None
        asked: tyro.conf.OmitArgPrefixes[InferenceOptions] = InferenceOptions()
        max_mib: int = 1024
        max_scans: int = 4096
        max_seconds: float = 1800.0

    options = parse_dataclass(Serve, argv, "mcis serve")
    return exit_status("mcis serve", lambda: _main(options))


def is_loopback(host: str) -> bool:
    """Whether an address, or a name of one, is this machine's own and nobody else's."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _main(options: Any) -> int:
    try:
        import python_multipart  # noqa: F401
        import uvicorn

        from mcis.serve.app import make_app, upload_folder
        from mcis.serve.line import Line
        from mcis.serve.middleware import Limits
    except ImportError:
        raise ValueError("the server comes with an extra: pip install -e '.[web]'") from None

    from mcis.cli.common import enable_compilation_cache

    asked = options.asked.check()
    for name in ("max_mib", "max_scans", "max_seconds"):
        if not getattr(options, name) > 0:
            raise ValueError(f"--{name}={getattr(options, name)}: more than 0 is needed, or nobody is served")
    if not 0 <= options.port < 1 << 16:
        raise ValueError(f"--port={options.port}: 0 to 65535 is needed; 0 takes one that is free")
    if not options.host:
        raise ValueError("--host=: an address is needed, as 127.0.0.1")
    own = is_loopback(options.host)
    token = os.environ.get(TOKEN) or (None if own else secrets.token_urlsafe(24))
    bounds = Limits(size=options.max_mib << 20, scans=options.max_scans, seconds=options.max_seconds)
    host = options.host.strip("[]")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, options.port), family=family)
    except OSError as error:
        number = error.errno or 0
        why = os.strerror(number) if number > 0 else error.strerror  # below 0: a name of no host
        raise OSError(f"{host}, port {options.port}: {why}; --port=0 takes one that is free") from None
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it tells of every upload that is none
    enable_compilation_cache()
    predictor = load(options.weights, **dataclasses.asdict(asked))
    if predictor.lacking:
        print(f"these weights say nothing of: {', '.join(predictor.lacking)}; it stays unknown", file=sys.stderr)
    name = f"[{host}]" if ":" in host else host
    address = f"http://{name}:{listening.getsockname()[1]}/"
    if token is not None:
        address += f"#token={quote(token, safe='')}"
    names = tuple(dict.fromkeys((*LOOPBACK, name.lower()))) if own else None

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                print(f"{address}\n{mcis.NOTICE} Ctrl-C ends it.", flush=True)

    def ended(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    # uvicorn ends as the signal would have ended it; uploads have to be removed before
    before = signal.signal(signal.SIGTERM, ended)
    try:
        with upload_folder() as root:
            config = uvicorn.Config(
                make_app(predictor, root, bounds, names, token),
                loop="asyncio",  # uvloop would fork to start the readers, which JAX's threads do not survive
                http=Line,
                log_level="error",
                access_log=False,  # whose scans came when is nobody's business
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=10,
            )
            server = Server(config)
            server.run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0 if server.started else 1
