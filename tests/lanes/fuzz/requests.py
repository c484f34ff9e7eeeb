"""Bad requests to a real `mcis serve`: each is answered or rejected within seconds, and the server keeps running."""

import contextlib
import dataclasses
import gzip
import io
import json
import os
import pathlib
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable

import cv2
import numpy as np

from mcis.imaging import phantom

PATIENCE = 3.0
"""Seconds after which a client that has sent everything disconnects."""
INTERIM = re.compile(rb"^HTTP/1.1 100[^\r\n]*\r\n\r\n")
"""Interim response that asks the client for the request body."""
SECONDS = 5.0
"""Time limit for a response."""
ALLOWED = {200, 400, 403, 404, 405, 408, 411, 413, 414, 421, 422, 431, 501, 503}
"""Statuses that are no failure."""
OPTIONS = ("--port=0", "--max_mib=8", "--max_scans=40", "--max_seconds=20", "--members=1", "--task=segment_breast")
NAMES = (
    *("a.png", "../../../etc/passwd", "/etc/passwd", "C:\\x.png", "..", ".", "", " ", "a\0b.png", "a\r\nX: y.png"),
    *("\u202egnp.exe", "\udcff\udcfe.png", "x" * 5000 + ".png", "a" * 100 + "/" * 200 + "b.dcm", "CON", "~root/x.nii"),
    *(
        "'; drop table--.png",
        "<script>alert(1)</script>.png",
        "a.nii.gz",
        "a.zip",
        'quote".png',
        "%2e%2e%2fx.png",
        "\U0001f600.tif",
    ),
)
ROUTES = ("/v1/findings", "/v1/findings?format=ndjson&pictures=true", "/v1/findings?format=csv", "/v1/segmentations")
ODD_PATHS = (
    *(
        "/v1/findings?format=xml",
        "/v1/heat?frame=3",
        "/v1/findings?pictures=maybe",
        "/v1/heat?frame=99999999999999999999",
        "/v1/heat?frame=-1",
    ),
    *(
        "/v1/segmentations?named=yes&named=no",
        "/v1/findings?" + "a=1&" * 500,
        "/v1/about",
        "/",
        "/../../etc/passwd",
        "//",
        "/page.html",
    ),
    *("/page.js%00", "/v1/findings/../about", "/openapi.json", "/v1/" + "x" * 3000),
)
ODD_HEADERS = (
    *("Host: evil", "Origin: null", "Transfer-Encoding: chunked", "Content-Encoding: gzip", "Expect: 100-continue"),
    *("Authorization: Bearer \u00e9", "X: " + "y" * 70000, "Range: bytes=-1", "Cookie: " + "a=b;" * 900),
    "Content-Length: 3",
)


def files() -> list[bytes]:
    """Contents of uploads: valid scans and others."""
    image = phantom.make_phantom("breast", 2, 1, size=(120, 160)).image
    image_file = cv2.imencode(".png", image)[1].tobytes()
    packed, bomb, deep = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in ("a.png", "../b.png", "c/d.txt"):
            archive.writestr(name, image_file)
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(1 << 26))
    with zipfile.ZipFile(deep, "w") as archive:
        archive.writestr("a.zip", packed.getvalue())
        for k in range(60):
            archive.writestr(f"{k}.png", b"none")
    wide = bytearray(image_file)
    wide[16:24] = struct.pack(">II", 60000, 60000)  # the header claims more pixels than the file has
    volume = np.zeros(4096, np.uint8)
    header = bytearray(352)
    header[:4] = struct.pack("<i", 348)
    header[40:56] = struct.pack("<8h", 3, 30000, 30000, 30000, 1, 1, 1, 1)
    header[344:348] = b"n+1\0"
    return [
        *(
            image_file,
            packed.getvalue(),
            bomb.getvalue(),
            deep.getvalue(),
            bytes(wide),
            b"",
            b"none",
            b"PK\x03\x04",
            b"PK\x05\x06" + bytes(18),
        ),
        *(
            bytes(128) + b"DICM" + bytes(64),
            gzip.compress(bytes(1 << 22)),
            bytes(header) + volume.tobytes(),
            b"II*\0" + b"\x08\0\0\0" * 400,
        ),
    ]


def make(rng: random.Random, known: list[bytes]) -> bytes:
    """The bytes of one request."""
    boundary = rng.choice(("x", "----b", "a" * 70) * 10 + ("b" * 300, ""))
    parts = []
    for _ in range(rng.choice((0, 1, 1, 1, 2, 5, 30))):
        name = rng.choice(NAMES).encode("utf-8", "surrogateescape")
        field = rng.choice((b"files", b"files", b"files", b"file", b"", b"files[]"))
        data = bytearray(rng.choice(known))
        for _ in range(rng.choice((0, 0, 1, 8, 64))):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.2:
            del data[rng.randrange(len(data) + 1) :]
        kind = rng.choice((b"image/png", b"application/octet-stream", b"text/html; charset=utf-99", b"\xff\xfe"))
        quoted = name if rng.random() < 0.3 else name.replace(b'"', b"%22").replace(b"\r", b"").replace(b"\n", b"")
        parts.append(
            b'Content-Disposition: form-data; name="%s"; filename="%s"\r\nContent-Type: %s\r\n\r\n%s'
            % (field, quoted, kind, data)
        )
    line = b"--" + boundary.encode()
    body = b"".join(line + b"\r\n" + part + b"\r\n" for part in parts) + (
        line + b"--\r\n" if rng.random() < 0.9 else b""
    )
    if rng.random() < 0.1:
        body = rng.choice((b"[" * 20000, b'{"files":' * 5000, rng.randbytes(2000), b"files=1&" * 3000, bytes(9 << 20)))
    length = rng.choice((len(body),) * 40 + (0, len(body) + 100, max(0, len(body) - 7), 1 << 40, -1))
    kind = rng.choice(
        (f"multipart/form-data; boundary={boundary}",) * 40 + ("multipart/form-data", "application/json", "x" * 3000)
    )
    headers = ["Host: 127.0.0.1", f"Content-Type: {kind}", f"Content-Length: {length}", "Connection: close"]
    if rng.random() < 0.1:
        headers.insert(rng.randrange(len(headers)), rng.choice(ODD_HEADERS))
    method = rng.choice(("POST",) * 80 + ("GET", "PUT", "DELETE", "OPTIONS", "TRACE", "post", "\u00e9"))
    path = rng.choice(ODD_PATHS if rng.random() < 0.1 else ROUTES)
    head = "\r\n".join((f"{method} {path} HTTP/1.1", *headers, "", ""))
    wire = bytearray(head.encode("utf-8", "surrogateescape") + body)
    for _ in range(rng.choice((0, 0, 0, 0, 0, 0, 0, 0, 1, 4))):
        wire[rng.randrange(min(len(wire), 600))] = rng.randrange(256)
    if rng.random() < 0.03:
        del wire[rng.randrange(len(wire)) :]
    return bytes(wire)


