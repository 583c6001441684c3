"""What an official file names twice: kept once where both say the same, dropped where they do not."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

from vlmix.mixture.build.source import Rejects
from vlmix.mixture.io.official import RepeatedKey

R = TypeVar("R")
K = TypeVar("K", bound=Hashable)


def unique(
    records: Sequence[R],
    key: Callable[[R], K],
    reject: Rejects,
    name: Callable[[R], str],
    what: str,
    same: Callable[[R], Any] = lambda record: record,
) -> dict[K, R]:
    """The records by their key, in file order.

    Where several have one key and agree in `same`, the first is kept and the others are rejected as `duplicate_{what}`;
    where they differ, nobody can say which is right, and all are rejected as `conflicting_duplicate`. `name` gives the
    id that a reject goes under.
    """
    found = {key(record): record for record in records}
    if len(found) == len(records):
        return found
    groups: dict[K, list[R]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    for number, group in groups.items():
        if len(group) == 1:
            continue
        agree = all(same(record) == same(group[0]) for record in group[1:])
        reason = f"duplicate_{what}" if agree else "conflicting_duplicate"
        detail = f"{what} {number} is in the file {len(group)} times, " + (
            "the same each time" if agree else "different"
        )
        for record in group[agree:]:
            reject(name(record), reason, detail)
        if agree:
            found[number] = group[0]
        else:
            del found[number]
    return {number: found[number] for number in groups if number in found}


def reject_repeated(keys: Iterable[RepeatedKey], source: str, what: str, reject: Rejects) -> None:
    """Rejects for the keys that a JSON object holds more than once: one for each of their values that is not used."""
    for repeated in keys:
        reason = f"duplicate_{what}" if repeated.agree else "conflicting_duplicate"
        how = "the same each time" if repeated.agree else "different"
        for _ in range(repeated.count - repeated.agree):
            detail = f"{what} {repeated.key} is in the file {repeated.count} times, {how}"
            reject(f"{source}/{repeated.key}", reason, detail)
