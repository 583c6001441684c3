"""Versions that decide bytes on disk."""

from importlib.metadata import PackageNotFoundError, version

FORMAT_VERSION = 3
"""Of the mixture folder. Readers refuse a newer one."""

ORDER_VERSION = 2
"""Of the schedule: which samples train at which step. A resumed run refuses another one."""

try:
    VERSION = version("vlmix")
except PackageNotFoundError:  # a source tree that was never installed
    VERSION = "0+source"
