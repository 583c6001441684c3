"""Which of the picked samples have images that can be used: their images are examined, or copied out of containers."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from vlmix.mixture.build.candidates import taken
from vlmix.mixture.build.copies import CopyJob, copy_images, copy_jobs
from vlmix.mixture.build.extract import CandidateReader
from vlmix.mixture.build.facts import FACTS, Facts, FactsFile, Journal, Problems, pack, path_key, unpack
from vlmix.mixture.build.plan import Prepared
from vlmix.mixture.build.shard import ImageFiles, image_fit
from vlmix.mixture.dataset.rejects import RejectRows
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.digests import Stamp, file_digest, stamp
from vlmix.mixture.io.images import MAX_BYTES, TRANSPOSING, UNREADABLE, ImageInfo, probe, probe_bytes
from vlmix.mixture.io.pool import Engine, Progress
from vlmix.mixture.io.storage import Range, Remote, read_ahead
from vlmix.mixture.keyed import Indices

_CHUNK, _TASKS = 256, 20_000  # images of a task, more where there would be more tasks: the parent hands out each
_BLOCK = 1_000_000  # candidates judged at a time


class ProbeJob(Struct, frozen=True):
    """Images to examine, each by the files that may be it; `first` is the number of the first. `full`: they are
    decoded."""

    first: int
    files: list[list[str]]
    stamps: list[list[Stamp | None]]
    """What a store says of each file; None of local ones."""
    full: bool


class Examined:
    """What is known of the images of candidates; `full`: they are decoded, else JPEGs are known by their headers."""

    def __init__(self, prepared: Prepared, work: Path, full: bool) -> None:
        assert prepared.loose is not None, "images are looked up before they are examined"
        self._prepared, self._loose, self.full = prepared, prepared.loose, full
        self.copies = work / "images"
        self._journal = Journal(work / "images.facts")
        (work / "copied.facts").unlink(missing_ok=True)
        self._copied = FactsFile(work / "copied.facts")
        self._rows = np.full(len(self._loose), -1, dtype=np.int32)
        """[K] row of each loose image in the journal; -1: not examined."""
        count = int(prepared.candidates.image_bounds[-1]) if (prepared.candidates.containers >= 0).any() else 0
        self._copied_rows = np.full(count, -1, dtype=np.int32)
        """[M] row of each image out of a container."""
        self.offered = ~prepared.missing
        """[N]: candidates whose images are there, or that need none."""
        self.usable = self.offered.copy()
        """[N]: those of them that may be picked."""
        self._waiting = prepared.candidates.column("num_images") > 0
        """[N]: candidates whose images were not examined."""

    def pick(self, rejects: RejectRows, pool: Engine, progress: Progress) -> Indices:
        """Pick, examine the images of what was picked, replace what cannot be used, until all can: the positions of the
        mixture's samples, ascending. Adds to `rejects`."""
        while True:
            picked = self._prepared.candidates.pick(self.offered, self.usable)
            if not self.examine(picked, rejects, pool, progress):
                return picked

    def examine(self, positions: Indices, rejects: RejectRows, pool: Engine, progress: Progress) -> int:
        """Examine the images of candidates, and take those that cannot be used out of `usable`: for how many candidates
        that had not been done. Adds to `rejects`."""
        candidates = self._prepared.candidates
        fresh = positions[self._waiting[positions]]
        if not len(fresh):
            return 0
        inside = candidates.containers[fresh] >= 0
        self._probe(fresh[~inside], pool, progress)
        self._copy(fresh[inside], pool, progress)
        self._waiting[fresh] = False
        for start in range(0, len(fresh), _BLOCK):
            self._judge(fresh[start : start + _BLOCK], rejects)
        return len(fresh)

    def facts(self, images: Indices) -> Facts:
        """[m] of images by their numbers among all of the candidates'."""
        numbers = self._loose.numbers[images]
        facts = np.empty(len(images), FACTS)
        mine = numbers >= 0
        facts[mine] = self._journal[self._rows[numbers[mine]]]
        facts[~mine] = self._copied[self._copied_rows[images[~mine]]]
        return facts

    def distinct(self, images: Indices) -> tuple[Indices, Indices]:
        """([k] of examined images the first of each file or content, by its place in `images`, [m] which of them each
        image is)."""
        keys = np.ascontiguousarray(self.facts(images)["digest"]).view("<u8").reshape(-1, 2)
        unread, loose = (keys == 0).all(axis=1), self._loose.numbers[images]
        keys[unread, 0] = np.where(loose >= 0, loose, np.arange(len(images)) + len(self._loose))[unread]
        _, firsts, which = np.unique(keys.view("V16").ravel(), return_index=True, return_inverse=True)
        order = np.argsort(firsts)
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        return firsts[order], place[which]

    def infos(self, images: Indices) -> list[ImageInfo]:
        """What is known of examined images by their numbers, ascending, among all of the candidates'."""
        names = taken(self._prepared.candidates.image_paths, images).to_pylist()
        return self._files(images).infos(0, names)

    def files(self, positions: Indices) -> ImageFiles:
        """The images of candidates that were examined."""
        return self._files(self._prepared.candidates.image_numbers(positions)[0])

    def _files(self, images: Indices) -> ImageFiles:
        numbers, loose = self._loose.numbers[images], self._loose
        inside = numbers < 0
        used, location = np.unique(loose.location[numbers[~inside]], return_inverse=True)
        where, ends = np.full(len(images), -1, dtype=np.int64), np.zeros(len(images), dtype=np.int64)
        where[~inside], ends[~inside] = location, loose.extension[numbers[~inside]]
        return ImageFiles(
            facts=self.facts(images),
            locations=[loose.locations[each] for each in used],
            extensions=loose.extensions,
            location=where,
            extension=ends,
            copies=self.copies,
            full=self.full,
        )

    def _judge(self, fresh: Indices, rejects: RejectRows) -> None:
        """Take those of the candidates `fresh` out of `usable` whose images cannot serve them."""
        candidates = self._prepared.candidates
        images, counts = candidates.image_numbers(fresh)
        facts = self.facts(images)
        owners = np.repeat(np.arange(len(fresh)), counts)
        suspect = np.bincount(owners, facts["problem"], len(fresh)) > 0
        suspect |= candidates.boxed[fresh] & ~(self._same_size(fresh, counts, facts))
        ends = np.cumsum(counts)
        readers: dict[int, CandidateReader] = {}
        for at in np.flatnonzero(suspect).tolist():
            mine = slice(ends[at] - counts[at], ends[at])
            if problem := self._unusable(int(fresh[at]), images[mine], facts[mine], readers):
                self.usable[fresh[at]] = False
                rejects.add(candidates.reject(int(fresh[at]), *problem))

    def _same_size(self, fresh: Indices, counts: Indices, facts: Facts) -> np.ndarray:
        """[n] whether a candidate has one image, of the size that its boxes were made on."""
        candidates = self._prepared.candidates
        first = facts[np.cumsum(counts) - counts]
        width, height = candidates.column("width")[fresh], candidates.column("height")[fresh]
        turned = np.isin(first["orientation"], TRANSPOSING)
        raw = (first["width"] == width) & (first["height"] == height)
        upright = turned & (first["width"] == height) & (first["height"] == width)
        return np.asarray((counts == 1) & (raw | upright))

    def _unusable(
        self, position: int, images: Indices, facts: Facts, readers: dict[int, CandidateReader]
    ) -> tuple[int, str, str] | None:
        """The first of a candidate's images that cannot be used, and why: (number, code, detail); None if all can."""
        candidates = self._prepared.candidates
        for number in np.flatnonzero(facts["problem"]).tolist()[:1]:
            image = int(images[number])
            loose = int(self._loose.numbers[image])
            problems = (
                self._journal.problems[self._rows[loose]]
                if loose >= 0
                else self._copied.problems[self._copied_rows[image]]
            )
            return number, problems[0], f"{problems[1]} ({self._file_name(position, number, loose)})"
        parts, rows = candidates.locate(np.array([position]))
        part = int(parts[0])
        if part not in readers:
            readers[part] = CandidateReader(candidates.parts[part])
        conversation = readers[part][int(rows[0])]
        for number, info in enumerate(unpack(facts, [""] * len(facts), [""] * len(facts))):
            if image_fit(conversation, number, info) is None:
                ref = conversation.images[number]
                detail = f"the file is {info.width}x{info.height}, the boxes were made on {ref.width}x{ref.height}"
                return number, "image_size", detail
        return None

    def _file_name(self, position: int, number: int, loose: int) -> str:
        candidates = self._prepared.candidates
        if loose >= 0:
            return Path(self._loose.file(loose)).name
        name = candidates.names[int(candidates.entries(np.array([position]))[0])]
        container = self._prepared.converted[name].containers[int(candidates.containers[position])]
        place = candidates.table["at"][position].as_py()
        return f"{Path(container.path).name}#{place}" + (f".{number}" if number else "")

    def _copy(self, fresh: Indices, pool: Engine, progress: Progress) -> None:
        """Copy and examine the images of candidates whose images lie in containers."""
        if not len(fresh):
            return
        self.copies.mkdir(exist_ok=True)
        waiting: dict[int, Indices] = {}

        def jobs() -> Iterator[CopyJob]:
            for job, mine in copy_jobs(self._prepared, fresh, self.copies, self.full):
                waiting[job.number] = mine
                yield job

        done = 0
        progress("copying images", 0, len(fresh))
        for job, (rows, problems) in pool.map(copy_images, jobs()):
            mine = waiting.pop(job.number)
            self._copied_rows[self._prepared.candidates.image_numbers(mine)[0]] = self._copied.append(rows, problems)
            done += len(mine)
            progress("copying images", done, len(fresh))

    def _probe(self, fresh: Indices, pool: Engine, progress: Progress) -> None:
        """Examine the files of candidates' images: of those that may be an image, the first that is sound counts, else
        the first."""
        loose = self._loose
        numbers = self._unknown(np.unique(loose.numbers[self._prepared.candidates.image_numbers(fresh)[0]]))
        for block, paths in loose.paths(numbers):
            self._recall(block, paths)
        numbers_left = self._unknown(numbers)
        likeliest = (
            (number, {path: stamp})
            for block, paths in loose.paths(numbers_left)
            for number, path, stamp in zip(block.tolist(), paths, loose.stamps(block, paths))
        )
        self._probe_files(likeliest, len(numbers_left), pool, progress)
        problems = self._journal.problems
        doubtful = numbers[loose.several[numbers]].tolist()
        bad = [number for number in doubtful if int(self._rows[number]) in problems]
        others = [(number, files) for number in bad if (files := dict(list(loose.every(number).items())[1:]))]
        self._probe_files(iter(others), len(others), pool, progress)

    def _unknown(self, numbers: Indices) -> Indices:
        return numbers[self._rows[numbers] < 0]

    def _recall(self, numbers: Indices, paths: Sequence[str]) -> None:
        """Take what the journal says of files that have not changed since."""
        journal = self._journal
        rows = journal.find([path_key(path, self.full) for path in paths])
        known = [at for at, row in enumerate(rows) if row >= 0]
        facts = journal[np.array([rows[at] for at in known], dtype=np.int64)]
        listed = self._loose.stamps(numbers, paths)
        for at, fact in zip(known, facts):
            path, row, now = Path(paths[at]), rows[at], listed[at]
            try:
                if now is not None:
                    row = row if now.inode and now == stamp_of(fact) else -1
                elif (now := stamp(path)) != stamp_of(fact):
                    row = self._renewed(path, now, fact, row)
            except OSError:
                row = -1
            self._rows[numbers[at]] = row

    def _renewed(self, path: Path, now: Stamp, fact: np.void, row: int) -> int:
        """The row of a file of other times, a new one if its bytes are the same; -1 if they are not."""
        info = unpack(fact.reshape(1), [str(path)], [""])[0]
        if not info.digest or now.size != info.bytes or file_digest(path) != info.digest:
            return -1
        problem, detail = self._journal.problems.get(row, ("", ""))
        info = msgspec.structs.replace(info, stamp=now, problem=problem, detail=detail)
        return int(self._journal.append(*pack([info], [bytes(fact["key"])]))[0])

    def _probe_files(
        self, files: Iterator[tuple[int, dict[str, Stamp | None]]], total: int, pool: Engine, progress: Progress
    ) -> None:
        """Examine the files of loose images, up to the first sound one of each."""
        waiting: dict[int, list[int]] = {}

        def jobs() -> Iterator[ProbeJob]:
            size = max(_CHUNK, -(-total // _TASKS))
            for chunk in iter(lambda: list(islice(files, size)), []):
                waiting[chunk[0][0]] = [number for number, _ in chunk]
                listed = [list(tried.values()) for _, tried in chunk]
                yield ProbeJob(chunk[0][0], [list(tried) for _, tried in chunk], listed, self.full)

        done = 0
        progress("checking images", 0, total)
        for job, (rows, problems, tried) in pool.map(probe_files, jobs()):
            numbers = waiting.pop(job.first)
            check_unreadable([path for paths, count in zip(job.files, tried) for path in paths[:count]], problems)
            new = self._journal.append(rows, problems)
            lasts = np.cumsum(tried) - 1
            found = zip(numbers, new[lasts].tolist(), tried, job.files, job.stamps)
            for number, row, count, paths, listed in found:
                if self._rows[number] < 0:
                    self._rows[number] = row
                elif row not in self._journal.problems:
                    self._rows[number] = row
                    self._loose.choose(number, paths[count - 1], listed[count - 1])
            done += len(numbers)
            progress("checking images", done, total)


def stamp_of(fact: np.void) -> Stamp:
    """The sign that a file of these facts has not changed."""
    return Stamp(*(int(fact[name]) for name in ("bytes", "mtime_ns", "ctime_ns", "inode")))


def check_unreadable(paths: Sequence[str], problems: Problems) -> None:
    """What a worker cannot read, this process must not be able to: else it would depend on the worker what is
    rejected. `problems` by the place in `paths`. Raises VlmixError for the first such."""
    for row, (problem, detail) in problems.items():
        if problem == UNREADABLE and probe(paths[row], full=False).problem != UNREADABLE:
            raise VlmixError(
                f"{paths[row]}: a worker could not read it ({detail}), the machine of the command can; check that "
                "every node has it at this path, and run the same command again"
            )


def probe_files(job: ProbeJob) -> tuple[bytes, Problems, list[int]]:
    """The facts (`facts.pack`) of all files that were tried, and how many each image took. Runs in a worker."""
    infos, tried = list[ImageInfo](), []
    likeliest = _fetched([(paths[0], stamps[0]) for paths, stamps in zip(job.files, job.stamps)])
    for paths, stamps in zip(job.files, job.stamps):
        before = len(infos)
        for number, (path, listed) in enumerate(zip(paths, stamps)):
            if listed is None:
                infos.append(probe(path, full=job.full))
            else:
                data = next(_fetched([(path, listed)]) if number else likeliest)
                infos.append(probe_bytes(data, ImageInfo(path=path, bytes=listed.size, stamp=listed), full=job.full))
            if not infos[-1].problem:
                break
        tried.append(len(infos) - before)
    return *pack(infos, [path_key(info.path, job.full) for info in infos]), tried


def _fetched(files: Iterable[tuple[str, Stamp | None]]) -> Iterator[bytes]:
    """The bytes of those files that are in a store, none of one that is too large. Raises VlmixError for one that is
    not what the store listed."""
    sizes = ((path, stamp.size if stamp.size <= MAX_BYTES else 0) for path, stamp in files if stamp is not None)
    try:
        yield from read_ahead(Range(Remote(path), 0, size, last=True) for path, size in sizes)
    except FileNotFoundError as error:
        raise VlmixError(f"{error.filename} changed during the build: it is gone; run the same command again") from None
