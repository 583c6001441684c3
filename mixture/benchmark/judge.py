"""A language model as judge: any endpoint that speaks OpenAI's chat completions, over the standard library.

Judgements are written down one by one as they come, so that an interrupted judging resumes where it stopped,
and are enough to score again without the judge. Each remembers a hash of what was judged.
"""

import base64
import hashlib
import http.client
import json
import math
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from vlmix.mixture.benchmark.answers import decoded
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import disk_errors
from vlmix.mixture.io.pool import Progress

KEY_VARIABLES = ("VLMIX_JUDGE_KEY", "OPENAI_API_KEY")
_LONGEST_PAUSE = 60.0  # seconds
_MOST_READ = 2**24  # bytes of a reply
_MOST_READ_OF_AN_ERROR = 2**16
_MOST_SHOWN = 500  # characters of what an endpoint says

ScoreParser = Callable[[str], list[float] | None]


class JudgeRequest(Struct, frozen=True):
    """One answer to be judged: the prompt, and at which temperature on each try.

    `reminder` joins the prompt from the second try on. `failed` are the scores of an answer that the judge never
    managed to judge.
    """

    id: str
    category: str
    prompt: str
    failed: tuple[float, ...]
    system: str = ""
    temperatures: tuple[float, ...] = (0.0,)
    max_tokens: int = 1024
    reminder: str = ""

    @property
    def digest(self) -> str:
        """16 hex digits that change with what is judged."""
        return hashlib.sha256(f"{self.system}\0{self.prompt}".encode()).hexdigest()[:16]


class Judgement(Struct, kw_only=True):
    """A line of a file of judgements. `tuple` are the scores, `content` what the judge said; LLaVA's review files
    have these names too. `judged` is the request's digest, "" in files from elsewhere."""

    question_id: int | str
    category: str = ""
    content: str = ""
    tuple: list[float]
    model: str = ""
    judged: str = ""


Judgements = dict[str, Judgement]
"""Question id -> judgement."""


class _Grade(Struct):
    """MM-Vet's own file of grades: id -> lists with one entry a run."""

    score: list[float]
    content: list[str] = []
    model: list[str] = []


_lines = msgspec.json.Decoder(Judgement)
_grades = msgspec.json.Decoder(dict[str, _Grade])


@dataclass(frozen=True)
class Endpoint:
    """Where and whom to ask. `url` is the base (`http://localhost:8000/v1`), `key` the bearer token, "" for none. White
    space around the key is dropped. Raises VlmixError for a URL or a key that no request can carry; no message shows
    the key.

    A request is tried `attempts` times, with pauses of `pause` seconds that double, or as long as the server asks
    for, and given up after `timeout` seconds without a word. At most `workers` are under way.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    workers: int = 8
    attempts: int = 6
    pause: float = 1.0
    timeout: float = 120.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", self.key.strip())
        if not all("!" <= letter <= "~" for letter in self.key):
            raise VlmixError(
                "the judge's key holds a space, a line break or another character that no HTTP header carries; set "
                f"{' or '.join(KEY_VARIABLES)} to the key alone"
            )
        if "@" in self.url:
            raise VlmixError(f"judge: its URL holds a user or a password; the key goes into {KEY_VARIABLES[0]}")
        if problem := _url_problem(self.url):
            raise VlmixError(f"judge {self.hide(self.url)!r}: {problem}, such as http://localhost:8000/v1")
        if not self.model:
            raise VlmixError(
                f"judge {self.hide(self.url)}: no model is named; --judge-model says which one is to judge"
            )

    def hide(self, text: str) -> str:
        """`text` with the key replaced by ***, also where it is escaped as in JSON, in a URL or in base64."""
        if not self.key:
            return text
        letters = (rf"(?:\\*{re.escape(c)}|\\+u00{ord(c):02x}|\\+x{ord(c):02x}|%{ord(c):02x})" for c in self.key)
        encoded = base64.b64encode(self.key.encode()).decode().rstrip("=")
        return re.sub(f"{''.join(letters)}|{re.escape(encoded)}=*", "***", text, flags=re.IGNORECASE)


def _url_problem(url: str) -> str:
    """What keeps `url` from being the base of an endpoint, "" if nothing does."""
    expected = "a URL with http:// or https:// is expected"
    if not url.startswith(("http://", "https://")):
        return expected
    if not all("!" <= letter <= "~" for letter in url):
        return "a URL without spaces, line breaks and letters beyond ASCII is expected"
    try:
        parts = urlsplit(url)
        if not parts.hostname or parts.port == 0:
            return "a URL with a host is expected"
    except ValueError as error:
        return f"{error}; {expected}"
    return "a URL without ? and # is expected" if parts.query or parts.fragment else ""


def key_from_environment(environment: Mapping[str, str] = os.environ) -> str:
    """The judge's key: VLMIX_JUDGE_KEY, else OPENAI_API_KEY, else ""."""
    return next((environment[name] for name in KEY_VARIABLES if environment.get(name)), "")


