"""Versions that decide bytes on disk."""

from importlib.metadata import PackageNotFoundError, version

FORMAT_VERSION = 4
"""Of the mixture folder. Readers refuse a newer one."""

OLDEST_FORMAT_VERSION = 3
"""That this vlmix reads, and that it gives to a folder of it: one file as the index, keys that are positions."""

ORDER_VERSION = 2
"""Of the schedule: which samples train at which step. A resumed run refuses another one."""

try:
    VERSION = version("vlmix")
except PackageNotFoundError:  # a source tree that was never installed
    VERSION = "0+source"
