"""The Hugging Face hub, before its library asks it five times."""

import os
import socket
import urllib.request
from urllib.parse import urlsplit

from vlmix.mixture.errors import VlmixError


def check_reachable(name: str, file: str) -> None:
    """Raises VlmixError at once if `file` of the model `name` is not in the cache, and the hub's host has no address
    and no proxy stands for it, as on a machine without internet. (The hub's library tries for half a minute.)"""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HFValidationError

    try:
        cached = isinstance(try_to_load_from_cache(name, file), str)
    except HFValidationError:
        return  # the library says what is wrong with the name
    if cached or HF_HUB_OFFLINE or urllib.request.getproxies():
        return
    host = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname or ""
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        raise VlmixError(
            f"{name}: there is no such folder here, and the Hugging Face hub cannot be reached ({host} has no "
            f"address). Offline, fetch it beforehand (hf download {name}), or name a folder that has its files"
        ) from None