def read_judgements(path: Path, *, cut: bool = False) -> Judgements:
    """The judgements of a JSONL file (ours, or a review file of LLaVA's), or of MM-Vet's file of grades, whose runs
    are averaged. Of a double id the last counts. With `cut` an unfinished last line is passed over."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise VlmixError(f"{path}: {error.strerror}; --judgements names a file of judgements") from None
    judgements: Judgements = {}
    if (grades := decoded(_grades, data)) is not None:
        for name, grade in grades.items():
            id = name.removeprefix("v1_")
            judgements[id] = Judgement(
                question_id=id,
                content=grade.content[0] if grade.content else "",
                tuple=[sum(grade.score) / len(grade.score) if grade.score else 0.0],
                model=grade.model[0] if grade.model else "",
            )
        return judgements
    finished = data[: data.rfind(b"\n") + 1] if cut else data
    for number, line in enumerate(finished.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            judgement = _lines.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise VlmixError(
                f"{path}: line {number}: {error}; a judgement has question_id and tuple: remove the line, and the same "
                "command judges that answer again"
            ) from None
        judgements[str(judgement.question_id)] = judgement
    return judgements


def judge(
    requests: Sequence[JudgeRequest],
    parse_scores: ScoreParser,
    endpoint: Endpoint,
    path: Path,
    progress: Progress | None = None,
) -> Judgements:
    """Asks `endpoint` about every request that `path` has no judgement of yet, adds each judgement to `path` as it
    comes, and returns all of them.

    `parse_scores` reads the scores in a reply, None for none; then the request's next temperature is tried, and
    after the last one its `failed` scores stand. Raises VlmixError if the judge cannot be reached or refuses; what was
    judged until then is kept.
    """
    saved = _resume(path)
    check(saved, requests, path)
    unjudged = [request for request in requests if request.id not in saved]
    done = len(requests) - len(unjudged)
    refusals: list[_Refused] = []

    def one(request: JudgeRequest) -> Judgement | None:
        try:
            return None if refusals else _judge_one(request, parse_scores, endpoint)
        except _Refused as refusal:
            refusals.append(refusal)
            return None

    with (
        disk_errors(path),
        path.open("ab") as file,
        ThreadPoolExecutor(endpoint.workers, thread_name_prefix="judge") as pool,
    ):
        try:
            for future in as_completed([pool.submit(one, request) for request in unjudged]):
                judgement = future.result()
                if judgement is None:
                    continue
                file.write(msgspec.json.encode(judgement) + b"\n")
                file.flush()
                saved[str(judgement.question_id)] = judgement
                done += 1
                if progress is not None:
                    progress("judge", done, len(requests))
        finally:
            pool.shutdown(cancel_futures=True)
    if refusals:
        shown = endpoint.hide(endpoint.url)
        raise VlmixError(
            f"judge {shown} ({endpoint.model}): {refusals[0]}; {done:,} of {len(requests):,} judgements are in {path}, "
            "and the same command resumes there"
        )
    return saved


def check(saved: Judgements, requests: Iterable[JudgeRequest], path: Path) -> None:
    """Raises VlmixError if a judgement in `path` was about another answer than the request of its id."""
    for request in requests:
        judgement = saved.get(request.id)
        if judgement is not None and judgement.judged and judgement.judged != request.digest:
            raise VlmixError(
                f"{path}: its judgement of question {request.id} is about another answer or question; each file of "
                "answers needs a file of judgements of its own"
            )


def _resume(path: Path) -> Judgements:
    if not path.exists():
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return {}
    saved = read_judgements(path, cut=True)
    data = path.read_bytes()
    if decoded(_grades, data) is not None:
        raise VlmixError(f"{path} is MM-Vet's own file of grades, to which nothing can be added; name another file")
    if not data.endswith(b"\n"):  # a killed run left half a line
        with disk_errors(path), path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)
    return saved


def _judge_one(request: JudgeRequest, parse_scores: ScoreParser, endpoint: Endpoint) -> Judgement:
    reply, scores = "", None
    for number, temperature in enumerate(request.temperatures):
        prompt = request.prompt + request.reminder if number else request.prompt
        reply = ask(endpoint, request.system, prompt, temperature, request.max_tokens)
        scores = parse_scores(reply)
        if scores is not None:
            break
    return Judgement(
        question_id=request.id,
        category=request.category,
        content=endpoint.hide(reply),
        tuple=list(request.failed) if scores is None else scores,
        model=endpoint.model,
        judged=request.digest,
    )


class _Refused(Exception):
    """The judge cannot be asked."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: it would carry the key and the questions to a host that nobody named."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> None:
        return None

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


