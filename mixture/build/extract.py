"""The first stage: one source's raw files to files of candidates."""

import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Struct
from xxhash import xxh3_64_intdigest

from vlmix.mixture.build.recipe import Entry
from vlmix.mixture.build.source import RawFolder, Rejects, Source, reject_source, same_rows
from vlmix.mixture.build.source_columns import SourceColumns, columns_path
from vlmix.mixture.dataset.manifest import Input
from vlmix.mixture.dataset.rejects import reject_rows
from vlmix.mixture.dataset.schema import REJECTS, Reject
from vlmix.mixture.errors import VlmixError, fault
from vlmix.mixture.io.atomic import atomic_write, write_bytes
from vlmix.mixture.io.digests import Stamp, file_digest, sha256, stamp
from vlmix.mixture.io.json_pieces import Unsplit
from vlmix.mixture.io.rows.containers import Container
from vlmix.mixture.keyed import ORDER, hash_key
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
    }
)
"""One row per conversation that a source offers; `container` and `at` are its `place`, -1 for none."""

KEYS = pa.schema(
    {
        "rank": pa.uint64(),  # hash of the id that decides whether it is picked
        "order": pa.uint64(),  # hash of the id that orders the mixture
        "images": pa.list_(pa.uint64()),  # hash of each image's path
        "boxed": pa.bool_(),  # whether a round has boxes
    }
)
"""What a build computes of each row of CANDIDATES; in a file of its own, as sources may have columns of these names."""

_BATCH = 16_384
_NO_IMAGE = ImageRef("")


class CandidateFiles:
    """The files of a part's candidates: `rows` (Arrow, CANDIDATES), `keys` (Arrow, KEYS), `columns` (what the source
    adds, absent where it has none), `records` (each Conversation in MessagePack, one after the other), `offsets` (where
    they begin and the last one ends, int64), `rejects` (Arrow, REJECTS)."""

    def __init__(self, rows: Path) -> None:
        self.rows = rows
        self.columns = columns_path(rows)
        self.keys, self.records, self.offsets, self.rejects, self.state = (
            rows.with_suffix(f".{name}") for name in ("keys", "records", "offsets", "rejects", "state")
        )

    def digest(self) -> str:
        """xxh3-128 of each file but the rejects."""
        found = (self.rows, self.columns, self.keys, self.records, self.offsets)
        return "".join(file_digest(path) for path in found if path.exists())


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
    origin: str = ""
    """The URL that `raw` is a copy of."""


class Converted(Struct, frozen=True, kw_only=True):
    """What was read: raw files, and how many candidates and rejects."""

    candidates: int
    digest: str
    """Of the files of candidates, which follow from it."""
    inputs: list[Input]
    """The sha256 of a file that another part hashes for all is empty."""
    rejects: dict[str, tuple[int, str]]
    """Reason -> how many, and the first one's detail."""
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
    origin: str = "",
) -> tuple[Iterator[Conversation], RawFolder, Rejects]:
    """The usable conversations of a source, lazily, several of one id among them; with the folder that knows the files
    read, and the rejects that grow while reading."""
    folder = RawFolder(raw, source, part, origin)
    rejects = Rejects(reject_source(source, name))

    def usable() -> Iterator[Conversation]:
        labels = source.name, rejects.source, *source.parts
        for conversation in _guarded(source, lambda: source.read(folder, options, seed, rejects)):
            if mistake := builder_mistake(conversation, labels):
                raise VlmixError(f"builder {source.name}: {conversation.id}: {mistake}")
            problem = defect(conversation, source.verbatim, max_images)
            if problem is not None:
                rejects(conversation.id, *problem, image=conversation.image, record=conversation)
                continue
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


