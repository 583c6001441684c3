"""Damaged input of every kind: an error that a user can act on, or a right result; no other exception, no hang, no
record lost without a reject.

VLMIX_FUZZ_SECONDS is the time for each kind (`make fuzz`: two minutes), VLMIX_FUZZ_SEED the seed, which a failure
prints.
"""

import json
import os
import random
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

import vlmix
from tests.builders import tables
from vlmix.builders import benchmark_named, known_sources
from vlmix.builders.benchmarks.llava_bench import wild_scores
from vlmix.mixture.benchmark.judge import Endpoint, JudgeRequest, judge
from vlmix.mixture.build.build import build
from vlmix.mixture.build.recipe import load, parse
from vlmix.mixture.dataset.verify import verify
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.images import probe

SECONDS = float(os.environ.get("VLMIX_FUZZ_SECONDS", "4"))
SEED = int(os.environ.get("VLMIX_FUZZ_SEED", "0"))
SLOWEST = 30.0
"""Seconds after which one damaged input counts as a hang."""
HOSTILE = [
    b"null",
    b"[]",
    b"{}",
    b"-1",
    b"1e400",
    b"NaN",
    b'""',
    b"true",
    b"99999999999999999999",
    b'"\\ud800"',
    b"\xff",
    b"\x00",
    b"[" * 3000,
    b'"' + b"x" * 3000 + b'"',
    b'{"a":' * 500,
    b"\xe2\x80\xae",
    b"0.0",
    b"\n",
    b",",
]


class Damage:
    """A stream of damages to bytes, the same for a seed."""

    def __init__(self, name: str) -> None:
        self.rng = random.Random(f"{SEED} {name}")
        self.number = 0
        self._name, self._end = name, time.monotonic() + SECONDS

    def rounds(self) -> Iterator[int]:
        """Numbers until the time is over, at least three; checks that none takes too long."""
        while self.number < 3 or time.monotonic() < self._end:
            started = time.monotonic()
            self.number += 1
            print(f"VLMIX_FUZZ_SEED={SEED}, {self._name}, round {self.number}")
            yield self.number
            assert time.monotonic() - started < SLOWEST, "hangs"

    def __call__(self, data: bytes) -> bytes:
        for _ in range(self.rng.choice((1, 1, 1, 2, 5))):
            data = self._once(data)
        return data

    def _once(self, data: bytes) -> bytes:
        at, other = sorted((self.rng.randrange(len(data) + 1), self.rng.randrange(len(data) + 1)))
        match self.rng.randrange(7):
            case 0:
                return data[:at]
            case 1:
                return data[:at] + data[other:]
            case 2:
                return data[:other] + data[at:]
            case 3:
                return data[:at] + self.rng.randbytes(self.rng.randrange(1, 9)) + data[at:]
            case 4 if data:
                at = min(at, len(data) - 1)
                return data[:at] + bytes([data[at] ^ 1 << self.rng.randrange(8)]) + data[at + 1 :]
            case 5:
                return data[:at] + self.rng.choice(HOSTILE) + data[at:]
            case _:
                return self._token(data)

    def _token(self, data: bytes) -> bytes:
        """A value of JSON or YAML replaced by another."""
        starts = [at for at, byte in enumerate(data[:200_000]) if byte in b":,["] or [0]
        at = self.rng.choice(starts) + 1
        ends = [end for mark in (b",", b"}", b"]", b"\n") if (end := data.find(mark, at)) >= 0]
        return data[:at] + self.rng.choice(HOSTILE) + data[min(ends, default=len(data)) :]


def tried(work: Callable[[], Any]) -> Any:
    """The result, or the VlmixError in place of it. Everything else is what the fuzzing is after."""
    try:
        return work()
    except VlmixError as error:
        assert str(error).strip() and len(str(error)) < 5000
        return error


def files_of(folder: Path, *endings: str) -> list[Path]:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name.endswith(endings)]
    assert found
    return found


