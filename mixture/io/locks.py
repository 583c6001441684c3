"""Locks between processes."""

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_log = logging.getLogger(__name__)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)


@contextmanager
def exclusive_lock(folder: Path, wait: bool = False) -> Iterator[bool]:
    """Hold a folder: True if no other process does, or when none does any more with `wait`. The hold ends with the
    block, or with the process, however that ends. On a file system without locks it is a warning and True."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            mine = True
        except BlockingIOError:
            mine = False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _log.warning("%s: its file system has no locks; start no second command on it meanwhile", folder)
            mine = True
        yield mine
    finally:
        os.close(descriptor)