def convert(job: ConvertJob) -> Converted | None:
    """Read a source into the files of `job.out`; a finished earlier run over the same files is taken as it is. None if
    the part cannot be told from the others (`Unsplit`)."""
    files, entry = CandidateFiles(job.out), job.entry
    decides = VERSION, job.name, entry.builder, entry.options, job.seed, job.prompts, job.max_images
    fingerprint = repr((decides, job.part, str(job.raw), job.origin))
    if (earlier := _earlier(job, files, fingerprint)) is not None:
        return earlier
    offered, folder, rejects = conversations(
        job.source, entry.options, job.raw, job.seed, job.name, job.max_images, job.part, job.origin
    )
    try:
        count, reasons = _write_candidates(offered, job, files, rejects)
    except Unsplit:
        return None
    paths = list(dict.fromkeys([*folder.opened, *folder.partly]))
    names = [path.relative_to(job.raw).as_posix() if path.is_relative_to(job.raw) else path.name for path in paths]
    inputs = []
    for name, path in zip(names, paths):
        digest = folder.partly.get(path) or (folder.hashes[path].result() if path in folder.hashes else sha256(path))
        inputs.append(Input(name, path.stat().st_size, digest, partial=path in folder.partly))
    converted = Converted(
        candidates=count,
        digest=files.digest(),
        inputs=inputs,
        rejects=reasons,
        containers=folder.containers,
        image_roots=[str(root) for root in folder.image_roots],
        about=folder.about,
        notes=folder.notes,
        fingerprints=folder.fingerprints,
    )
    state = _State(fingerprint, [(str(path), stamp(path)) for path in paths], converted)
    write_bytes(files.state, msgspec.msgpack.encode(state))
    return converted


def _write_candidates(
    offered: Iterator[Conversation], job: ConvertJob, files: CandidateFiles, rejects: Rejects
) -> tuple[int, dict[str, tuple[int, str]]]:
    """Write all files but the state: (number of candidates, `Converted.rejects`)."""
    columns, offsets, end = SourceColumns(job.name), [np.zeros(1, dtype=np.int64)], 0
    reasons: dict[str, tuple[int, str]] = {}
    rows = _rows(columns.noted(offered), job)
    with ExitStack() as stack:
        opened = {path: stack.enter_context(atomic_write(path)) for path in (files.rows, files.keys, files.rejects)}
        records = stack.enter_context(atomic_write(files.records))
        writers = [
            stack.enter_context(pa.ipc.new_file(file, schema))
            for file, schema in zip(opened.values(), (CANDIDATES, KEYS, REJECTS))
        ]

        def rejected() -> None:
            for reject in rejects.rows:
                number, first = reasons.get(reject.reason, (0, reject.detail))
                reasons[reject.reason] = number + 1, first
            if rejects.rows:
                writers[2].write_batch(reject_rows(rejects.rows))
                rejects.rows.clear()

        rejects.many = rejected  # a million in a row are not kept until the next sample comes
        while True:
            batch = list(islice(rows, _BATCH))
            for values, writer, schema in zip(_split(batch), writers, (CANDIDATES, KEYS)):
                arrays = [pa.array(column, type) for column, type in zip(values, schema.types)]
                writer.write_batch(pa.record_batch(arrays, schema=schema))
            columns.close_batch(len(batch))
            records.writelines(row[2] for row in batch)
            lengths = np.fromiter((len(row[2]) for row in batch), np.int64, len(batch))
            offsets.append(end + np.cumsum(lengths))
            end += int(lengths.sum())
            if len(batch) < _BATCH:
                rejected()
                break
    columns.write(files.columns)
    written = np.concatenate(offsets)
    write_bytes(files.offsets, written.tobytes())
    return len(written) - 1, reasons


def _split(batch: Sequence[tuple[tuple[Any, ...], tuple[Any, ...], bytes]]) -> Iterator[Iterator[tuple[Any, ...]]]:
    """The columns of CANDIDATES and of KEYS."""
    if batch:
        yield zip(*(row[0] for row in batch))
        yield zip(*(row[1] for row in batch))


def merged(name: str, source: Source, raw: Path, parts: Sequence[Converted]) -> Converted:
    """The parts of one entry as one. Raises VlmixError if they have no candidate, or the same rows twice."""
    rejects: dict[str, tuple[int, str]] = {}
    for part in parts:
        for reason, (count, first) in part.rejects.items():
            before, earliest = rejects.get(reason, (0, first))
            rejects[reason] = before + count, earliest
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
        inputs=[one for part in parts for one in part.inputs if one.sha256],
        rejects=rejects,
        containers=[one for part in parts for one in part.containers],
        image_roots=parts[0].image_roots,
        about=parts[0].about,
        notes=[note for part in parts for note in part.notes],
        fingerprints=seen,
    )


