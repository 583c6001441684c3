"""Strict YAML into typed records: an unknown key names the nearest known one, duplicate keys are errors."""

import glob
import re
from pathlib import Path
from typing import Any

import msgspec
import msgspec.inspect
import yaml
from msgspec import Struct

from vlmix.mixture.errors import VlmixError, abridged, nearest

RECIPES = Path(__file__).parents[2] / "recipes"
"""The recipes that come with vlmix."""
_MOST_BASES = 8


def label(path: Path, overrides: list[str] | None = None) -> str:
    """What errors call a recipe: its path, or its name if it comes with vlmix; and what was overridden."""
    packaged = path.resolve().is_relative_to(RECIPES.resolve())
    name = f"recipe {path.stem}" if packaged else str(path)
    return abridged(" ".join([name, "with", *overrides]) if overrides else name, 300)


def load(path: Path, overrides: list[str] | None = None) -> Any:
    """Plain data of the YAML file at `path`, with `key=value` overrides (`sources.vqav2.take=100`) applied.

    `extends: NAME` starts from another recipe, a file beside this one or one that comes with vlmix: mappings are merged
    key by key, anything else replaces what was there.
    """
    data = _load(path)
    for change in overrides or []:
        override(data, change)
    return data


def _load(path: Path, depth: int = 0) -> Any:
    data = _read(path)
    if not isinstance(data, dict) or "extends" not in data:
        return data
    name = data.pop("extends")
    beside = path.parent / str(name)
    near = (beside, beside.with_name(f"{beside.name}.yaml"))
    try:
        packaged = sorted(RECIPES.rglob(f"{glob.escape(beside.name)}.yaml"))
        found = [file for file in (*near, *packaged) if file.is_file() and not file.samefile(path)]
    except (OSError, ValueError):  # no name that a file can have
        found = []
    if not found:
        raise VlmixError(
            f"{path}: extends {abridged(str(name))!r}: there is no such recipe, beside this file or in vlmix"
        )
    if depth == _MOST_BASES:
        raise VlmixError(f"{path}: extends: more than {_MOST_BASES} recipes above each other, or a circle")
    return _merged(_load(found[0], depth + 1), data)