@dataclasses.dataclass
class Server:
    """A running server."""

    process: subprocess.Popen
    port: int

    def send(self, wire: bytes) -> tuple[str, float]:
        """The outcome of a request as a word, and its duration in seconds."""
        begun = time.monotonic()
        answer = b""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2 * SECONDS) as line:
                with contextlib.suppress(OSError):  # the server may reject it before all is sent
                    line.sendall(wire)
                line.settimeout(PATIENCE)  # the server may wait for more
                while not complete(answer) and (piece := line.recv(1 << 16)):
                    answer = INTERIM.sub(b"", answer + piece)
                    line.settimeout(2 * SECONDS if answer else PATIENCE)
        except TimeoutError:
            return ("no end" if answer else "waits for more"), time.monotonic() - begun
        except OSError:
            pass  # the server may close the connection on an invalid request
        return judged(answer), time.monotonic() - begun


def complete(answer: bytes) -> bool:
    """Whether a response is complete, although the connection may stay open."""
    head, end, body = answer.partition(b"\r\n\r\n")
    if length := re.search(rb"content-length: (\d+)", head.lower()):
        return bool(end) and len(body) >= int(length[1])
    return b"chunked" in head.lower() and body.endswith(b"0\r\n\r\n")


def judged(answer: bytes) -> str:
    """The status of a response, or its fault."""
    if not answer:
        return "cut off"
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1]) if head.split()[1:2] and head.split()[1].isdigit() else 0
    if status not in ALLOWED:
        return f"status {status}"
    if b"Traceback" in body:
        return "a traceback"
    if b"application/json" in head.lower() and b"chunked" not in head.lower():
        try:
            content = json.loads(body)
        except ValueError:
            return "no JSON"
        if status != 200 and not content.get("error"):
            return "an error without words"
    return str(status)


INPUTS = 1000


def fuzz(numbers: Iterable[int], seed: int = 0) -> tuple[dict[str, int], list[str], float, float]:
    """Send the requests of the given numbers.

    Returns:
      number of requests by outcome; failures; longest duration in seconds; memory growth of the server in MiB.
    """
    known, counts, wrong, slowest = files(), {}, [], 0.0
    with tempfile.TemporaryDirectory() as place:
        # Its output goes to a file: a full pipe would block it.
        with open(pathlib.Path(place) / "output", "w+") as output:
            command = [sys.executable, "-m", "mcis", "serve", *OPTIONS]
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=output, text=True, env=os.environ | {"TMPDIR": place}
            )
            assert process.stdout is not None
            address = process.stdout.readline()
            assert address.startswith("http"), "the server does not start"
            server = Server(process, int(address.strip().strip("/").rpartition(":")[2]))
            before = _memory(process)
            for number in numbers:
                wire = make(random.Random(f"{seed}/requests/{number}"), known)
                ended, seconds = server.send(wire)
                counts[ended] = counts.get(ended, 0) + 1
                slowest = max(slowest, seconds)
                if not (ended in ("cut off", "waits for more") or ended.isdigit()) or seconds > SECONDS:
                    wrong.append(f"request {number}: {ended} after {seconds:.1f} s")
                if process.poll() is not None:
                    wrong.append(f"request {number}: the server is gone ({process.returncode})")
                    break
            good = make_good(known[0])
            if server.send(good)[0] != "200":
                wrong.append("a valid request is no longer answered")
            gained = _memory(process) - before
            _settle(server)
            left = [path for path in pathlib.Path(place).glob("mcis-serve-*/*") if path.name != "lock"]
            wrong += [f"left behind: {path}" for path in left]
            process.send_signal(signal.SIGTERM)
            process.wait(30)
            output.seek(0)
            if words := output.read():
                wrong.append(f"the server printed: {words[-2000:]}")
        wrong += [f"stray: {path}" for path in pathlib.Path(place).iterdir() if path.name != "output"]
    return counts, wrong, slowest, gained


def _settle(server: Server) -> None:
    """Wait until the requests of disconnected clients are done: a new request is answered after them."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if server.send(make_good(files()[0]))[0] == "200":
            time.sleep(1)
            return


def make_good(image_file: bytes) -> bytes:
    """A valid request."""
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + image_file + b"\r\n--x--\r\n"
    )
    head = "POST /v1/findings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def _memory(process: subprocess.Popen) -> float:
    with open(f"/proc/{process.pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024