def _rows(offered: Iterator[Conversation], job: ConvertJob) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...], bytes]]:
    """The values of a candidate's columns in the order of CANDIDATES and of KEYS, and its record."""
    encode, prompts = msgspec.msgpack.Encoder().encode, job.prompts
    rank, order = hash_key(job.seed), hash_key(job.seed, ORDER)
    for conversation in offered:
        texts = render(conversation, prompts, count_only=True)
        first, place = conversation.images[0] if conversation.images else _NO_IMAGE, conversation.place
        try:
            record = encode(conversation)
        except UnicodeEncodeError:
            raise VlmixError(f"{conversation.id}: a text holds a lone surrogate; the builder must replace it") from None
        images = [image.path for image in conversation.images]
        row = (
            conversation.id,
            conversation.source,
            first.path,
            first.width,
            first.height,
            len(images),
            images,
            -1 if place is None else place.container,
            -1 if place is None else place.at,
            len(conversation.rounds),
            count_words(texts),
            sum(map(len, texts)),
        )
        id = conversation.id.encode()
        boxed = any(qa.boxes for qa in conversation.rounds)
        keys = (
            xxh3_64_intdigest(id, rank),
            xxh3_64_intdigest(id, order),
            [xxh3_64_intdigest(image.encode("utf-8", "surrogatepass")) for image in images],
            boxed,
        )
        yield row, keys, record


def _by_reason(rejects: Mapping[str, tuple[int, str]]) -> str:
    """Reasons by how often they occur, each with its first detail."""
    often = sorted(rejects.items(), key=lambda item: -item[1][0])
    return ", ".join(f"{count:,} {reason} ({first})" for reason, (count, first) in often)


def _earlier(job: ConvertJob, files: CandidateFiles, fingerprint: str) -> Converted | None:
    try:
        state = msgspec.msgpack.decode(files.state.read_bytes(), type=_State)
    except (OSError, ValueError):
        return None
    try:
        if state.fingerprint != fingerprint or files.digest() != state.converted.digest:
            return None
        now = [(path, stamp(Path(path))) for path, _ in state.stamps]
        if now != state.stamps:
            for (path, before), (_, after), held in zip(state.stamps, now, state.converted.inputs):
                # A share does not know the hash of its file: hashing it would tell nothing.
                if after != before and (held.partial or not held.sha256 or sha256(Path(path)) != held.sha256):
                    return None
            write_bytes(files.state, msgspec.msgpack.encode(_State(fingerprint, now, state.converted)))
    except OSError:
        return None
    return state.converted


def repeated_id(source: str, conversation: Conversation) -> Reject:
    """The reject of a conversation whose id an earlier one has."""
    rejects = Rejects(source)
    detail = "another conversation of the source has this id"
    rejects(conversation.id, "duplicate_id", detail, image=conversation.image, record=conversation)
    return rejects.rows[0]


class CandidateReader:
    """Random access to the records of a part's candidates, mapped."""

    def __init__(self, path: Path) -> None:
        files = CandidateFiles(path)
        # A plain array: each slice of a memmap takes a microsecond more.
        self._offsets = np.asarray(np.memmap(files.offsets, np.int64, "r"))
        self._records = _mapped(files.records) if len(self) else memoryview(b"")
        self._decoder = msgspec.msgpack.Decoder(Conversation)

    def __getitem__(self, row: int) -> Conversation:
        start, end = self._offsets[row : row + 2].tolist()
        return self._decoder.decode(self._records[start:end])

    def __len__(self) -> int:
        return len(self._offsets) - 1


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def read_rows(path: Path) -> pa.Table:
    """The rows of a part's candidates, mapped, with the columns that their source adds."""
    files = CandidateFiles(path)
    table = arrow_file(files.rows)
    if files.columns.exists():
        for field, column in zip((added := arrow_file(files.columns)).schema, added.columns):
            table = table.append_column(field, column)
    return table


def arrow_file(path: Path) -> pa.Table:
    """An Arrow file, mapped."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
