"""The shards of a mixture in a store: members of many samples in few requests, checked against the index."""

import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from vlmix.mixture.dataset.manifest import Shard
from vlmix.mixture.dataset.tar import BLOCK, heads
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.shard_cache import ShardCache
from vlmix.mixture.io.storage import Facts, Range, Remote, read_ranges


class Member(NamedTuple):
    """A member of a shard, by the shard's number: its name, and where its data is."""

    shard: int
    name: str
    offset: int
    size: int


class RemoteShards:
    """Shards below `root`, and where there is one, the cache that holds them. May be pickled and forked.

    A read includes the members' headers, which have to be those that the index means. Size and ETag of a shard are
    looked at once in each process, where the store lists them, and again when a read fails: they have to be what the
    manifest says, and what was seen before.
    """

    def __init__(self, root: Remote, shards: Sequence[Shard], cache: ShardCache | None, hint: str) -> None:
        self.root, self.shards, self.cache, self._hint = root, shards, cache, hint
        self._etags: dict[int, str] = {}
        self._listed: dict[str, dict[str, Facts]] = {}
        self._looked: tuple[int, set[int]] = os.getpid(), set()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_listed": {}, "_looked": (-1, set())}

    def read(self, members: Sequence[Member]) -> list[bytes]:
        """The data of members, in that order. Raises VlmixError for a shard that is missing or was changed."""
        found: dict[Member, bytes] = {}
        by_shard: dict[int, list[Member]] = defaultdict(list)
        for member in members:
            by_shard[member.shard].append(member)
        for number, inside in by_shard.items() if self.cache else ():
            found |= zip(inside, self._cached(number, inside))
        left = [member for member in members if member not in found]
        for number in dict.fromkeys(member.shard for member in left):
            self._look(number)
        try:
            ranges = [Range(self._where(each.shard), each.offset - BLOCK, each.size + BLOCK) for each in left]
            found |= zip(left, read_ranges(ranges))
        except VlmixError:
            self._look_anew(left)
            raise
        except FileNotFoundError as error:
            self._look_anew(left)
            raise VlmixError(f"{error.filename} is missing, though the store lists it; {self._hint}") from None
        for member in left:
            if not heads(found[member], member.name, member.size):
                self._look_anew([member])
                name = self._where(member.shard).name
                what = f"{name} was changed since the index was made: {member.name} is elsewhere"
                raise VlmixError(f"{what}; {self._hint}")
        return [found[member][BLOCK:] for member in members]

    def _cached(self, number: int, members: Sequence[Member]) -> list[bytes]:
        """The members with their headers, or nothing where the shard is not in the cache, which is told."""
        assert self.cache is not None
        shard = self.shards[number]
        found = self.cache.read(
            shard.sha256, shard.bytes, [(each.offset - BLOCK, each.size + BLOCK) for each in members]
        )
        if found is None:
            self.cache.want(shard.sha256, self._where(number), shard.bytes)
        return found or []

    def _where(self, number: int) -> Remote:
        return self.root.join(self.shards[number].path)

    def _look_anew(self, members: Sequence[Member]) -> None:
        """What went wrong may be that a shard was changed. Raises VlmixError where it was."""
        self._listed, self._looked = {}, (os.getpid(), set())
        for number in dict.fromkeys(member.shard for member in members):
            self._look(number, closely=True)

    def _look(self, number: int, closely: bool = False) -> None:
        """Look at a shard for the first time in this process: at the list of its folder, which is one request for all
        of them. Where the store does not list, no request is made for each shard, unless `closely`."""
        if self._looked[0] != os.getpid():
            self._listed, self._looked = {}, (os.getpid(), set())
        if number in self._looked[1]:
            return
        shard, where = self.shards[number], self._where(number)
        folder, _, name = shard.path.rpartition("/")
        if folder not in self._listed:
            self._listed[folder] = self.root.join(folder).listed()
        facts = self._listed[folder].get(name)
        if facts is None and (self._listed[folder] or closely):
            try:
                facts = where.facts()
            except FileNotFoundError:
                raise VlmixError(f"{where.name} is missing; {self._hint}") from None
        if facts and facts.size != shard.bytes:
            raise VlmixError(
                f"{where.name} has {facts.size} bytes, the manifest says {shard.bytes}: it was truncated or changed "
                f"since the index was made; {self._hint}"
            )
        if facts and self._etags.setdefault(number, facts.etag) != facts.etag:
            raise VlmixError(f"{where.name} was changed while it was read: its ETag is another one; {self._hint}")
        self._looked[1].add(number)