@pytest.mark.parametrize("name", sorted(set(known_sources()) - {"llava_json", "rows"}))
def test_official_files(name: str, raw: Path, tmp_path: Path) -> None:
    """No record is lost: what was offered and not rejected is in the mixture."""
    folder = tmp_path / "raw"
    shutil.copytree(raw / name, folder / name)
    places = files_of(folder / name, ".json", ".p", ".jsonl")
    recipe = parse({"name": "x", "sources": {name: {}}}, known_sources())
    damage = Damage(name)
    damage._end = time.monotonic() + SECONDS / 4  # there are many sources
    for number in damage.rounds():
        place = damage.rng.choice(places)
        sound = place.read_bytes()
        place.write_bytes(damage(sound))
        out = tmp_path / str(number)
        made = tried(lambda out=out: build(recipe, known_sources(), folder, out, annotations_only=True))
        if not isinstance(made, VlmixError):
            assert made.samples == len(pl.read_parquet(out / "samples.parquet")) == len(vlmix.open(out)) > 0
            rejects = Counter(pl.read_parquet(out / "rejects.parquet")["reason"].to_list())
            assert sum(sum(reasons.values()) for reasons in made.rejects.values()) == rejects.total()
            assert verify(out).problems == []
        place.write_bytes(sound)
        for path in tmp_path.glob(f"{number}*"):
            shutil.rmtree(path)


@pytest.mark.parametrize("name", ["docs", "rows.arrow", "questions.csv", "choices.jsonl", "shard.tar"])
def test_tables_of_rows(name: str, tmp_path: Path) -> None:
    """A damaged table is an error or a sound mixture, its images too."""
    raw = tmp_path / "raw"
    tables.write_texts(raw / "docs", 6, 1, group=2)
    tables.write_saved(tmp_path / "saved", 4)
    shutil.copy(next((tmp_path / "saved").glob("*.arrow")), raw / "rows.arrow")
    tables.write_csv(raw)
    tables.write_jsonl(raw / "choices.jsonl")
    tables.write_tar(raw / "shard.tar", 3)
    renamed = {"columns": {"row_width": "width"}} if name == "questions.csv" else {}
    recipe = parse({"name": "x", "sources": {"own": {"builder": "rows", "path": name, **renamed}}}, known_sources())
    place = next(path for path in sorted((raw / name).rglob("*") if name == "docs" else [raw / name]))
    damage = Damage(name)
    damage._end = time.monotonic() + SECONDS / 4
    sound = place.read_bytes()
    for number in damage.rounds():
        place.write_bytes(damage(sound))
        out = tmp_path / str(number)
        made = tried(lambda out=out: build(recipe, known_sources(), raw, out))
        if not isinstance(made, VlmixError):
            assert verify(out).problems == []
        for path in tmp_path.glob(f"{number}*"):
            shutil.rmtree(path)


def test_own_rows(tmp_path: Path) -> None:
    """Each row of a list that is still JSON becomes a sample or a reject."""
    rows = [
        {"id": number, "conversations": [{"from": "human", "value": f"q {number}"}, {"from": "gpt", "value": "a"}]}
        for number in range(12)
    ]
    folder = tmp_path / "raw/llava_json"
    folder.mkdir(parents=True)
    recipe = parse({"name": "x", "sources": {"llava_json": {"path": "x.json"}}}, known_sources())
    damage = Damage("rows")
    for number in damage.rounds():
        texts = [json.dumps(row).encode() for row in rows]
        at = damage.rng.randrange(len(texts))
        texts[at] = damage(texts[at])
        (folder / "x.json").write_bytes(b"[" + b",\n".join(texts) + b"]")
        out = tmp_path / str(number)
        made = tried(lambda out=out: build(recipe, known_sources(), tmp_path / "raw", out, annotations_only=True))
        with suppress(ValueError, RecursionError):
            whole = json.loads((folder / "x.json").read_bytes())
            if not isinstance(made, VlmixError) and all(isinstance(row, dict) for row in whole):
                dropped = pl.read_parquet(out / "rejects.parquet").filter(pl.col("reason") != "lone_surrogate")
                assert made.samples + len(dropped) == len(whole)
        for path in tmp_path.glob(f"{number}*"):
            shutil.rmtree(path)


