"""`mcis serve`: a page for scans and a REST API on this machine."""

import dataclasses
import errno
import ipaddress
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import quote

import tyro

import mcis
from mcis.cli.common import PathText, run
from mcis.inference.options import InferenceOptions, takes
from mcis.inference.predictor import load

TOKEN = "MCIS_TOKEN"
"""Environment variable for the token: a command line is visible to all users of the machine."""
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclasses.dataclass(frozen=True)
class Serve:
    """Serve a web page and a REST API (POST /v1/findings) for scans. Research use, not a medical device.

    Attributes:
      host: address to listen at. Any address but loopback requires a token: $MCIS_TOKEN, or a random one that is
        printed. The connection is not encrypted; use a proxy with TLS.
      port: port to listen at; 0 for any free port.
      weights: folder of a bundle of weights; by default the bundled weights.
      inference: how the networks are run.
      max_mib: largest size of one request, and of the content of its archives, MiB.
      max_scans: largest number of images, frames and slices in one request.
      max_seconds: longest duration of one request, seconds.
    """

    host: Annotated[str, tyro.conf.arg(metavar="ADDRESS")] = "127.0.0.1"
    port: Annotated[int, tyro.conf.arg(metavar="N")] = 8000
    weights: Annotated[PathText | None, takes("DIR")] = None
    inference: tyro.conf.OmitArgPrefixes[InferenceOptions] = InferenceOptions()
    max_mib: Annotated[int, tyro.conf.arg(metavar="N")] = 1024
    max_scans: Annotated[int, tyro.conf.arg(metavar="N")] = 4096
    max_seconds: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 1800.0

    def check(self) -> None:
        """Raise ValueError for an option out of range."""
        self.inference.check()
        for name, value in {"mib": self.max_mib, "scans": self.max_scans, "seconds": self.max_seconds}.items():
            if not value > 0:
                raise ValueError(f"--max_{name}={value}: must be positive")
        if not 0 <= self.port < 1 << 16:
            raise ValueError(f"--port={self.port}: must be 0 to 65535; 0 takes any free port")
        if not self.host:
            raise ValueError("--host=: must be an address, such as 127.0.0.1")


def main(argv: Sequence[str]) -> int:
    """The command: serves until it is interrupted. Exit status 1: the port is in use; 2: wrong options."""
    return run("mcis serve", Serve, _serve, argv)


def is_loopback(host: str) -> bool:
    """Whether an address or host name is a loopback address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _serve(options: Serve) -> int:
    try:
        import python_multipart  # noqa: F401
        import uvicorn

        from mcis.serve.app import make_app
        from mcis.serve.middleware import Limits, Protocol
        from mcis.serve.service import upload_folder
    except ImportError:
        raise ValueError("the server needs an extra: pip install -e '.[web]'") from None

    from mcis.cli.common import enable_compilation_cache

    options.check()
    loopback = is_loopback(options.host)
    token = os.environ.get(TOKEN) or (None if loopback else secrets.token_urlsafe(24))
    limits = Limits(size=options.max_mib << 20, scans=options.max_scans, seconds=options.max_seconds)
    host = options.host.strip("[]")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, options.port), family=family)
    except OSError as error:
        number = error.errno or 0  # negative: the host name is unknown
        reason = os.strerror(number) if number > 0 else str(error.strerror).split(" (while")[0]
        if number < 0 or number == errno.EADDRNOTAVAIL:
            advice = f"an address or a name of this machine is needed; without --host it is {Serve.host}"
            raise OSError(f"--host={options.host}: {reason}; {advice}") from None
        advice = "--port=0 takes any free port" if options.port else "name another --host"
        raise OSError(f"{host}, port {options.port}: {reason}; {advice}") from None
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it logs every malformed upload
    enable_compilation_cache()
    predictor = load(options.weights, **dataclasses.asdict(options.inference))
    if predictor.lacking:
        print(f"these weights do not predict: {', '.join(predictor.lacking)}; it stays unknown", file=sys.stderr)
    name = f"[{host}]" if ":" in host else host
    address = f"http://{name}:{listening.getsockname()[1]}/"
    if token is not None:
        address += f"#token={quote(token, safe='')}"
    hosts = tuple(dict.fromkeys((*LOOPBACK, name.lower()))) if loopback else None

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                print(f"{address}\n{mcis.NOTICE} Ctrl-C stops the server.", flush=True)

    def terminate(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    # uvicorn ends the process by raising the signal again; the upload folder must be removed before
    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        with upload_folder() as root:
            config = uvicorn.Config(
                make_app(predictor, root, limits, hosts, token),
                loop="asyncio",  # uvloop would start the readers by fork, which JAX's threads do not survive
                http=Protocol,
                log_level="error",
                access_log=False,  # requests are private
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=10,
            )
            server = Server(config)
            server.run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0 if server.started else 1
