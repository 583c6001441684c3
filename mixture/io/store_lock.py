"""A place in a store, held by one command: by files that only one of several can create."""

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import this_host
from vlmix.mixture.io.storage import Remote

_log = logging.getLogger(__name__)
_BEAT, _LOOK, _SILENT = 15.0, 5.0, 60.0
"""Seconds between the signs of life of a holder, between looks at another one's, and until that one is given up."""
_PREFIX = "lock-"


class StoreLock:
    """The hold on a folder. The file `lock-N` of the highest N is its holder's, who writes it anew from time to time;
    who finds that nothing is written any more creates that of N + 1, which one alone can, and removes the others.
    Nobody's clock matters."""

    def __init__(self, folder: Remote, out: str) -> None:
        self._folder, self._out = folder, out
        self._mine = {"host": this_host(), "pid": os.getpid(), "id": uuid4().hex}
        self._number, self._beats, self._lost = 0, 0, False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._live, name="store lock", daemon=True)

    def acquire(self) -> None:
        """Raises VlmixError if another command holds the folder."""
        before = max(self._numbers(), default=0)
        if before:
            self._wait_for_silence(before)
        place = self._place(before + 1)
        if not place.create(self._text()):
            raise VlmixError(f"{self._out} is being written by another command that began just now; wait for it")
        self._number = before + 1
        if place.create(b"another"):
            place.write(self._text())
            _log.warning("%s: its store has no conditional puts; start no second command on it meanwhile", self._out)
        self._remove(range(self._number))
        self._thread.start()

    def check(self) -> None:
        """Raises VlmixError if another command has taken over, as one does from a holder that is silent for long."""
        self._look()
        if self._lost:
            raise VlmixError(
                f"{self._out}: another command took over while this one was stopped or cut off from the store; "
                "wait for that one, or stop it and run this one again"
            )

    def release(self) -> None:
        """Give the folder up; a store that fails is a warning, as the next command finds out by itself."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            self._remove(range(self._number + 1))
        except (VlmixError, OSError) as error:
            _log.warning("%s is given up, and its lock stays: %s", self._out, error)

    def _look(self) -> None:
        numbers = self._numbers()
        self._lost = self._lost or self._number not in numbers or max(numbers) > self._number

    def _remove(self, numbers: range) -> None:
        for number in self._numbers():
            if number in numbers:
                self._place(number).remove()

    def _numbers(self) -> list[int]:
        names = [name.removeprefix(_PREFIX) for name in self._folder.below() if name.startswith(_PREFIX)]
        return [int(name) for name in names if name.isdecimal()]

    def _place(self, number: int) -> Remote:
        return self._folder.join(f"{_PREFIX}{number:06d}")

    def _text(self) -> bytes:
        return json.dumps(self._mine | {"beat": self._beats}).encode()

    def _live(self) -> None:
        while not self._end.wait(_BEAT):
            self._beats += 1
            try:
                self._look()
                if self._lost:
                    return
                self._place(self._number).write(self._text())
            except (VlmixError, OSError) as error:
                _log.warning("%s: no sign of life was written: %s", self._out, error)

    def _wait_for_silence(self, number: int) -> None:
        """Until the holder has ended. Raises VlmixError if it has not."""
        first = self._seen(number)
        try:
            holder = json.loads(first or b"{}")
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

    def _seen(self, number: int) -> bytes | None:
        try:
            return self._place(number).whole()
        except FileNotFoundError:
            return None


def _has_ended(pid: object) -> bool:
    try:
        os.kill(int(str(pid)), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, ValueError, OverflowError):
        pass
    return False


@contextmanager
def store_lock(folder: Remote, out: str) -> Iterator[StoreLock]:
    """Hold `folder`, which stands for `out` in messages, until the block ends. A command that was killed holds it for
    a minute longer, seen from another machine. Raises VlmixError if another command holds it."""
    lock = StoreLock(folder, out)
    try:
        lock.acquire()
        yield lock
    finally:
        lock.release()
