"""The first stage: one source's raw files to an Arrow file of candidates."""

import gc
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
from msgspec import Struct

from vlmix.mixture.build.recipe import Entry
from vlmix.mixture.build.source import RawFolder, Rejects, Source, same_rows
from vlmix.mixture.build.source_columns import SourceColumns, columns_path
from vlmix.mixture.dataset.manifest import Input
from vlmix.mixture.dataset.schema import Reject
from vlmix.mixture.errors import VlmixError, fault
from vlmix.mixture.io.atomic import atomic_write, write_bytes
from vlmix.mixture.io.digests import Stamp, file_digest, sha256, stamp
from vlmix.mixture.io.rows.containers import Container
from vlmix.mixture.record import MAX_IMAGES, Conversation, ImageRef, builder_mistake, defect
from vlmix.mixture.render import StyleName, count_words, render
from vlmix.mixture.version import VERSION

CANDIDATES = pa.schema(
    {
        "id": pa.string(),
        "source": pa.string(),
        "image": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "num_images": pa.int32(),
        "images": pa.list_(pa.string()),
        "container": pa.int32(),
        "at": pa.int64(),
        "num_rounds": pa.int32(),
        "num_words": pa.int32(),
        "characters": pa.int32(),
        "record": pa.binary(),
    }
)
"""One row per conversation that a source offers; `container` and `at` are its `place`, -1 for none; `record` is the
Conversation in MessagePack."""

SUMMARY = [name for name in CANDIDATES.names if name != "record"]
_BATCH = 4096
_NO_IMAGE = ImageRef("")


class ConvertJob(Struct, frozen=True):
    """What to read, and the file to write the candidates to."""

    name: str
    entry: Entry
    source: Source
    raw: Path
    seed: int
    prompts: StyleName
    max_images: int
    part: Any
    """One of those that `Source.split` gives."""
    out: Path


class Converted(Struct, frozen=True, kw_only=True):
    """What was read: raw files, rejects, and the number of candidates in `ConvertJob.out`."""

    candidates: int
    digest: str
    """xxh3-128 of the file, and of that with the columns that the source adds."""
    inputs: list[Input]
    rejects: list[Reject]
    containers: list[Container]
    image_roots: list[str]
    about: list[str]
    """How the user's own files are read."""
    notes: list[str]
    """What the user should know though nothing was dropped."""
    fingerprints: dict[str, str]
    """What is the same for two files of the same rows -> the file."""


class _State(Struct, frozen=True):
    fingerprint: str
    stamps: list[tuple[str, Stamp]]
    converted: Converted


def conversations(
    source: Source,
    options: Any,
    raw: Path,
    seed: int = 0,
    name: str | None = None,
    max_images: int = MAX_IMAGES,
    part: Any = None,
) -> tuple[Iterator[Conversation], RawFolder, Rejects]:
    """The usable conversations of a source, lazily; with the folder that knows the files read, and the rejects that
    grow while reading."""
    folder = RawFolder(raw, source, part)
    # A collection's unrecognised rows are called after the recipe's entry, a dataset's always after the dataset.
    rejects = Rejects(name if name and source.own else source.name)

    def usable() -> Iterator[Conversation]:
        seen: set[str] = set()
        labels = source.name, rejects.source, *source.parts
        for conversation in _guarded(source, lambda: source.read(folder, options, seed, rejects)):
            if mistake := builder_mistake(conversation, labels):
                raise VlmixError(f"builder {source.name}: {conversation.id}: {mistake}")
            problem = defect(conversation, source.verbatim, max_images)
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


def _guarded(source: Source, read: Callable[[], Iterator[Conversation]]) -> Iterator[Conversation]:
    """What a builder reads; a mistake in its code is an error that names its line."""
    count = 0
    try:
        for conversation in read():
            yield conversation
            count += 1
    except (VlmixError, MemoryError):
        raise
    except Exception as error:
        code = getattr(source.read, "__code__", None)
        where = fault(error, code and code.co_filename)
        raise VlmixError(f"builder {source.name}: {where}, after {count:,} conversations") from error


def convert(job: ConvertJob) -> Converted:
    """Read a source into `job.out`; a finished earlier run over the same files is taken as it is."""
    state_path = job.out.with_suffix(".state")
    entry = job.entry
    decides = VERSION, job.name, entry.builder, entry.options, job.seed, job.prompts, job.max_images
    fingerprint = repr((decides, job.part, str(job.raw)))
    if (earlier := _earlier(job, state_path, fingerprint)) is not None:
        return earlier
    offered, folder, rejects = conversations(
        job.source, entry.options, job.raw, job.seed, job.name, job.max_images, job.part
    )
    count, columns = 0, SourceColumns(job.name)
    rows = _rows(columns.noted(offered), job.prompts)
    with _no_collection(), atomic_write(job.out) as file, pa.ipc.new_file(file, CANDIDATES) as writer:
        while batch := list(islice(rows, _BATCH)):
            arrays = [pa.array(column, type) for column, type in zip(zip(*batch), CANDIDATES.types)]
            writer.write_batch(pa.record_batch(arrays, schema=CANDIDATES))
            columns.close_batch(len(batch))
            count += len(batch)
    columns.write(columns_path(job.out))
    paths = list(dict.fromkeys([*folder.opened, *folder.partly]))
    names = [path.relative_to(job.raw).as_posix() if path.is_relative_to(job.raw) else path.name for path in paths]
    inputs = []
    for name, path in zip(names, paths):
        digest = folder.partly.get(path) or (folder.hashes[path].result() if path in folder.hashes else sha256(path))
        inputs.append(Input(name, path.stat().st_size, digest, partial=path in folder.partly))
    converted = Converted(
        candidates=count,
        digest=_digest(job.out),
        inputs=inputs,
        rejects=rejects.rows,
        containers=folder.containers,
        image_roots=[str(root) for root in folder.image_roots],
        about=folder.about,
        notes=folder.notes,
        fingerprints=folder.fingerprints,
    )
    state = _State(fingerprint, [(str(path), stamp(path)) for path in paths], converted)
    write_bytes(state_path, msgspec.msgpack.encode(state))
    return converted


