"""Check the exports of mixtures and of models with the peers' own loaders: `make interop`, or
`python interop/run.py [PEER ...]`.

Every peer has an environment of its own, `.interop/<peer>`, made from `requirements-<peer>.txt` and, without their
dependencies, `requirements-<peer>.no-deps.txt`. Environments are kept until those files change, exports until the code
does. A peer that cannot be installed, or whose code cannot be had, is named and is no failure; a check that fails is.
Models are exported by this interpreter, which needs vlmix[train] for it.

On Linux, PyPI's torch brings CUDA; tell pip about PyTorch's index of CPU builds (PIP_EXTRA_INDEX_URL) to do without.
"""

import hashlib
import os
import subprocess
import sys
import time
import venv
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
WORK = ROOT / ".interop"
PEERS = sorted(path.stem.removeprefix("check_") for path in HERE.glob("check_*.py"))
MODEL_PEERS = ("transformers4", "tokenizer437")
"""Those that hold the trainer's models and tokens against their own; the others read exported mixtures."""
SKIPPED = 77
"""Exit code of a check that could not get the peer's code."""


def main(peers: list[str]) -> int:
    if unknown := [peer for peer in peers if peer not in PEERS]:
        sys.exit(f"there is no check of {unknown[0]!r}; known: {', '.join(PEERS)}")
    peers = peers or PEERS
    WORK.mkdir(exist_ok=True)
    if set(peers) - set(MODEL_PEERS):
        rooms = ("mixture", "builders", "recipes", "cli")
        make(["make.py", "several.py"], "made", "the miniature mixtures and their exports", *rooms)
    trains = find_spec("transformers") is not None
    if trains and "transformers4" in peers:
        make(["make_models.py"], "models", "small models and exporting them", "train")
    results = {}
    for peer in peers:
        print(f"== {peer}", flush=True)
        started = time.monotonic()
        if peer in MODEL_PEERS and not trains:
            print("no models to read: vlmix[train] is not installed here", flush=True)
            results[peer] = "not installed"
            continue
        python = environment(peer)
        if python is None:
            results[peer] = "not installed"
            continue
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
        offline["VLMIX_PYTHON"] = sys.executable
        done = subprocess.run([python, HERE / f"check_{peer}.py"], env={**os.environ, **offline})
        outcome = {0: "passed", SKIPPED: "skipped"}.get(done.returncode, "failed")
        results[peer] = f"{outcome} in {time.monotonic() - started:.0f} s"
    for peer, result in results.items():
        print(f"{peer}: {result}")
    return int(any(result.startswith("failed") for result in results.values()))


def make(scripts: list[str], name: str, what: str, *rooms: str) -> None:
    """What checks read, `.interop/<name>`, made by the first of `scripts`, anew whenever they or the code in `rooms`
    changed."""
    code = [path for room in rooms for path in (ROOT / room).rglob("*.*")]
    stamp, state = WORK / f"{name}.stamp", digest([*code, *(HERE / script for script in scripts)])
    if not (WORK / name).is_dir() or not stamp.exists() or stamp.read_text() != state:
        print(f"== building {what}", flush=True)
        subprocess.run([sys.executable, HERE / scripts[0], WORK / name], check=True)
        stamp.write_text(state)


def environment(peer: str) -> Path | None:
    """The interpreter of the peer's environment; None if it cannot be installed."""
    folder = WORK / peer
    python = folder / "bin" / "python"
    full, bare = HERE / f"requirements-{peer}.txt", HERE / f"requirements-{peer}.no-deps.txt"
    stamp, state = folder / "stamp", digest([full, bare])
    if stamp.exists() and stamp.read_text() == state:
        return python
    venv.create(folder, with_pip=True, clear=True)
    for options in (["-r", full], ["--no-deps", "-r", bare]):
        if not options[-1].exists():
            continue
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *options]
        if subprocess.run(pip).returncode:
            print(f"{peer} cannot be installed here", flush=True)
            return None
    stamp.write_text(state)
    return python


def digest(paths: list[Path]) -> str:
    found = hashlib.sha256()
    for path in sorted(paths):
        if path.is_file() and "__pycache__" not in path.parts:
            found.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
