"""Time, chance and who moves next: drivers as threads that hand over at each request."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from pipeline.run.lease import RENEW_SECONDS, Hold
from pipeline.storage.conditional import Limits
from pipeline.storage.entry import Entry, Fetched

T = TypeVar("T")
TRY_SECONDS: Final = 10.0
LIMITS: Final = Limits(tries=30, seconds=40.0, each=TRY_SECONDS)
LATE_SECONDS: Final = 400.0  # a request that was given up may still be carried out


class Killed(BaseException):
    """The driver is gone: nothing that it does afterwards reaches the store."""


class Stuck(Exception):
    """Nobody gets on: the drivers took more steps than any of them needs."""


@dataclass(frozen=True)
class Faults:
    """Parts of the requests that this befalls."""

    killed: float = 0.004
    asleep: float = 0.008
    unanswered: float = 0.01  # carried out, but the answer is lost
    lost: float = 0.01
    late: float = 0.02  # given up by the client, and carried out later
    unread: float = 0.01  # reads that fail


NONE: Final = Faults(0, 0, 0, 0, 0, 0)


@dataclass
class Object:
    data: bytes
    version: int
    modified: float


class Baton:
    """What one thread waits for and another hands over."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self.acquire, self.release = self._lock.acquire, self._lock.release


class Driver:
    """One process: a verb that runs to its end, or is killed."""

    def __init__(self, name: str, start: float, work: Callable[[], Any]) -> None:
        self.name = name
        self.wake = start
        self.work = work
        self.baton = Baton()
        self.holds: list[Hold] = []
        self.renewing = False
        self.dead = False
        self.ended = False
        self.outcome: BaseException | None = None
        self.thread: threading.Thread | None = None


class World:
    """The store, the clock, and the drivers. `watch` gets every key that changed."""

    def __init__(self, seed: int, objects: dict[str, Object], faults: Faults = NONE) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.objects = dict(objects)
        self.now = 1_000.0
        self.versions = 10_000
        self.late: list[tuple[float, Driver, Callable[[], Any]]] = []
        self.drivers: list[Driver] = []
        self.moving: Driver | None = None
        self.broken: str | None = None
        self.steps = 0
        self.log: list[str] = []
        self.watch: Callable[[str, Driver | None], None] = lambda key, driver: None
        self._baton = Baton()

    # -- drivers

    def add(self, name: str, work: Callable[[], Any], start: float = 0.0) -> Driver:
        driver = Driver(name, self.now + start, work)
        self.drivers.append(driver)
        return driver

    def run(self) -> None:
        """Until every driver has ended, and whatever came late is done."""
        for driver in self.drivers:
            if driver.thread is None:
                driver.thread = threading.Thread(target=self._live, args=(driver,), daemon=True)
                driver.thread.start()
        while alive := [driver for driver in self.drivers if not driver.ended]:
            ready = [driver for driver in alive if driver.wake <= self.now or self.broken]
            if not ready:
                self.now = min(driver.wake for driver in alive)
                self._carry_out()
                continue
            self._resume(self.random.choice(ready))
        while self.late and not self.broken:
            self.now = max(self.now, min(self.late, key=lambda each: each[0])[0])
            self._carry_out()

    def _live(self, driver: Driver) -> None:
        driver.baton.acquire()
        try:
            driver.work()
        except BaseException as error:  # noqa: BLE001  # the test looks at it
            driver.outcome = error
        driver.ended = True
        self._baton.release()

    def _resume(self, driver: Driver) -> None:
        self.moving = driver
        driver.baton.release()
        self._baton.acquire()

    def _hand_over(self, driver: Driver, seconds: float = 0.0) -> None:
        """Let others move; this one again when so much time has passed, unless it is dead."""
        driver.wake = self.now + seconds
        self._baton.release()
        driver.baton.acquire()
        if driver.dead or self.broken:
            driver.dead = True
            raise Killed

    # -- the clock, as `Storage` and a lease take it

    def sleep(self, seconds: float) -> None:
        assert self.moving is not None
        self._hand_over(self.moving, seconds)

    def host(self) -> Host:
        return Host(self)

    # -- requests

    def request(self, what: str, key: str, effect: Callable[[], T], *, writes: bool) -> T:
        """One request: others may move before it, and it may fail in any way."""
        driver = self.moving
        assert driver is not None
        if threading.current_thread() is not driver.thread:
            return effect()  # of a pool of readers; its driver waits for it
        if driver.dead:
            raise Killed
        self.steps += 1
        if self.steps > 20_000:
            self.broken = "the drivers take steps without end"
        self.now += self.random.expovariate(3.0)
        self._carry_out()
        if self.broken or self.random.random() < 0.5:
            self._hand_over(driver)
        self._renew(driver)
        self.log.append(f"{self.now:8.1f} {driver.name}: {what} {key}")
        fate = self.random.random()
        for name in (
            "killed",
            "asleep",
            *(("unanswered", "lost", "late") if writes else ("unread",)),
        ):
            fate -= getattr(self.faults, name)
            if fate < 0:
                self.log[-1] += f" ({name})"
                return self._befall(driver, name, effect)
        return effect()

    def _befall(self, driver: Driver, name: str, effect: Callable[[], T]) -> T:
        before = self.random.random() < 0.5
        if name == "killed":
            if not before:
                effect()
            driver.dead = True
            raise Killed
        if name == "asleep":
            seconds = self.random.uniform(10.0, 400.0)
            if before:
                self._hand_over(driver, seconds)
                return effect()
            result = effect()
            self._hand_over(driver, seconds)
            return result
        if name == "unanswered":
            effect()
        if name == "late":
            due = self.now + self.random.uniform(0.0, LATE_SECONDS)
            self.late.append((due, driver, effect))
        self._hand_over(driver, TRY_SECONDS)
        raise TimeoutError(name)

    def _carry_out(self) -> None:
        due = [each for each in self.late if each[0] <= self.now]
        self.late = [each for each in self.late if each[0] > self.now]
        for _, driver, effect in sorted(due, key=lambda each: each[0]):
            self.log.append(f"{self.now:8.1f} a late write of {driver.name}")
            moving, self.moving = self.moving, driver
            with suppress(FileNotFoundError):
                effect()
            self.moving = moving

    def _renew(self, driver: Driver) -> None:
        """What a driver's other threads do: renew its leases, and interrupt it when one is lost."""
        if driver.renewing:
            return
        driver.renewing = True
        try:
            for hold in list(driver.holds):
                if self.now - hold.renewed > RENEW_SECONDS:
                    hold.renew()
                if hold.lost is not None and self.random.random() < 0.5:
                    raise KeyboardInterrupt  # else it comes too late for this request
        finally:
            driver.renewing = False

    def changed(self, key: str) -> None:
        self.watch(key, self.moving)