def _merged(base: Any, changes: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    return {**base, **{key: _merged(base.get(key), value) for key, value in changes.items()}}


def _read(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise VlmixError(f"recipe {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise VlmixError(f"recipe {path}: not a text file") from None
    return value(text, str(path))


FORMER_KEYS = {
    "axes": "grid",
    "every": "interval",
    "length": "max_length",
    "log_every": "log_interval",
    "same": "budget",
    "changes": "overrides",
    "clip": "max_grad_norm",
    "data": "mixture",
    "fitting": "image_aspect_ratio",
    "samples": "global_size",
    "schedule": "lr_scheduler",
    "start": "init_connector_from",
}
"""Keys of recipes before 0.1 -> what they are called now, where the name alone does not suggest it."""

_ACCUMULATION = (
    "it follows from the batch: a step's batch.global_size samples are computed in micro-batches of batch.pack_length "
    "tokens, or of batch.micro_size samples, whose gradients add up"
)
ELSEWHERE = {
    "accumulate_grad_batches": _ACCUMULATION,
    "gradient_accumulation": _ACCUMULATION,
    "gradient_accumulation_steps": _ACCUMULATION,
}
"""Keys that people know from other trainers, and that no key stands for."""


def check_keys(data: dict[Any, Any], struct: type[Struct], where: str) -> None:
    """Raise VlmixError for a key that is no field of `struct`, naming the nearest field."""
    for key in data:
        if key not in struct.__struct_fields__:
            if key in ELSEWHERE:
                raise VlmixError(f"{where}: unknown key {key!r}; {ELSEWHERE[key]}")
            now = FORMER_KEYS.get(str(key), str(key))
            raise VlmixError(f"{where}: unknown key {abridged(str(key))!r}{nearest(now, struct.__struct_fields__)}")


def convert(data: dict[str, Any], struct: Any, where: str) -> Any:
    """Plain data as a typed record. Raises VlmixError that names the field, its value and the rule."""
    try:
        return msgspec.convert(data, struct)
    except msgspec.ValidationError as error:
        message = str(error).replace("Object missing required field", "missing key")
        rule, _, place = message.partition(" - at `$.")
        if not place or rule.startswith("missing key"):
            raise VlmixError(f"{where}: {message.replace('`$.', '`')}") from None
        place = place.rstrip("`")
        value = _at(data, place)
        choices = _choices(struct, place)
        rule = re.sub(", got `.*`", "", rule[:1].lower() + rule[1:])
        rule = f"expected one of {', '.join(choices)}" if choices else rule
        raise VlmixError(f"{where}: `{place}`: {rule}, got {abridged(repr(value))}") from None


def _at(data: Any, place: str) -> Any:
    """The value at a path of msgspec's, `optim.lr` or `ratios[0]`; where it ends in `[...]`, the mapping around."""
    for name in re.findall(r"[^.\[\]]+", place.partition("[...]")[0]):
        data = data[int(name)] if isinstance(data, list) else data.get(name)
    return data


def _choices(struct: Any, place: str) -> list[str]:
    """What a field of few possible values may be, empty for any other."""
    kinds: tuple[Any, ...] = (msgspec.inspect.type_info(struct),)
    for name, element in (step.partition("[")[::2] for step in place.split(".")):
        fields = [field for kind in kinds for field in getattr(kind, "fields", ()) if field.encode_name == name]
        kinds = tuple(kind for field in fields for kind in getattr(field.type, "types", (field.type,)))
        if element:
            kinds = tuple(getattr(kind, "item_type", kind) for kind in kinds)
    return [str(value) for kind in kinds if isinstance(kind, msgspec.inspect.LiteralType) for value in kind.values]


_MOST_VALUES = 100_000


class _Loader(yaml.SafeLoader):
    """Plain YAML data; a key that is a duplicate is an error instead of the last one winning."""

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise yaml.constructor.ConstructorError(None, None, "half of a surrogate pair is no text", node.start_mark)
        return value


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not text", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is a duplicate", key_node.start_mark)
        seen.add(key)
    return dict(loader.construct_mapping(node, deep=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
# YAML 1.1 takes 2e-5 for text, as it has no point; everybody who writes a learning rate means a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def value(text: str, where: str) -> Any:
    """Plain data of a YAML text. Raises VlmixError for what is none."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if (size := _size(node, {})) > _MOST_VALUES:
            raise VlmixError(
                f"{where}: with its aliases (*) and merges (<<) written out it holds {size:,} values, at most "
                f"{_MOST_VALUES:,} are taken; write out what you mean"
            )
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError) as error:
        raise VlmixError(f"{where}: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise VlmixError(f"{where}: nested too deeply") from None


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for, counting what an alias repeats each time, without repeating it."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = 0
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    elif not known[id(node)]:
        raise yaml.constructor.ConstructorError(None, None, "an alias that holds itself", node.start_mark)
    return known[id(node)]


def override(data: Any, change: str) -> None:
    """Apply a change `key=value` to plain data; dots in the key lead into mappings."""
    path, equals, text = change.partition("=")
    shown = abridged(change)
    if not equals or not path:
        raise VlmixError(f"{shown}: write key=value, for example seed=1")
    node = data
    *parents, leaf = path.split(".")
    for key in parents:
        if not isinstance(node, dict):
            raise VlmixError(f"{shown}: {abridged(key)!r} is not a mapping")
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
    if not isinstance(node, dict):
        what = repr(parents[-1]) if parents else "the recipe"
        raise VlmixError(f"{shown}: {what} is not a mapping")
    node[leaf] = value(text, shown)
