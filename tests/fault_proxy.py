"""A reverse proxy that breaks HTTP as networks and stores do: seeded, and it counts every request.

    with fault_proxy(server, Faults(unavailable=0.3, reset=0.1), seed=1) as proxy:
        ...                       # clients of proxy.server see the faults
    proxy.requests["GET", "/bucket/key"], proxy.injected["reset"]

Path, query and Host go on as they came, so signatures stay valid. What befalls the n-th request
for a key depends only on the seed, the key and n.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, web
from multidict import CIMultiDict
from yarl import URL

from tests.servers import S3Server

HOP_HEADERS = {
    "connection",
    "keep-alive",
    "transfer-encoding",
    "content-length",
    "content-encoding",
}
FORBIDDEN = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
UNSUPPORTED = b"<Error><Code>NotImplemented</Code><Message>A header is unknown.</Message></Error>"
UNAVAILABLE = b"<Error><Code>SlowDown</Code><Message>Please reduce your rate.</Message></Error>"


@dataclass(frozen=True)
class Faults:
    """Parts of the requests; the rest passes. latency in seconds, for each."""

    unavailable: float = 0.0  # 503
    unsupported: float = 0.0  # 501
    forbidden: float = 0.0  # 403
    reset: float = 0.0  # the connection breaks before an answer
    truncated: float = 0.0  # the connection breaks in the body
    shortened: float = 0.0  # a shorter body with a header that agrees with it
    flipped: float = 0.0  # one byte of the body is another
    spoilt: float = 0.0  # the same, and the same byte each time
    hang: float = 0.0  # no answer, ever
    latency: float = 0.0

    def draw(self, seed: int, key: str, turn: int) -> str | None:
        point = random.Random(f"{seed} {key} {turn}").random()
        for kind in KINDS:
            point -= getattr(self, kind)
            if point < 0:
                return kind
        return None


KINDS = (
    *("unavailable", "forbidden", "reset", "truncated", "shortened", "flipped", "spoilt", "hang"),
    "unsupported",
)


@dataclass
class FaultProxy:
    """What a test sees of it."""

    upstream: S3Server
    faults: Faults
    seed: int
    applies: Callable[[str, str], bool]  # to a method and a path
    headers: Mapping[str, str] = field(default_factory=dict)  # put on answers for such a path
    holds: Callable[[str, str], bool] = lambda method, path: False  # until `let_go`
    held: int = 0  # requests that were held so far, and of these
    passed: int = 0  # those that have been passed on since
    port: int = 0
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    injected: Counter[str] = field(default_factory=Counter)
    access_keys: Counter[str] = field(default_factory=Counter)  # that signed the requests

    @property
    def server(self) -> S3Server:
        return replace(self.upstream, url=f"http://127.0.0.1:{self.port}")

    def let_go(self) -> None:
        """Pass on what was held, though nobody waits for the answers any more."""
        self._loop.call_soon_threadsafe(self._let_go.set)

    def methods(self) -> Counter[str]:
        """Requests by method."""
        total: Counter[str] = Counter()
        for (method, _), count in self.requests.items():
            total[method] += count
        return total

    async def handle(self, request: web.Request) -> web.StreamResponse:
        key = (request.method, request.raw_path.partition("?")[0])
        self.requests[key] += 1
        if not self._let_go.is_set() and self.holds(*key):
            self.held += 1
            await request.read()
            await self._let_go.wait()
            try:
                return await self._pass_on(request, None)
            finally:  # the client has gone
                self.passed += 1
        signed = request.headers.get("Authorization", "").partition("Credential=")[2]
        self.access_keys[signed.partition("/")[0]] += 1
        fault = None
        if self.applies(*key):
            await asyncio.sleep(self.faults.latency)
            fault = self.faults.draw(self.seed, " ".join(key), self.requests[key])
        if fault:
            self.injected[fault] += 1
        if fault == "unavailable":
            return web.Response(status=503, body=UNAVAILABLE, content_type="application/xml")
        if fault == "unsupported":
            return web.Response(status=501, body=UNSUPPORTED, content_type="application/xml")
        if fault == "forbidden":
            return web.Response(status=403, body=FORBIDDEN, content_type="application/xml")
        if fault == "reset":
            return _break(request)
        if fault == "hang":
            await self._stop.wait()
        return await self._pass_on(request, fault)

    async def _pass_on(self, request: web.Request, fault: str | None) -> web.StreamResponse:
        url = URL(self.upstream.url + request.raw_path, encoded=True)
        data = await request.read()
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP_HEADERS}
        async with self._session.request(
            request.method, url, headers=headers, data=data, allow_redirects=False
        ) as answer:
            body = await answer.read()
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in HOP_HEADERS}
            passed = CIMultiDict(kept)
            length = answer.headers.get("Content-Length") if request.method == "HEAD" else None
            status = answer.status
        if self.applies("GET", request.raw_path.partition("?")[0]):
            passed.update(self.headers)
        damaged = bytearray(body)
        if fault in ("flipped", "spoilt") and body:
            turn = self.requests.total() if fault == "flipped" else 0
            place = random.Random(f"{self.seed} {len(body)} {turn}")
            damaged[place.randrange(len(body))] ^= place.randrange(1, 256)
        if fault == "shortened":
            damaged = damaged[: len(body) // 2]
        response = web.StreamResponse(status=status, headers=passed)
        response.content_length = int(length) if length is not None else len(damaged)
        await response.prepare(request)
        if fault == "truncated":
            await response.write(bytes(damaged[: len(body) // 2]))
            return _break(request)
        if request.method != "HEAD":
            await response.write(bytes(damaged))
        return response

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        self._stop, self._let_go = stop, asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._session = ClientSession(
            timeout=ClientTimeout(total=60), cookie_jar=DummyCookieJar(), auto_decompress=False
        )
        application = web.Application(client_max_size=1 << 30)
        application.router.add_route("*", "/{path:.*}", self.handle)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=512)
        await site.start()
        self.port = runner.addresses[0][1]
        ready.set()
        await stop.wait()
        await runner.cleanup()
        await self._session.close()


def _break(request: web.Request) -> web.StreamResponse:
    """Close the connection under the client; what aiohttp then writes goes nowhere."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


@contextmanager
def fault_proxy(
    upstream: S3Server,
    faults: Faults,
    *,
    seed: int = 0,
    applies: Callable[[str, str], bool] = lambda method, path: method == "GET",
    headers: Mapping[str, str] | None = None,
    holds: Callable[[str, str], bool] = lambda method, path: False,
) -> Iterator[FaultProxy]:
    """The proxy, serving from a thread of its own until the block ends."""
    proxy = FaultProxy(upstream, faults, seed, applies, headers or {}, holds)
    loop, ready = asyncio.new_event_loop(), threading.Event()
    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(proxy.serve(ready, stop)))
    thread.start()
    assert ready.wait(20)
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
