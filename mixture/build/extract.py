"""The first stage: one source's raw files to an Arrow file of candidates."""

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
from msgspec import Struct

from vlmix.mixture.build.recipe import Entry
from vlmix.mixture.build.source import RawFolder, Rejects, Source
from vlmix.mixture.dataset.manifest import Input
from vlmix.mixture.dataset.schema import Reject
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import atomic_write
from vlmix.mixture.io.digests import Stamp, file_digest, sha256, stamp
from vlmix.mixture.record import Conversation, builder_mistake, defect
from vlmix.mixture.render import StyleName, count_words, render
from vlmix.mixture.version import VERSION

CANDIDATES = pa.schema(
    {
        "id": pa.string(),
        "source": pa.string(),
        "image": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "num_rounds": pa.int32(),
        "num_words": pa.int32(),
        "characters": pa.int32(),
        "record": pa.binary(),
    }
)
"""One row per conversation that a source offers; `record` is the Conversation in MessagePack."""

SUMMARY = [name for name in CANDIDATES.names if name != "record"]
_BATCH = 4096


class ConvertJob(Struct, frozen=True):
    """What to read, and the file to write the candidates to."""

    name: str
    entry: Entry
    source: Source
    raw: Path
    seed: int
    prompts: StyleName
    out: Path


class Converted(Struct, frozen=True):
    """What was read: raw files, rejects, and the number of candidates in `ConvertJob.out`."""

    candidates: int
    digest: str
    """xxh3-128 of the file."""
    inputs: list[Input]
    rejects: list[Reject]


class _State(Struct, frozen=True):
    fingerprint: str
    stamps: list[tuple[str, Stamp]]
    converted: Converted


def conversations(
    source: Source, options: Any, raw: Path, seed: int = 0, name: str | None = None
) -> tuple[Iterator[Conversation], RawFolder, Rejects]:
    """The usable conversations of a source, lazily; with the folder that knows the files read, and the rejects that
    grow while reading."""
    folder = RawFolder(raw, source)
    # A collection's unrecognised rows are called after the recipe's entry, a dataset's always after the dataset.
    rejects = Rejects(name if name and source.verbatim else source.name)

    def usable() -> Iterator[Conversation]:
        seen: set[str] = set()
        labels = source.name, rejects.source, *source.parts
        for conversation in source.read(folder, options, seed, rejects):
            if mistake := builder_mistake(conversation, labels):
                raise VlmixError(f"builder {source.name}: {conversation.id}: {mistake}")
            problem = defect(conversation, source.verbatim)
            if problem is None and conversation.id in seen:
                problem = "duplicate_id", "another conversation of the source has this id"
            if problem is not None:
                rejects(conversation.id, *problem, image=conversation.image, record=conversation)
                continue
            seen.add(conversation.id)
            yield conversation
        for path, count in folder.mended.items():
            detail = f"{count} halves of surrogate pairs were replaced by U+FFFD; nothing was dropped"
            rejects(path.name, "lone_surrogate", detail)

    return usable(), folder, rejects


def convert(job: ConvertJob) -> Converted:
    """Read a source into `job.out`; a finished earlier run over the same files is taken as it is."""
    state_path = job.out.with_suffix(".state")
    fingerprint = _fingerprint(job)
    if (earlier := _earlier(job, state_path, fingerprint)) is not None:
        return earlier
    offered, folder, rejects = conversations(job.source, job.entry.options, job.raw, job.seed, job.name)
    count = 0
    encoder = msgspec.msgpack.Encoder()
    with atomic_write(job.out) as file, pa.ipc.new_file(file, CANDIDATES) as writer:
        columns: list[list[Any]] = [[] for _ in CANDIDATES]
        for conversation in offered:
            texts = render(conversation, job.prompts, count_only=True)
            row = (
                conversation.id,
                conversation.source,
                conversation.image,
                conversation.width,
                conversation.height,
                len(conversation.rounds),
                count_words(texts),
                sum(map(len, texts)),
                encoder.encode(conversation),
            )
            for column, value in zip(columns, row):
                column.append(value)
            count += 1
            if count % _BATCH == 0:
                _flush(writer, columns)
        _flush(writer, columns)
    if not count:
        why = f"; rejected: {_by_reason(rejects.rows)}" if rejects.rows else ""
        raise VlmixError(f"{job.name}: {folder.folder} gave no usable conversation{why}")
    paths = list(dict.fromkeys(folder.opened))
    inputs = [_input(path, job.raw, folder.hashes) for path in paths]
    converted = Converted(count, file_digest(job.out), inputs, rejects.rows)
    _remember(state_path, _State(fingerprint, [(str(path), stamp(path)) for path in paths], converted))
    return converted


def _remember(path: Path, state: _State) -> None:
    with atomic_write(path) as file:
        file.write(msgspec.msgpack.encode(state))


def _by_reason(rejects: list[Reject]) -> str:
    """Reasons by how often they occur, each with its first detail."""
    first = {reject.reason: reject.detail for reject in reversed(rejects)}
    counts = Counter(reject.reason for reject in rejects).most_common()
    return ", ".join(f"{count:,} {reason} ({first[reason]})" for reason, count in counts)


def _flush(writer: Any, columns: list[list[Any]]) -> None:
    if columns[0]:
        arrays = [pa.array(column, type) for column, type in zip(columns, CANDIDATES.types)]
        writer.write_batch(pa.record_batch(arrays, schema=CANDIDATES))
        for column in columns:
            column.clear()


def _fingerprint(job: ConvertJob) -> str:
    return repr((VERSION, job.name, job.entry.builder, job.entry.options, job.seed, job.prompts, str(job.raw)))


def _earlier(job: ConvertJob, state_path: Path, fingerprint: str) -> Converted | None:
    try:
        state = msgspec.msgpack.decode(state_path.read_bytes(), type=_State)
    except (OSError, ValueError):
        return None
    try:
        if state.fingerprint != fingerprint or file_digest(job.out) != state.converted.digest:
            return None
        now = [(path, stamp(Path(path))) for path, _ in state.stamps]
        if now != state.stamps:
            for (path, was), (_, found), held in zip(state.stamps, now, state.converted.inputs):
                if found != was and sha256(Path(path)) != held.sha256:
                    return None
            _remember(state_path, _State(fingerprint, now, state.converted))
    except OSError:
        return None
    return state.converted


def _input(path: Path, raw: Path, hashes: Mapping[Path, Future[str]]) -> Input:
    name = path.relative_to(raw).as_posix() if path.is_relative_to(raw) else path.name
    digest = hashes[path].result() if path in hashes else sha256(path)
    return Input(name, path.stat().st_size, digest)


class CandidateReader:
    """Random access to the records of a candidates file, mapped."""

    def __init__(self, path: Path) -> None:
        self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        self._decoder = msgspec.msgpack.Decoder(Conversation)
        self._columns: dict[int, Any] = {}

    def __getitem__(self, row: int) -> Conversation:
        batch, at = divmod(row, _BATCH)
        if batch not in self._columns:
            self._columns[batch] = self._file.get_batch(batch).column("record")
        return self._decoder.decode(self._columns[batch][at].as_buffer())

    def summary(self) -> pa.Table:
        """All rows without their records."""
        batches = [self._file.get_batch(i).select(SUMMARY) for i in range(self._file.num_record_batches)]
        return pa.Table.from_batches(batches, pa.schema([CANDIDATES.field(name) for name in SUMMARY]))