def merged(name: str, source: Source, raw: Path, parts: Sequence[Converted]) -> Converted:
    """The parts of one entry as one. Raises VlmixError if they have no candidate, or the same rows twice."""
    rejects = [reject for part in parts for reject in part.rejects]
    if not any(part.candidates for part in parts):
        why = f"; rejected: {_by_reason(rejects)}" if rejects else ""
        raise VlmixError(f"{name}: {RawFolder(raw, source).folder} gave no usable conversation{why}")
    seen: dict[str, str] = {}
    for part in parts:
        for fingerprint, path in part.fingerprints.items():
            if (twin := seen.setdefault(fingerprint, path)) != path:
                raise same_rows(path, twin)
    return Converted(
        candidates=sum(part.candidates for part in parts),
        digest="".join(part.digest for part in parts),
        inputs=[one for part in parts for one in part.inputs],
        rejects=rejects,
        containers=[one for part in parts for one in part.containers],
        image_roots=parts[0].image_roots,
        about=parts[0].about,
        notes=[note for part in parts for note in part.notes],
        fingerprints=seen,
    )


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without the search for circles: records have none, and looking for them takes a sixth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _digest(out: Path) -> str:
    return "".join(file_digest(path) for path in (out, columns_path(out)) if path.exists())


def _rows(offered: Iterator[Conversation], prompts: StyleName) -> Iterator[tuple[str | int | bytes | list[str], ...]]:
    """The values of a candidate's columns, in the order of CANDIDATES."""
    encoder = msgspec.msgpack.Encoder()
    for conversation in offered:
        texts = render(conversation, prompts, count_only=True)
        first, place = conversation.images[0] if conversation.images else _NO_IMAGE, conversation.place
        try:
            record = encoder.encode(conversation)
        except UnicodeEncodeError:
            raise VlmixError(f"{conversation.id}: a text holds a lone surrogate; the builder must replace it") from None
        yield (
            conversation.id,
            conversation.source,
            first.path,
            first.width,
            first.height,
            len(conversation.images),
            [image.path for image in conversation.images],
            -1 if place is None else place.container,
            -1 if place is None else place.at,
            len(conversation.rounds),
            count_words(texts),
            sum(map(len, texts)),
            record,
        )


def _by_reason(rejects: list[Reject]) -> str:
    """Reasons by how often they occur, each with its first detail."""
    first = {reject.reason: reject.detail for reject in reversed(rejects)}
    counts = Counter(reject.reason for reject in rejects).most_common()
    return ", ".join(f"{count:,} {reason} ({first[reason]})" for reason, count in counts)


def _earlier(job: ConvertJob, state_path: Path, fingerprint: str) -> Converted | None:
    try:
        state = msgspec.msgpack.decode(state_path.read_bytes(), type=_State)
    except (OSError, ValueError):
        return None
    try:
        if state.fingerprint != fingerprint or _digest(job.out) != state.converted.digest:
            return None
        now = [(path, stamp(Path(path))) for path, _ in state.stamps]
        if now != state.stamps:
            for (path, before), (_, after), held in zip(state.stamps, now, state.converted.inputs):
                if after != before and (held.partial or sha256(Path(path)) != held.sha256):
                    return None
            write_bytes(state_path, msgspec.msgpack.encode(_State(fingerprint, now, state.converted)))
    except OSError:
        return None
    return state.converted


class CandidateReader:
    """Random access to the records of an entry, whose files of candidates follow each other."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._parts = [_Part(path) for path in paths]
        self._starts = list(accumulate((len(part) for part in self._parts), initial=0))

    def __getitem__(self, row: int) -> Conversation:
        part = bisect_right(self._starts, row) - 1
        return self._parts[part][row - self._starts[part]]

    def summaries(self) -> list[pa.Table]:
        """All rows of each file without their records, with the columns that their source adds."""
        return [part.summary() for part in self._parts]


class _Part:
    """A file of candidates, mapped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        self._decoder = msgspec.msgpack.Decoder(Conversation)
        self._columns: dict[int, Any] = {}

    def __getitem__(self, row: int) -> Conversation:
        batch, at = divmod(row, _BATCH)
        if batch not in self._columns:
            self._columns[batch] = self._file.get_batch(batch).column("record")
        return self._decoder.decode(self._columns[batch][at].as_buffer())

    def __len__(self) -> int:
        batches = self._file.num_record_batches
        return (batches - 1) * _BATCH + len(self._file.get_batch(batches - 1)) if batches else 0

    def summary(self) -> pa.Table:
        batches = [self._file.get_batch(i).select(SUMMARY) for i in range(self._file.num_record_batches)]
        table = pa.Table.from_batches(batches, pa.schema([CANDIDATES.field(name) for name in SUMMARY]))
        if columns_path(self._path).exists():
            added = pa.ipc.open_file(pa.memory_map(str(columns_path(self._path)))).read_all()
            for field, column in zip(added.schema, added.columns):
                table = table.append_column(field, column)
        return table
