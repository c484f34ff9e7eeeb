"""`mcis serve` as a command: what it refuses. Its answers are held in test_web.py, its page in browser/page.py."""

import os
import signal
import socket
import subprocess
import sys

import httpx2 as httpx
import pytest

from mcis.cli import serve


@pytest.mark.parametrize(
    ("host", "own"),
    [
        *((name, True) for name in ("127.0.0.1", "127.8.0.1", "localhost", "LOCALHOST", "::1", "[::1]")),
        *((name, False) for name in ("0.0.0.0", "::", "192.168.0.2", "localhost.example", "example.org", "")),
    ],
)
def test_what_is_nobody_elses(host, own):
    assert serve.is_loopback(host) == own


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--port=70000"], "0 to 65535"),
        (["--max_mib=0"], "--max_mib=0: more than 0"),
        (["--max_seconds=nan"], "more than 0"),
        (["--host="], "an address is needed"),
        (["--organ=toe"], "toe"),
        (["--organ=brain", "--task=segment_brain"], "exclude each other"),
    ],
)
def test_what_cannot_be_is_said(options, words, capsys):
    assert serve.main(options) == 2
    assert words in capsys.readouterr().err


def test_a_port_that_is_taken_is_said(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert serve.main([f"--port={taken.getsockname()[1]}"]) == 1
    assert "in use; --port=0 takes" in capsys.readouterr().err


def test_serves_until_it_is_asked_to_stop_and_leaves_and_says_nothing(weights, tmp_path):
    command = [
        sys.executable,
        "-m",
        "mcis",
        "serve",
        "--port=0",
        "--host=0.0.0.0",
        f"--weights={weights}",
        "--no-novelty",
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=os.environ | {serve.TOKEN: "wo+rd", "TMPDIR": str(tmp_path)}
    ) as process:
        try:
            address = process.stdout.readline().strip()
            assert address.endswith("/#token=wo%2Brd"), address
            assert "Research use only" in process.stdout.readline()
            place = address.split("#")[0].replace("0.0.0.0", "127.0.0.1") + "v1/findings"
            said = []
            for headers, data in (({}, bytes(1 << 25)), ({"authorization": "Bearer wo+rd"}, b"none")):
                files = [("files", ("ZEPHYRINE.png", data))]  # the first is refused while it is sent: it has its answer
                said.append(httpx.post(place, files=files, headers=headers).status_code)
            with socket.create_connection(httpx.URL(place).netloc.decode().split(":")) as line:
                # a body that is no HTTP
                line.sendall(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnone\r\n")
                assert b" 400 " in line.recv(1 << 16)
            with socket.create_connection(httpx.URL(place).netloc.decode().split(":")) as line:  # once it is refused
                line.sendall(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
                assert b" 401 " in line.recv(1 << 16)
                line.sendall(b"ZZZZ\r\n\r\n")
                while line.recv(1 << 16):
                    pass
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert said == [401, 200] and process.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.glob("*mcis*"))
    assert "ZEPHYRINE" not in out + err and "Error" not in err


def made(options, monkeypatch):
    """What the application is made of for some options."""
    found = []

    class Stopped(Exception):
        pass

    def make_app(_, root, limits, hosts, token):
        found.append((limits, hosts, token))
        raise Stopped

    monkeypatch.setattr("mcis.serve.app.make_app", make_app)
    monkeypatch.setattr(serve, "load", lambda *_, **__: type("P", (), {"lacking": ()}))
    monkeypatch.setattr("mcis.cli.common.enable_compilation_cache", lambda: None)
    with pytest.raises(Stopped):
        serve.main(["--port=0", *options])
    return found[0]


def test_off_loopback_a_token_is_made_up_and_on_it_other_names_are_refused(monkeypatch):
    monkeypatch.delenv(serve.TOKEN, raising=False)
    _, hosts, token = made(["--host=0.0.0.0"], monkeypatch)
    assert hosts is None and len(token) >= 32 and token != made(["--host=0.0.0.0"], monkeypatch)[2]
    limits, hosts, token = made(["--max_mib=3", "--max_scans=4", "--max_seconds=5"], monkeypatch)
    assert (limits.size, limits.scans, limits.seconds) == (3 << 20, 4, 5.0)
    assert set(hosts) == {"localhost", "127.0.0.1", "[::1]"} and token is None
    monkeypatch.setenv(serve.TOKEN, "mine")
    assert made([], monkeypatch)[2] == "mine"
