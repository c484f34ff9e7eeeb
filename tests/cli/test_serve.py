"""`mcis serve` as a command and a process. tests/serve tests its API, tests/lanes/browser its page."""

import os
import signal
import socket
import subprocess
import sys

import httpx2 as httpx
import pytest

from mcis.cli import serve


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *((name, True) for name in ("127.0.0.1", "127.8.0.1", "localhost", "LOCALHOST", "::1", "[::1]")),
        *((name, False) for name in ("0.0.0.0", "::", "192.168.0.2", "localhost.example", "example.org", "")),
    ],
)
def test_loopback_addresses(host, loopback):
    assert serve.is_loopback(host) == loopback


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port=70000"], "0 to 65535"),
        (["--max_mib=0"], "--max_mib=0: must be positive"),
        (["--max_seconds=nan"], "must be positive"),
        (["--host="], "must be an address"),
        (["--organ=toe"], "toe"),
        (["--organ=brain", "--task=segment_brain"], "exclude each other"),
    ],
)
def test_invalid_options_are_errors(options, message, capsys):
    assert serve.main(options) == 2
    assert message in capsys.readouterr().err


def test_a_port_in_use_is_an_error(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert serve.main([f"--port={taken.getsockname()[1]}"]) == 1
    assert "in use; --port=0 takes" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["nohost.invalid", "192.0.2.1"])
def test_a_host_that_is_none_of_this_machine_is_an_error_about_the_host(host, capsys):
    assert serve.main([f"--host={host}", "--port=0"]) == 1
    error = capsys.readouterr().err
    assert f"--host={host}: " in error and "of this machine" in error and "--port" not in error


START = """
import sys
from mcis.cli import main, serve
from tests.fixtures.bundles import numpy_predictor
serve.load = numpy_predictor
sys.exit(main.main(sys.argv[1:]))
"""


def test_a_process_serves_until_sigterm_and_leaves_no_files_and_no_log(tmp_path):
    command = [sys.executable, "-c", START, "serve", "--port=0", "--host=0.0.0.0"]
    environment = os.environ | {serve.TOKEN: "wo+rd", "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        try:
            address = process.stdout.readline().strip()
            assert address.endswith("/#token=wo%2Brd"), address
            assert "Research use only" in process.stdout.readline()
            url = address.split("#")[0].replace("0.0.0.0", "127.0.0.1") + "v1/findings"
            statuses = []
            for headers, data in (({}, bytes(1 << 25)), ({"authorization": "Bearer wo+rd"}, b"none")):
                files = [("files", ("ZEPHYRINE.png", data))]  # the first is rejected while it is sent
                statuses.append(httpx.post(url, files=files, headers=headers).status_code)
            with socket.create_connection(httpx.URL(url).netloc.decode().split(":")) as line:
                # an invalid chunk
                line.sendall(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnone\r\n")
                assert b" 400 " in line.recv(1 << 16)
            with socket.create_connection(httpx.URL(url).netloc.decode().split(":")) as line:
                # an invalid chunk after the request was rejected
                line.sendall(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
                assert b" 401 " in line.recv(1 << 16)
                line.sendall(b"ZZZZ\r\n\r\n")
                while line.recv(1 << 16):
                    pass
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert statuses == [401, 200] and process.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.glob("*mcis*"))
    assert "ZEPHYRINE" not in out + err and "Error" not in err


def app_arguments(options, monkeypatch):
    """The arguments of make_app for some options."""
    arguments = []

    class Stopped(Exception):
        pass

    def make_app(_, root, limits, hosts, token):
        arguments.append((limits, hosts, token))
        raise Stopped

    monkeypatch.setattr("mcis.serve.app.make_app", make_app)
    monkeypatch.setattr(serve, "load", lambda *_, **__: type("P", (), {"lacking": ()}))
    monkeypatch.setattr("mcis.cli.common.enable_compilation_cache", lambda: None)
    with pytest.raises(Stopped):
        serve.main(["--port=0", *options])
    return arguments[0]


def test_other_addresses_need_a_token_and_loopback_accepts_only_its_own_names(monkeypatch):
    monkeypatch.delenv(serve.TOKEN, raising=False)
    _, hosts, token = app_arguments(["--host=0.0.0.0"], monkeypatch)
    assert hosts is None and len(token) >= 32 and token != app_arguments(["--host=0.0.0.0"], monkeypatch)[2]
    limits, hosts, token = app_arguments(["--max_mib=3", "--max_scans=4", "--max_seconds=5"], monkeypatch)
    assert (limits.size, limits.scans, limits.seconds) == (3 << 20, 4, 5.0)
    assert set(hosts) == {"localhost", "127.0.0.1", "[::1]"} and token is None
    monkeypatch.setenv(serve.TOKEN, "secret")
    assert app_arguments([], monkeypatch)[2] == "secret"
