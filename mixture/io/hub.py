"""The Hugging Face hub, before its library asks it five times."""

import os
import re
import socket
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.extras import missing

HUB = "hf://datasets/"
# As `huggingface_hub` writes them; the revision of converted Parquet files has slashes.
_NAME = re.compile(
    r"(?P<owner>[^/@]+)/(?P<repo>[^/@]+)(@(?P<revision>refs/[^/]+/[^/]+|[^/]+))?(/(?P<pattern>.*))?", re.DOTALL
)


def download(name: str) -> Path:
    """The files of a data set on the hub, `hf://datasets/OWNER/NAME[@REVISION]/GLOB`, in the local cache of its
    library: a path or glob there. Raises VlmixError if it cannot be had."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise missing("huggingface_hub", name) from None
    parts = _NAME.fullmatch(name.removeprefix(HUB))
    if parts is None:
        raise VlmixError(f"{name}: expected {HUB}OWNER/NAME, with a folder or a glob of its files behind it")
    owner, repo, revision, pattern = parts["owner"], parts["repo"], parts["revision"], parts["pattern"] or ""
    wanted = [pattern, f"{pattern.rstrip('/')}/**"] if pattern else None
    try:
        folder = snapshot_download(f"{owner}/{repo}", repo_type="dataset", revision=revision, allow_patterns=wanted)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        fetch = f"hf download {owner}/{repo} --repo-type dataset"
        raise VlmixError(f"{name}: {why}. Offline, fetch it beforehand ({fetch}) and name the folder") from None
    return Path(folder) / pattern if pattern else Path(folder)


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