class Host:
    """A lease's view of the world (`lease.Host`)."""

    def __init__(self, world: World) -> None:
        self.world = world

    def now(self) -> float:
        return self.world.now

    def sleep(self, seconds: float) -> None:
        self.world.sleep(seconds)

    def beside(self, hold: Hold) -> Callable[[], None]:
        driver = self.world.moving
        assert driver is not None
        driver.holds.append(hold)
        return lambda: driver.holds.remove(hold)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        yield


class SimulatedObjects:
    """A store with conditional writes, as S3 is: a version for each content, times in seconds."""

    def __init__(self, world: World) -> None:
        self.world = world

    def get(self, key: str) -> Fetched:
        return self.world.request("get", key, lambda: self._get(key), writes=False)

    def look(self, key: str) -> Fetched | None:
        try:
            return self.get(key)
        except FileNotFoundError:
            return None

    def put(self, key: str, data: bytes) -> None:
        self.world.request("put", key, lambda: self._put(key, data), writes=True)

    def create(self, key: str, data: bytes, *, large: bool) -> bool:
        def effect() -> bool:
            if key in self.world.objects:
                return False
            self._put(key, data)
            return True

        return self.world.request("create", key, effect, writes=True)

    def replace(self, key: str, old: Fetched, new: bytes) -> bool:
        def effect() -> bool:
            found = self.world.objects.get(key)
            if found is None or str(found.version) != old.etag:
                return False
            self._put(key, new)
            return True

        return self.world.request("replace", key, effect, writes=True)

    def delete(self, key: str) -> None:
        def effect() -> None:
            if self.world.objects.pop(key, None) is not None:
                self.world.changed(key)

        # A late one is not tried: no store could stop it (docs/faults.md says so).
        self.world.request("delete", key, effect, writes=False)

    def info(self, key: str) -> Entry:
        def effect() -> Entry:
            found = self._at(key)
            modified = datetime.fromtimestamp(int(found.modified), UTC)
            return Entry(key, len(found.data), str(found.version), modified)

        return self.world.request("head", key, effect, writes=False)

    def list(self, prefix: str) -> Iterator[Entry]:
        def effect() -> list[Entry]:
            keys = sorted(key for key in self.world.objects if key.startswith(f"{prefix}/"))
            return [Entry(key, len(self.world.objects[key].data), None, None) for key in keys]

        yield from self.world.request("list", prefix, effect, writes=False)

    def limits(self, *, large: bool) -> Limits:
        return LIMITS

    def refuses_stale(self, key: str) -> bool:
        return True

    def _at(self, key: str) -> Object:
        if key not in self.world.objects:
            raise FileNotFoundError(key)
        return self.world.objects[key]

    def _get(self, key: str) -> Fetched:
        found = self._at(key)
        return Fetched(found.data, str(found.version))

    def _put(self, key: str, data: bytes) -> None:
        self.world.versions += 1
        self.world.objects[key] = Object(data, self.world.versions, self.world.now)
        self.world.changed(key)
