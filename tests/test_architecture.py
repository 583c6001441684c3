"""The import rules of every folder (docs/architecture.md), by reading all imports, those inside functions too."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Folder or module -> what it may import, besides itself. The nearest entry above a module holds for it.
RULES: dict[str, set[str]] = {
    "mixture.errors": set(),
    "mixture.extras": {"mixture.errors"},
    "mixture.version": set(),
    "mixture.hashing": set(),
    "mixture.record": {"mixture.errors"},
    "mixture.boxes": {"mixture.record"},
    "mixture.render": {"mixture.boxes", "mixture.record"},
    "mixture.keyed": {"mixture.errors", "mixture.hashing"},
    "mixture.filters": {"mixture.errors"},
    "mixture.io": {"mixture.errors", "mixture.extras"},
    "mixture.schedule": set(),
    "mixture.schedule.packing": {"mixture.errors"},
    "mixture.schedule.shuffle": {"mixture.hashing"},
    "mixture.schedule.pictures": {"mixture.errors", "mixture.hashing", "mixture.schedule.shuffle"},
    "mixture.schedule.trees": {"mixture.schedule.packing", "mixture.schedule.pictures"},
    "mixture.schedule.schedule": {
        "mixture.errors",
        "mixture.hashing",
        "mixture.io.node_cache",
        "mixture.schedule.packing",
        "mixture.schedule.pictures",
        "mixture.schedule.shuffle",
        "mixture.version",
    },
    "mixture.schedule.blend": {"mixture.errors", "mixture.hashing", "mixture.keyed", "mixture.schedule"},
    "mixture.schedule.listing": {"mixture.errors", "mixture.schedule"},
    "mixture.dataset": {"mixture.*base", "mixture.io"},
    "mixture.selection": {"mixture.*base", "mixture.io", "mixture.dataset"},
    "mixture.export": {"mixture.*base", "mixture.io", "mixture.dataset"},
    "mixture.browse": {"mixture.*base", "mixture.io", "mixture.dataset", "mixture.overlaps.table"},
    "mixture.overlaps": {"mixture.*base", "mixture.io", "mixture.dataset", "mixture.benchmark"},
    "mixture.build": {"mixture.*base", "mixture.io", "mixture.dataset", "mixture.benchmark", "mixture.overlaps"},
    "mixture.overlaps.embeddings": {"mixture.*base", "mixture.selection.embeddings"},
    "mixture.benchmark": {"mixture.*base", "mixture.io"},
    "mixture.mixture": {"mixture.*base", "mixture.io", "mixture.dataset", "mixture.selection", "mixture.schedule"},
    "mixture.holdout": {"mixture.*base", "mixture.dataset"},
    "mixture.blend": {"mixture.*base", "mixture.dataset", "mixture.schedule", "mixture.mixture"},
    "mixture.merge": {"mixture.*base", "mixture.io", "mixture.dataset", "mixture.blend"},
    "builders": {"mixture"},
    "builders.miniature": set(),
    "train": {"mixture"},
    "train.weights": {"mixture", "train.images"},
    "cli": {"mixture", "builders", "train", "door"},
    "door": {"mixture", "builders", "train", "cli"},
    "torch_door": {"mixture", "train"},
}
BASE = {
    f"mixture.{name}"
    for name in ("errors", "extras", "version", "hashing", "record", "boxes", "render", "keyed", "filters")
}


def imports(path: Path) -> set[str]:
    """The modules of vlmix that a file names in an import statement, wherever it stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            base = node.module or ""
            found |= {f"{base}.{a.name}" if _is_module(f"{base}.{a.name}") else base for a in node.names}
    top = {name.partition(".")[0] for name in found} & {"mixture", "builders", "train", "cli"}
    assert not top, f"{path} imports {top} without vlmix"
    return {
        name.removeprefix("vlmix.") if name != "vlmix" else "door" for name in found if name.split(".")[0] == "vlmix"
    }


def _is_module(name: str) -> bool:
    path = ROOT / "/".join(name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def modules() -> dict[str, Path]:
    found = {"door": ROOT / "vlmix/__init__.py", "torch_door": ROOT / "vlmix/torch.py"}
    for room in ("mixture", "builders", "train", "cli"):
        for path in (ROOT / room).rglob("*.py"):
            name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def rule_of(module: str) -> str:
    above = [module.rsplit(".", cut)[0] for cut in range(module.count(".") + 1)]
    return next(name for name in above if name in RULES)


@pytest.mark.parametrize("module", [name for name in MODULES if name != "mixture"])
def test_imports_only_what_its_folder_may(module: str) -> None:
    rule = rule_of(module)
    allowed = {rule, *RULES[rule]} | (BASE if "mixture.*base" in RULES[rule] else set())
    for name in imports(MODULES[module]):
        fits = any(name == target or name.startswith(target + ".") for target in allowed)
        assert fits, f"{module} imports {name}; {rule} may import {sorted(allowed)}"


def test_no_circle() -> None:
    graph = {name: {target for target in imports(path) if target in MODULES} - {name} for name, path in MODULES.items()}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert len(order) >= len(MODULES)


def test_data_side_imports_without_torch() -> None:
    code = """
import sys, pkgutil, importlib
for name in ("torch", "transformers", "datasets", "webdataset", "tokenizers"):
    sys.modules[name] = None
def load(package):
    module = importlib.import_module(package)
    for info in pkgutil.walk_packages(module.__path__, package + "."):
        importlib.import_module(info.name)
import vlmix
for name in ("vlmix.mixture", "vlmix.builders", "vlmix.cli"):
    load(name)
import vlmix.builders
vlmix.builders.known_sources(); vlmix.builders.known_benchmarks()
import vlmix.train.sweep.folder, vlmix.train.sweep.report  # what `vlmix compare SWEEP` needs
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_trainer_imports_with_the_packages_of_a_gpu_machine(tmp_path: Path) -> None:
    """Without polars, datasets, typer and rich, and from a folder with modules of the rooms' names."""
    for name in ("train", "cli", "builders"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the foreign module was loaded')\n")
    (tmp_path / "mixture").mkdir()
    (tmp_path / "mixture/__init__.py").write_text("raise SystemExit('the foreign package was loaded')\n")
    code = """
import sys, pkgutil, importlib
sys.path.insert(0, "")
for name in ("polars", "datasets", "webdataset", "typer", "rich", "fsspec.implementations.http", "matplotlib"):
    sys.modules[name] = None
import vlmix.train
for info in pkgutil.walk_packages(vlmix.train.__path__, "vlmix.train."):
    if not info.name.startswith(("vlmix.train.sweep", "vlmix.train.weights.llama_gguf")):
        importlib.import_module(info.name)
twice = [name for name in sys.modules if name.split(".")[0] in ("train", "cli", "builders", "mixture")]
assert not twice, twice
files = [getattr(m, "__file__", None) for n, m in sys.modules.items() if n.startswith("vlmix")]
import os
real = [os.path.realpath(f) for f in files if f]
assert len(real) == len(set(real)), "a module was loaded under two names"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