def test_mixtures(mixture: Path, tmp_path: Path) -> None:
    """Whatever is damaged, verify says so, and reading gives a sample or an error."""
    folder = tmp_path / "mix"
    vlmix.open(mixture).subset(total=60).save(tmp_path / "view")
    shutil.copytree(mixture, folder)
    damage = Damage("mixtures")
    places = files_of(folder, "")
    for _ in damage.rounds():
        place = damage.rng.choice(places)
        sound = place.read_bytes()
        place.write_bytes(damage(sound))
        if place.read_bytes() != sound:
            report = tried(lambda: verify(folder))
            assert isinstance(report, VlmixError) or report.problems, place
        opened = tried(lambda: vlmix.open(folder))
        if not isinstance(opened, VlmixError):
            for position in damage.rng.sample(range(840), 20):
                tried(lambda opened=opened, position=position: opened[position])
            tried(lambda opened=opened: len(opened.subset(ratio=0.1, where="num_words > 3")))
        place.write_bytes(sound)
    assert verify(folder).problems == []


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv", ".txt", ".parquet"])
def test_selection_files(ending: str, mixture: Path, tmp_path: Path) -> None:
    opened = vlmix.open(mixture)
    ids = opened.column("id").to_pylist()[::7]
    frame = pl.DataFrame({"id": ids, "score": [0.5 * number for number in range(len(ids))]})
    path = tmp_path / f"scores{ending}"
    match ending:
        case ".json":
            path.write_text(json.dumps(frame.to_dicts()))
        case ".jsonl":
            frame.write_ndjson(path)
        case ".csv":
            frame.write_csv(path)
        case ".txt":
            path.write_text("\n".join(ids))
        case _:
            frame.write_parquet(path)
    sound = path.read_bytes()
    damage = Damage(ending)
    damage._end = time.monotonic() + SECONDS / 3
    for _ in damage.rounds():
        path.write_bytes(damage(sound))
        found = tried(lambda: opened.subset(by=path, total=5, stratify=damage.rng.random() < 0.5))
        assert isinstance(found, VlmixError) or len(found) == 5


def test_recipes(recipes: Path, tmp_path: Path) -> None:
    from vlmix.train.config import load as load_training
    from vlmix.train.sweep.recipe import load as load_sweep

    damage = Damage("recipes")
    places = files_of(recipes, ".yaml")
    loaders: list[Callable[[Path], Any]] = [
        lambda path: load(path, known_sources()),
        load_training,
        lambda path: load_sweep(path, benchmark_named),
    ]
    for _ in damage.rounds():
        place = damage.rng.choice(places)
        path = tmp_path / "x.yaml"
        path.write_bytes(damage(place.read_bytes()))
        for loader in loaders:
            tried(lambda loader=loader, path=path: loader(path))
        keys = [line.split(":")[0].strip() for line in place.read_text().splitlines() if ":" in line]
        change = damage(f"{damage.rng.choice(keys)}.take=1".encode()).decode(errors="replace")
        tried(lambda change=change, place=place: load(place, known_sources(), [change]))


def test_images(raw: Path, tmp_path: Path) -> None:
    damage = Damage("images")
    sound = [path.read_bytes() for path in files_of(raw, ".jpg", ".png", ".gif", ".webp")[:40]]
    path = tmp_path / "x.jpg"
    for _ in damage.rounds():
        path.write_bytes(damage(damage.rng.choice(sound)))
        found = probe(path)
        assert found.problem or (found.width > 0 and found.height > 0)


@pytest.mark.slow
def test_models(mixture: Path, raw: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from tests.train.nano import nano
    from vlmix.train.evaluate.generate import Generator
    from vlmix.train.run import train

    train(nano(mixture=str(mixture), out=str(tmp_path / "run"), max_steps=1))
    folder = tmp_path / "run/model"
    damage = Damage("models")
    for _ in damage.rounds():
        place = damage.rng.choice(files_of(folder, ""))
        sound = place.read_bytes()
        place.write_bytes(damage(sound))
        tried(lambda: Generator(str(tmp_path / "run"), torch.device("cpu")))
        place.write_bytes(sound)
    assert not isinstance(tried(lambda: Generator(str(tmp_path / "run"), torch.device("cpu"))), VlmixError)


def test_judges(tmp_path: Path) -> None:
    """A server that damages what it replies, the status line and the headers too."""
    damage = Damage("judges")
    body = json.dumps({"choices": [{"message": {"content": "8 7\nboth"}}], "model": "m"}).encode()
    reply = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    connection.settimeout(5)
                    connection.recv(65536)
                    connection.sendall(damage(reply))

    threading.Thread(target=serve, daemon=True).start()
    case = JudgeRequest(id="1", category="all", prompt="judge this", failed=(-1.0, -1.0))
    for number in damage.rounds():
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        endpoint = Endpoint(url, "m", workers=1, attempts=2, pause=0.001, timeout=0.5)
        out = tmp_path / f"{number}.jsonl"
        found = tried(lambda out=out, endpoint=endpoint: judge([case], wild_scores, endpoint, out))
        if isinstance(found, VlmixError):
            assert "\n" not in str(found)
        else:
            assert [msgspec.json.decode(line)["question_id"] for line in out.read_bytes().splitlines()] == ["1"]
            assert len(found["1"].tuple) == 2
    listener.close()
