"""A place in a store, held by one command: by files that only one of several can create."""

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from msgspec import Struct

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import this_host
from vlmix.mixture.io.storage import Facts, Remote

_log = logging.getLogger(__name__)
_BEAT, _LOOK, _SILENT = 15.0, 5.0, 60.0
"""Seconds between the signs of life of a holder, between looks at another one's, and until that one is given up."""
_PREFIX = "lock-"
_CREATED = 8  # times that a file is created where others stand


class Held(Struct, frozen=True):
    """A place in a store that a command holds, as its workers have it: before each request that writes or removes
    something there the hold is looked at, so that a command that was stopped for long spoils nothing of the one that
    took over."""

    root: Remote
    locks: Remote
    """The folder of the lock."""
    number: int
    id: str
    """What the lock says: numbers come again when all locks are gone."""

    def put(self, name: str, path: Path) -> Facts:
        """Upload a file as `name`, in place of one that an earlier run left; see `Remote.put`. Raises VlmixError as
        `check`. A file is removed and created anew and not written over: else an upload that was under way when its
        command was stopped could end, after another one took over, in place of that one's file."""
        where = self.root.join(name)
        for _ in range(_CREATED):
            try:
                return where.put(path, self.check)
            except FileExistsError:
                self.remove(name)
        raise VlmixError(f"{where.url}: something else writes it; stop that, and run the same command again")

    def remove(self, name: str) -> None:
        """Raises VlmixError as `check`."""
        self.root.join(name).remove(self.check)

    def check(self) -> None:
        """Raises VlmixError if another command has taken over, as one does from a holder that is silent for long."""
        if self.is_lost():
            raise VlmixError(
                f"{self.root.url}: its lock is not this command's any more: another one took over while this one was "
                "stopped or cut off from the store, or this machine reaches another store than the command's; nothing "
                "more is written"
            )

    def is_lost(self) -> bool:
        if max(numbers_of(self.locks), default=0) != self.number:
            return True
        try:
            return bool(json.loads(_place(self.locks, self.number).whole())["id"] != self.id)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return True


class StoreLock:
    """The hold on a folder. The file `lock-N` of the highest N is its holder's, who writes `beat-N` from time to time;
    who finds that nothing is written any more creates the lock of N + 1, which one alone can, and removes the others.
    Nobody's clock matters. A lock is created once and never written again: what a holder that was stopped still sends
    brings none back."""

    def __init__(self, folder: Remote, root: Remote) -> None:
        self._folder, self._root, self._out = folder, root, root.url
        self._mine = {"host": _machine(), "pid": os.getpid(), "id": uuid4().hex}
        self._number, self._beats = 0, 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._live, name="store lock", daemon=True)

    @property
    def held(self) -> Held:
        return Held(self._root, self._folder, self._number, str(self._mine["id"]))

    def acquire(self) -> None:
        """Raises VlmixError if another command holds the folder."""
        before = max(numbers_of(self._folder), default=0)
        if before:
            self._wait_for_silence(before)
        place = _place(self._folder, before + 1)
        text = json.dumps(self._mine).encode()
        if not place.create(text):
            raise VlmixError(f"{self._out} is being written by another command that began just now; wait for it")
        self._number = before + 1
        if place.create(b"another"):
            place.write(text)
            _log.warning("%s: its store has no conditional puts; start no second command on it meanwhile", self._out)
        for number in numbers_of(self._folder):
            if number < self._number:
                self._remove(number)
        self._thread.start()

    def release(self) -> None:
        """Give the folder up, unless it is another one's by now; a store that fails is a warning, as the next command
        finds out by itself."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            if self._number and not self.held.is_lost():
                self._remove(self._number)
        except (VlmixError, OSError) as error:
            with suppress(VlmixError, OSError):
                if self.held.is_lost():
                    return  # it was removed, by a try whose answer was lost
            _log.warning("%s is given up, and its lock stays: %s", self._out, error)

    def _remove(self, number: int) -> None:
        _beat(self._folder, number).remove(self.held.check)
        _place(self._folder, number).remove(self.held.check)

    def _live(self) -> None:
        while not self._end.wait(_BEAT):
            self._beats += 1
            try:
                if self.held.is_lost():
                    return  # which the next upload tells
                _beat(self._folder, self._number).write(f"{self._mine['id']} {self._beats}".encode())
            except (VlmixError, OSError) as error:
                _log.warning("%s: no sign of life was written: %s", self._out, error)

    def _wait_for_silence(self, number: int) -> None:
        """Until the holder has ended. Raises VlmixError if it has not."""
        first = self._seen(number)
        try:
            holder = json.loads(first[0])
            who = f"process {holder['pid']} on {holder['host']}"
        except (ValueError, KeyError, TypeError):
            holder, who = {}, "another command"
        if holder.get("host") == self._mine["host"] and _has_ended(holder["pid"]):
            return
        _log.warning("%s was being written by %s; looking whether it still is, %.0f s", self._out, who, _SILENT)
        for _ in range(round(_SILENT / _LOOK)):
            time.sleep(_LOOK)
            if self._seen(number) != first:
                raise VlmixError(f"{self._out} is being written by {who}; wait for it or stop it")

    def _seen(self, number: int) -> list[bytes]:
        """The lock and its beat, as they are now."""
        found = []
        for file in (_place(self._folder, number), _beat(self._folder, number)):
            try:
                found.append(file.whole())
            except FileNotFoundError:
                found.append(b"")
        return found


def _has_ended(pid: object) -> bool:
    try:
        os.kill(int(str(pid)), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, ValueError, OverflowError):
        pass
    return False


def _place(folder: Remote, number: int) -> Remote:
    return folder.join(f"{_PREFIX}{number:06d}")


def _beat(folder: Remote, number: int) -> Remote:
    return folder.join(f"beat-{number:06d}")


def numbers_of(folder: Remote) -> list[int]:
    """Those of the locks in a folder."""
    names = [name.removeprefix(_PREFIX) for name in folder.below() if name.startswith(_PREFIX)]
    return [int(name) for name in names if name.isdecimal()]


def _machine() -> str:
    """This machine since it was started, or the container on it: two may have one name."""
    try:
        return f"{this_host()}-{Path('/proc/sys/kernel/random/boot_id').read_text()[:8]}"
    except OSError:  # not Linux
        return this_host()


@contextmanager
def store_lock(folder: Remote, root: Remote) -> Iterator[Held]:
    """Hold the place `root` by the locks in `folder` until the block ends. A command that was killed holds it for a
    minute longer, seen from another machine. Raises VlmixError if another command holds it."""
    lock = StoreLock(folder, root)
    try:
        lock.acquire()
        yield lock.held
    finally:
        lock.release()