_opener = urllib.request.build_opener(_NoRedirects)


def ask(endpoint: Endpoint, system: str, prompt: str, temperature: float, max_tokens: int) -> str:
    """The text of the judge's reply to one prompt."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    body = {"model": endpoint.model, "messages": messages, "temperature": temperature, "max_tokens": max_tokens}
    headers = {"Content-Type": "application/json"}
    if endpoint.key:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    request = urllib.request.Request(  # noqa: S310 (Endpoint lets http and https pass only)
        f"{endpoint.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers
    )
    problem = ""
    for attempt in range(endpoint.attempts):
        pause = min(endpoint.pause * 2**attempt, _LONGEST_PAUSE)
        try:
            with _opener.open(request, timeout=endpoint.timeout) as response:
                return _content(response.read(_MOST_READ), endpoint)
        except urllib.error.HTTPError as error:
            problem = _refusal(error, endpoint)
            if error.code not in (408, 409, 425, 429) and error.code < 500:
                raise _Refused(problem) from None
            pause = max(pause, min(_seconds(error.headers.get("Retry-After")), _LONGEST_PAUSE))
        # No connection, no answer in time, one that breaks off, or one that is not JSON.
        except (OSError, ValueError, http.client.HTTPException, RecursionError) as error:
            problem = _short(str(getattr(error, "reason", None) or error or type(error).__name__), endpoint)
        if attempt + 1 < endpoint.attempts:
            time.sleep(pause)
    raise _Refused(f"{' '.join(problem.split())} (tried {endpoint.attempts} times)")


def _refusal(error: urllib.error.HTTPError, endpoint: Endpoint) -> str:
    """What an endpoint that answers with an error says."""
    if 300 <= error.code < 400:
        try:
            host = urlsplit(error.headers.get("Location") or "").hostname
        except ValueError:
            host = None
        to = f"to {_short(host, endpoint)!r}" if host else "elsewhere"
        return f"it redirects {to} ({error.code}), which is not followed; --judge names the endpoint itself"
    try:
        said = error.read(_MOST_READ_OF_AN_ERROR).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException):
        said = ""
    return _short(f"it answers {error.code} {error.reason}" + (f": {said}" if said else ""), endpoint)


def _short(text: str, endpoint: Endpoint) -> str:
    """The beginning of `text` without the key. (Cut first, half a key would be left at the end.)"""
    return endpoint.hide(text)[:_MOST_SHOWN]


def _content(data: bytes, endpoint: Endpoint) -> str:
    """The reply's text; a reply in a different format is a ValueError."""
    said = _short(repr(data[:_MOST_READ_OF_AN_ERROR]), endpoint)[:200]
    try:
        content: Any = json.loads(data)["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise ValueError(f"its reply has no choices[0].message.content: {said}") from None
    if content is None:
        return ""
    if not isinstance(content, str):
        raise ValueError(f"its reply's content is no text: {said}")
    try:
        content.encode()
    except UnicodeEncodeError:
        raise ValueError(f"its reply holds half a surrogate pair: {said}") from None
    return content


def _seconds(header: str | None) -> float:
    try:
        seconds = float(header or 0)
    except ValueError:  # a date
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0
