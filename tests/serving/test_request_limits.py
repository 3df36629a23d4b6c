"""Which requests are let in, how much of them is read, how long it may take, and how many are answered at once."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator

import pytest
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from vlm.embedder import Embedder
from vlm.serving.request_limits import MAX_RUNNING, RequestLimits
from vlm.serving.server import create_app
from vlm.serving.service import Service

JSON = {"Content-Type": "application/json"}

# ---- names -----------------------------------------------------------------------------------------------------


def statuses(hosts: list[str] | None, names: list[str | None]) -> list[int]:
    """Of requests under these names; None: HTTP/1.0 without the header Host."""

    async def ask(name: str | None) -> int:
        sent: list[Message] = []
        headers = [] if name is None else [(b"host", name.encode())]
        scope = {"type": "http", "path": "/", "headers": headers, "http_version": "1.0" if name is None else "1.1"}
        limits = RequestLimits(answer_ok, token=None, hosts=hosts, max_bytes=1)

        async def send(message: Message) -> None:
            sent.append(message)

        await limits(scope, whole_body, send)
        return sent[0]["status"]

    return [asyncio.run(ask(name)) for name in names]


async def answer_ok(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def whole_body() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


def test_a_page_elsewhere_cannot_reach_it_under_a_name_of_its_own():
    foreign = ["evil.example", "127.0.0.1.evil.example:8000", "evil.example:127.0.0.1", "", "192.168.0.7", "8.8.8.8"]
    assert statuses(["127.0.0.1", "localhost"], [*foreign]) == [403] * len(foreign)


@pytest.mark.parametrize("bound", ["127.0.0.2", "::1", "localhost", "LOCALHOST", "127.1.2.3"])
def test_the_address_it_is_bound_to_is_a_name_it_answers_to(bound: str):
    host = f"[{bound}]" if ":" in bound else bound
    own = [host, f"{host}:8000", host.upper(), f"{host.title()}:9", "localhost.", "[::1]:1", "127.0.0.1", None]
    assert statuses(["127.0.0.1", "localhost", "::1", bound], own) == [200] * len(own)


def test_a_server_for_others_is_called_by_any_name():
    assert statuses(None, ["example.org", "192.168.0.7:8000", None]) == [200] * 3


# ---- bytes -----------------------------------------------------------------------------------------------------


def test_a_body_that_does_not_say_its_length_is_cut_off(tiny_embedder: Embedder):
    sent: list[int] = []

    def endless() -> Iterator[bytes]:
        for _ in range(30):
            sent.append(100_000)
            yield b" " * 100_000

    with TestClient(create_app(Service(tiny_embedder), max_bytes=1_000_000)) as client:
        answer = client.post("/embed", content=endless(), headers=JSON)
    assert answer.status_code == 413
    assert "1,000,000" in answer.json()["error"]


@pytest.mark.parametrize(("spare", "status"), [(0, 200), (1, 413)])
@pytest.mark.parametrize("said", [True, False])
def test_just_the_most_bytes_are_read_whether_their_number_was_said_or_not(
    tiny_embedder: Embedder, spare: int, status: int, said: bool
):
    body = b'{"texts": ["a dog"]}'
    body += b" " * (10_000 - len(body) + spare)
    parts = iter([body[:4000], body[4000:9000], body[9000:]])
    with TestClient(create_app(Service(tiny_embedder), max_bytes=10_000)) as client:
        answer = client.post("/embed", content=body if said else parts, headers=JSON)
    assert answer.status_code == status
    if status == 413:
        came = "10,001" if said else "more than 10,000"
        line = f"The request has {came} bytes, at most 10,000 are read. Send less at once."
        assert answer.json() == {"error": line}


@pytest.mark.parametrize(("length", "status"), [(32 * 2**20, 200), (32 * 2**20 + 1, 413)])
def test_a_request_has_32_mib_at_most_unless_said_otherwise(tiny_embedder: Embedder, length: int, status: int):
    headers = {**JSON, "Content-Length": str(length)}  # docs/server.md; that so much comes need not be waited for
    with TestClient(create_app(Service(tiny_embedder))) as client:
        assert client.post("/embed", content=b'{"texts": ["a dog"]}', headers=headers).status_code == status


# ---- time and number -------------------------------------------------------------------------------------------

Ask = Callable[[list[Message]], Awaitable[int | None]]


def limits_of(app: Callable[[Scope, Receive, Send], Awaitable[None]], seconds: float = 60) -> Ask:
    """Sends a request whose body arrives in these messages, the last of them for ever -> its status, None: none."""
    limits = RequestLimits(app, token=None, hosts=None, max_bytes=1000, body_seconds=seconds)

    async def ask(arriving: list[Message]) -> int | None:
        sent: list[Message] = []
        waiting = list(arriving)

        async def receive() -> Message:
            if not waiting:
                await asyncio.Event().wait()
            return waiting.pop(0)

        async def send(message: Message) -> None:
            sent.append(message)

        await limits({"type": "http", "path": "/embed", "headers": []}, receive, send)
        return sent[0]["status"] if sent else None

    return ask


WHOLE: list[Message] = [{"type": "http.request", "body": b"{}", "more_body": False}]
HALF: list[Message] = [{"type": "http.request", "body": b"{", "more_body": True}]
GONE: list[Message] = [*HALF, {"type": "http.disconnect"}]


def test_256_requests_are_answered_at_once_and_one_more_is_told_to_come_again():
    async def ask_all() -> list[int | None]:
        go_on, running = asyncio.Event(), list[int]()

        async def slow(scope: Scope, receive: Receive, send: Send) -> None:
            running.append(1)
            await go_on.wait()
            if len(running) % 2:
                raise KeyError  # a failure frees its place too
            await answer_ok(scope, receive, send)

        ask = limits_of(slow)
        waiting = [asyncio.ensure_future(ask(WHOLE)) for _ in range(256)]  # docs/server.md
        while len(running) < 256:
            await asyncio.sleep(0)
        one_more = await ask(WHOLE)
        go_on.set()
        await asyncio.gather(*waiting, return_exceptions=True)
        running.append(1)
        return [one_more, await ask(WHOLE)]

    assert asyncio.run(ask_all()) == [503, 200]


def test_half_sent_requests_do_not_keep_others_waiting():
    async def ask_all() -> list[int | None]:
        ask = limits_of(answer_ok)
        slow = [asyncio.ensure_future(ask(HALF)) for _ in range(2 * MAX_RUNNING)]
        await asyncio.sleep(0.01)
        answers = await asyncio.gather(*(ask(WHOLE) for _ in range(100)))
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        return answers

    assert asyncio.run(ask_all()) == [200] * 100


@pytest.mark.parametrize("arriving", [HALF, HALF * 3, []], ids=["half", "more", "nothing"])
def test_a_request_that_is_not_complete_in_time_is_408(arriving: list[Message]):
    assert asyncio.run(limits_of(answer_ok, seconds=0.05)(arriving)) == 408  # type: ignore[arg-type]


@pytest.mark.parametrize("arriving", [GONE, GONE[1:]], ids=["half-way", "at once"])
def test_a_client_that_hangs_up_is_one_line_of_the_log(arriving: list[Message], caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        assert asyncio.run(limits_of(answer_ok)(arriving)) is None  # type: ignore[arg-type]
    (record,) = caplog.records
    assert "hung up" in record.message and "/embed" in record.message
