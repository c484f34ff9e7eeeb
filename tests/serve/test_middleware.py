"""What stands before the server's routes: who may ask, how much, how long, and what of it is logged."""

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


def guarded(app=nothing, limits=None, hosts=None, token=None):
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
def test_a_page_elsewhere_cannot_ask(headers, status):
    async def asked():
        async with guarded(hosts=("localhost", "127.0.0.1", "[::1]")) as client:
            return await client.post("/v1/findings", headers=headers)

    assert asyncio.run(asked()).status_code == status


def test_a_token_is_needed_below_v1_and_nowhere_else():
    async def asked():
        async with guarded(token="secret") as client:
            answers = [await client.get(path) for path in ("/", "/v1/about")]
            for brought in ("Bearer secret", "Bearer secre", "secret", "Bearer "):
                answers.append(await client.get("/v1/about", headers={"authorization": brought}))
            return [answer.status_code for answer in answers]

    assert asyncio.run(asked()) == [200, 401, 200, 401, 200, 401]


async def paused(limits, app=nothing):
    """The answer to an upload of which a piece comes, and then nothing for long."""
    said, came = [], []

    async def receive():
        if not came:
            came.append(1)
            return {"type": "http.request", "body": b"1", "more_body": True}
        await asyncio.sleep(5)

    async def send(message):
        said.append(message)

    await Guard(app, limits, None, None)(
        {"type": "http", "path": "/v1/x", "method": "POST", "headers": []}, receive, send
    )
    return said[0]["status"], json.loads(said[1]["body"])["error"]


def test_an_upload_that_pauses_is_given_up():
    assert asyncio.run(paused(Limits(silence=0.2, linger=0.1))) == (408, "the upload paused for too long")


def test_a_request_has_so_many_seconds():
    async def slow(scope, receive, send):
        await asyncio.sleep(5)

    assert asyncio.run(paused(Limits(seconds=0.2, linger=0.1), slow)) == (
        408,
        "a request may take 0.2 s; send less at once",
    )


def test_who_sends_when_it_is_refused_has_the_answer_and_is_heard_to_the_end():
    said, left = [], [{"type": "http.request", "body": b"12345", "more_body": True}] * 3 + [{"type": "http.request"}]

    async def receive():
        return left.pop(0)

    async def send(message):
        said.append((message, len(left)))

    asked = {"type": "http", "path": "/v1/x", "method": "POST", "headers": [(b"content-length", b"15")]}
    asyncio.run(Guard(nothing, Limits(size=4), None, None)(asked, receive, send))
    (start, _), (body, unread), (last, none) = said
    assert start["status"] == 413 and int(dict(start["headers"])[b"content-length"]) == len(body["body"])
    assert body["more_body"] and unread == 4, "the answer goes before the rest is taken"
    assert last == {"type": "http.response.body"} and none == 0


def test_who_is_refused_keeps_no_place_meanwhile():
    """Whether by the guard or by the application, and after what breaks too."""

    async def refusing(scope, receive, send):
        if scope["path"].endswith("broken"):
            raise RuntimeError
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def asked(guard, path, left):
        said = []

        async def receive():
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            said.append(message)

        await guard({"type": "http", "path": path, "method": "POST", "headers": []}, receive, send)
        return said[0]["status"]

    async def all_of_them():
        guard, left = Guard(refusing, Limits(requests=1), None, None), asyncio.Event()
        waiting = []
        for path in ("/v1/x", "/v1/broken", "/v1/x"):
            waiting.append(asyncio.create_task(asked(guard, path, left)))
            await asyncio.sleep(0.05)
        left.set()
        return await asyncio.gather(*waiting)

    assert asyncio.run(all_of_them()) == [404, 500, 404]


def test_a_server_that_ends_waits_for_no_upload():
    said = []

    async def receive():
        await asyncio.sleep(30)

    async def send(message):
        said.append(message)

    async def ended():
        asked = {"type": "http", "path": "/v1/x", "method": "POST", "headers": []}
        task = asyncio.create_task(Guard(nothing, Limits(), None, None)(asked, receive, send))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait_for(task, 2)

    asyncio.run(ended())
    assert said[0]["status"] == 503


def test_more_requests_than_are_allowed_are_sent_away():
    async def busy(scope, receive, send):
        await asyncio.sleep(0.3)
        await nothing(scope, receive, send)

    async def asked():
        async with guarded(busy, Limits(requests=2)) as client:
            answers = await asyncio.gather(*(client.post("/v1/findings") for _ in range(3)))
            return sorted(answer.status_code for answer in answers), (await client.post("/v1/findings")).status_code

    assert asyncio.run(asked()) == ([200, 200, 503], 200)


def test_what_breaks_is_logged_without_its_words(capsys):
    async def broken(scope, receive, send):
        raise RuntimeError(f"{CANARY}.dcm")

    async def asked():
        async with guarded(broken) as client:
            return await client.post("/v1/findings")

    answer = asyncio.run(asked())
    out, err = capsys.readouterr()
    assert answer.status_code == 500 and CANARY not in answer.text + out + err and "in broken" in err
