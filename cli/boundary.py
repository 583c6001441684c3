"""Where every error of a command ends: in one line and an exit status."""

import contextlib
import errno
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Callable

from vlmix.cli import show
from vlmix.mixture.errors import VlmixError, abridged, fault
from vlmix.mixture.extras import is_optional, missing

BAD_INPUT, INTERNAL, INTERRUPTED = 1, 70, 130
"""Exit statuses: bad input or a failing machine; a fault of vlmix or a plug-in (EX_SOFTWARE of sysexits.h); ctrl-C.
typer adds 2 for wrong usage."""
_INTERRUPTED = "interrupted; run the same command again to resume"
DEBUG = "VLMIX_DEBUG"
"""Environment variable: any value but "" or "0" shows the traceback of every error."""


def guarded(command: Callable[[], object]) -> int:
    """Run `command` and return its exit status. Every exception becomes one line on stderr; that of an unexpected one
    names a log file with the traceback."""
    _open_closed_streams()
    if not sys.stderr.isatty():
        show.without_bars()
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # what it warns of while it tries again is in the final error
    logging.getLogger("vlmix").handlers = [_Notes()]
    try:
        command()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        # typer turns it into an exit; a run of the trainer, which ends with the same status, has said so already.
        if end.__context__ and isinstance(end.__context__.__cause__, KeyboardInterrupt):
            show.line(_INTERRUPTED)
    except BaseException as error:  # a panic of polars is no Exception
        if os.environ.get(DEBUG, "0") not in ("", "0"):
            traceback.print_exc()
        line, status = _explained(error)
        show.line(line)
    return _flush() or status


class _Notes(logging.Handler):
    """Warnings of the libraries as lines on stderr, above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        show.note(f"warning: {record.getMessage()}")


def _explained(error: BaseException) -> tuple[str, int]:
    match error:
        case VlmixError():
            return str(error), BAD_INPUT
        case ModuleNotFoundError() if is_optional(error.name):
            return str(missing(error.name or "", "this command")), BAD_INPUT
        case KeyboardInterrupt():
            return _INTERRUPTED, INTERRUPTED
        case MemoryError():
            return "out of memory; lower the number of --workers, or use a larger machine", BAD_INPUT
        case UnicodeEncodeError() if any("\ud800" <= letter <= "\udfff" for letter in error.object):
            return f"the name {error.object!r} is not UTF-8; choose another", BAD_INPUT
        case OSError() if error.filename is not None:
            return f"{abridged(str(error.filename))}: {error.strerror}", BAD_INPUT
        case OSError() if error.strerror is not None:
            return f"{error.strerror}. {_logged(error)}", BAD_INPUT
    return f"{fault(error)}; a fault of vlmix or of a plug-in, not of your input. {_logged(error)}", INTERNAL


def _logged(error: BaseException) -> str:
    try:
        with tempfile.NamedTemporaryFile("w", prefix="vlmix-", suffix=".log", delete=False, encoding="utf-8") as log:
            log.write(f"{sys.argv}\n{''.join(traceback.format_exception(error))}")
        return f"The traceback is in {log.name}"
    except OSError:
        return f"{DEBUG}=1 shows the traceback"


def _open_closed_streams() -> None:
    """Give standard streams that the caller closed to the null device, so that no opened file takes their place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            while (opened := os.open(os.devnull, os.O_RDWR)) < number:  # the lowest free number is taken
                pass
            setattr(sys, name, os.fdopen(opened, "r" if number == 0 else "w"))


def _flush() -> int:
    """Write what is buffered for stdout: its disk may be full, its reader gone."""
    try:
        sys.stdout.flush()
    except OSError as error:
        if error.errno != errno.EPIPE:
            show.line(f"standard output: {error.strerror}")
        with contextlib.suppress(OSError):  # or the interpreter tries once more, and complains
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BAD_INPUT
    return 0
