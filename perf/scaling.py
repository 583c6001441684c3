"""What mixtures of 26 M and 100 M samples take on 1, 8 and 64 nodes, computed from measured costs. Nothing is run.

The costs are those of docs/scaling.md, on the machine that it names: CPU of the parallel work of a sample divided by
the cores, serial work of the parent, and bytes that go through each node's connection to the file system or store.
"""

from common import table

CORES, LINK, PHOTO = 64, 3e9, 100_000  # of a node: cores, bytes/s to and from the store; bytes of a photograph
ROW = 199  # bytes of a sample in the index
SHARD, CHUNK, TASKS = 5_000, 256, 20_000  # samples of a shard, photographs of a task, tasks that examine at most
CONVERT, WRITE, EXAMINE, VERIFY = 171e-6, 299e-6, 2.0e-3, 343e-6  # s of CPU a sample: 470 with shards, less 171 without
SERIAL, FACTS = 11.5e-6, 131  # s and bytes a candidate in the parent
TASK = 2.2e-3  # s that the parent needs to hand out a task on Ray


def main() -> None:
    rows = []
    for samples in (26e6, 100e6):
        for nodes in (1, 8, 64):
            cores = CORES * nodes
            tasks = 0 if nodes == 1 else TASK * (min(samples / CHUNK, TASKS) + samples / SHARD)
            parallel = samples * (CONVERT + WRITE + EXAMINE) / cores
            # A photograph is read when it is examined and when it is written, and sent once.
            moved = 3 * samples * PHOTO / (LINK * nodes)
            serial = samples * SERIAL + tasks
            check = max(samples * VERIFY / cores, samples * PHOTO / (LINK * nodes)) + (tasks and TASK * samples / SHARD)
            # Tasks are handed out while others run; the rest of the serial work is before and after.
            total = max(parallel, moved, tasks) + samples * SERIAL
            share = samples * (CONVERT + WRITE + EXAMINE) / (cores * total)
            times = [_time(each) for each in (parallel, serial, moved, total, check)]
            rows.append([f"{samples / 1e6:.0f} M", str(nodes), *times, f"{share:.0%}"])
    titles = ["samples", "nodes", "parallel", "serial in the parent", "through the connections", "build", "verify"]
    print(table([*titles, "cores in use"], rows))
    for samples in (26e6, 100e6):
        print(
            f"{samples / 1e6:.0f} M: parent {samples * FACTS / 1e9:.1f} GB, shards {samples * PHOTO / 1e12:.1f} TB in "
            f"{samples / SHARD:,.0f}, index {samples * ROW / 1e9:.0f} GB"
        )


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    main()
