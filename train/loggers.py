"""Where metrics go beside `metrics.jsonl`: TensorBoard where it is installed, Weights & Biases where a recipe asks."""

import json
import os
import secrets
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.extras import missing
from vlmix.mixture.io.atomic import write_text
from vlmix.train.config import Recipe, Wandb

WANDB_ID = "wandb.json"
"""File of a run that has the id under which wandb knows it. Its own files are in `wandb/`."""
_SECONDS = 60
"""That wandb may take to begin, and to send what is left at the end."""

Values = dict[str, float]


class Logger(Protocol):
    """Takes the numbers of a step, named as paths: `sources/gqa/loss`."""

    def add(self, values: Values, step: int) -> None: ...

    def close(self) -> None: ...


def open_loggers(
    recipe: Recipe, folder: Path, step: int, report: Callable[[str, dict[str, Any]], None]
) -> list[Logger]:
    """The loggers of a run that goes on after `step`. `report` is told where wandb's run is, and what hinders it."""
    board = _tensorboard(folder / "tensorboard", step)
    return [*([board] if board else []), *([_Wandb(recipe, folder, report)] if recipe.wandb else [])]


def check(recipe: Recipe) -> None:
    """Raise VlmixError if a recipe asks for wandb, and it is not installed, is set up wrongly, or has no key."""
    if recipe.wandb is None:
        return
    if find_spec("wandb") is None:
        raise missing("wandb", "`wandb`")
    import wandb

    try:
        wandb.setup(_settings(_mode(recipe.wandb)))
        known = _mode(recipe.wandb) != "online" or wandb.login(prompt=False)
    except wandb.Error:  # there is a key, and nobody to verify it
        known = True
    except ValueError as error:
        what = " ".join(str(error).split())
        raise VlmixError(f"wandb: its settings in the environment (WANDB_MODE and others) are wrong: {what}") from None
    if not known:
        raise VlmixError("wandb: no API key; run `wandb login`, or log offline with wandb.mode=offline")


def _mode(config: Wandb) -> str:
    return config.mode or os.environ.get("WANDB_MODE") or "online"


def _settings(mode: Any) -> Any:
    """Quiet, and without a copy of the output, of the code, or of what git says."""
    import wandb

    return wandb.Settings(
        mode=mode,
        console="off",
        silent=True,
        disable_git=True,
        save_code=False,
        init_timeout=_SECONDS,
        finish_timeout=_SECONDS,
    )


class _TensorBoard:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def add(self, values: Values, step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def _tensorboard(folder: Path, step: int) -> Logger | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return _TensorBoard(SummaryWriter(str(folder), purge_step=step + 1))


class _Wandb:
    """A run of wandb, the same one whenever the training resumes. Its axis is `step`: wandb's own counter of rows takes
    none for a step that it has seen, which a resumed run does again.

    Nothing that goes wrong there ends a training: what cannot be sent is kept in the run's folder."""

    def __init__(self, recipe: Recipe, folder: Path, report: Callable[[str, dict[str, Any]], None]) -> None:
        import wandb

        config = recipe.wandb
        assert config is not None
        self._report, self._failed = report, False
        arguments: dict[str, Any] = {
            "project": config.project,
            "entity": config.entity or None,
            "name": folder.name,
            "id": _id(folder / WANDB_ID),
            "resume": "allow",
            "dir": folder,
            "config": recipe.resolved(),
        }
        mode, why = _mode(config), ""
        try:
            self._run = wandb.init(**arguments, settings=_settings(mode))
        except wandb.Error as error:
            if mode != "online":
                raise VlmixError(f"wandb: {error}") from None
            why = str(error).partition("\n")[0].rstrip(".")
            self._run = wandb.init(**arguments, settings=_settings("offline"))
        self._run.define_metric("*", step_metric="step")
        self._tell(why)

    def add(self, values: Values, step: int) -> None:
        self._try(lambda: self._run.log({**values, "step": step}))

    def close(self) -> None:
        self._try(self._run.finish)

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # of its sockets, its process, its own: of every kind
            if not self._failed:
                self._tell((str(error) or type(error).__name__).partition("\n")[0])
            self._failed = True

    def _tell(self, why: str) -> None:
        folder = Path(self._run.dir).parent
        self._report("wandb", {"out": str(folder), "url": self._run.url or "", "why": why})


def _id(path: Path) -> str:
    """The id of a run's folder, drawn when it is asked for first."""
    if not path.exists():
        write_text(path, json.dumps({"id": secrets.token_hex(4)}) + "\n")
    try:
        return str(json.loads(path.read_text())["id"])
    except (ValueError, KeyError, TypeError):
        raise VlmixError(f"{path}: not what vlmix wrote; remove it for a new run of wandb") from None
