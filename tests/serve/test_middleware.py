"""The middleware: access control, limits of size, time and number of requests, and its log."""

import asyncio
import json

import httpx2 as httpx
import pytest

from mcis.serve.middleware import Guard, Limits

CANARY = "ZEPHYRINE"


async def nothing(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


def client_of(app=nothing, limits=None, hosts=None, token=None):
    transport = httpx.ASGITransport(Guard(app, limits or Limits(), hosts, token))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost:8000")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "127.0.0.1:9"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "LOCALHOST"}, 200),
        ({"host": "evil.example:8000"}, 421),
        ({"host": "localhost.evil.example"}, 421),
        ({"host": ""}, 421),
        ({"origin": "http://localhost:8000"}, 200),
        ({"origin": "http://localhost:9000"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"content-length": "nonsense"}, 413),
    ],
)
def test_other_hosts_and_origins_are_rejected(headers, status):
    async def request():
        async with client_of(hosts=("localhost", "127.0.0.1", "[::1]")) as client:
            return await client.post("/v1/findings", headers=headers)

    assert asyncio.run(request()).status_code == status


def test_a_token_is_required_only_below_v1():
    async def request():
        async with client_of(token="secret") as client:
            answers = [await client.get(path) for path in ("/", "/v1/about")]
            for brought in ("Bearer secret", "Bearer secre", "secret", "Bearer "):
                answers.append(await client.get("/v1/about", headers={"authorization": brought}))
            return [answer.status_code for answer in answers]

    assert asyncio.run(request()) == [200, 401, 200, 401, 200, 401]


async def paused(limits, app=nothing):
    """Status and error of the response to an upload that pauses after its first byte."""
    sent, came = [], []

    async def receive():
        if not came:
            came.append(1)
            return {"type": "http.request", "body": b"1", "more_body": True}
        await asyncio.sleep(5)

    async def send(message):
        sent.append(message)

    await Guard(app, limits, None, None)(
        {"type": "http", "path": "/v1/x", "method": "POST", "headers": []}, receive, send
    )
    return sent[0]["status"], json.loads(sent[1]["body"])["error"]


def test_an_upload_that_pauses_for_too_long_is_aborted():
    expected = (408, "the upload paused for more than 0.2 s")
    assert asyncio.run(paused(Limits(silence=0.2, linger=0.1))) == expected


def test_a_request_that_takes_too_long_is_aborted():
    async def slow(scope, receive, send):
        await asyncio.sleep(5)

    expected = (408, "the request took longer than 0.2 s; send less per request")
    assert asyncio.run(paused(Limits(seconds=0.2, linger=0.1), slow)) == expected


def test_a_rejected_upload_gets_its_response_first_and_is_then_read_to_the_end():
    sent, left = [], [{"type": "http.request", "body": b"12345", "more_body": True}] * 3 + [{"type": "http.request"}]

    async def receive():
        return left.pop(0)

    async def send(message):
        sent.append((message, len(left)))

    request = {"type": "http", "path": "/v1/x", "method": "POST", "headers": [(b"content-length", b"15")]}
    asyncio.run(Guard(nothing, Limits(size=4), None, None)(request, receive, send))
    (start, _), (body, unread), (last, none) = sent
    assert start["status"] == 413 and int(dict(start["headers"])[b"content-length"]) == len(body["body"])
    assert body["more_body"] and unread == 4, "the response is sent before the rest is read"
    assert last == {"type": "http.response.body"} and none == 0


def test_a_finished_request_does_not_count_while_its_upload_is_discarded():
    """Whether the guard or the application rejected it, or an error ended it."""

    async def rejecting(scope, receive, send):
        if scope["path"].endswith("broken"):
            raise RuntimeError
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def request(guard, path, left):
        sent = []

        async def receive():
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        await guard({"type": "http", "path": path, "method": "POST", "headers": []}, receive, send)
        return sent[0]["status"]

    async def all_of_them():
        guard, left = Guard(rejecting, Limits(requests=1), None, None), asyncio.Event()
        waiting = []
        for path in ("/v1/x", "/v1/broken", "/v1/x"):
            waiting.append(asyncio.create_task(request(guard, path, left)))
            await asyncio.sleep(0.05)
        left.set()
        return await asyncio.gather(*waiting)

    assert asyncio.run(all_of_them()) == [404, 500, 404]


def test_a_server_that_shuts_down_does_not_wait_for_uploads():
    sent = []

    async def receive():
        await asyncio.sleep(30)

    async def send(message):
        sent.append(message)

    async def ended():
        request = {"type": "http", "path": "/v1/x", "method": "POST", "headers": []}
        task = asyncio.create_task(Guard(nothing, Limits(), None, None)(request, receive, send))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait_for(task, 2)

    asyncio.run(ended())
    assert sent[0]["status"] == 503


def test_requests_beyond_the_limit_are_rejected():
    async def busy(scope, receive, send):
        await asyncio.sleep(0.3)
        await nothing(scope, receive, send)

    async def request():
        async with client_of(busy, Limits(requests=2)) as client:
            answers = await asyncio.gather(*(client.post("/v1/findings") for _ in range(3)))
            return sorted(answer.status_code for answer in answers), (await client.post("/v1/findings")).status_code

    assert asyncio.run(request()) == ([200, 200, 503], 200)


def test_an_error_is_logged_without_its_message(capsys):
    async def broken(scope, receive, send):
        raise RuntimeError(f"{CANARY}.dcm")

    async def request():
        async with client_of(broken) as client:
            return await client.post("/v1/findings")

    answer = asyncio.run(request())
    out, err = capsys.readouterr()
    assert answer.status_code == 500 and CANARY not in answer.text + out + err and "in broken" in err
