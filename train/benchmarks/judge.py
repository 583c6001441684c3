"""A language model as judge: any endpoint that speaks OpenAI's chat completions, over the standard library.

Judgements are written down one by one as they come, so that a judging that was interrupted goes on where it stopped,
and are enough to score again without the judge. Each remembers a hash of what was judged.
"""

import hashlib
import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from mixture.errors import VlmixError
from mixture.files import disk_errors

KEY_VARIABLES = ("VLMIX_JUDGE_KEY", "OPENAI_API_KEY")
_LONGEST_PAUSE = 60.0  # seconds
_MOST_READ = 2**24  # bytes of a reply

Progress = Callable[[str, int, int], None]
Verdict = Callable[[str], list[float] | None]


class Case(Struct, frozen=True):
    """One answer to be judged: what the judge is told, and at which temperature on each try.

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
    have these names too. `judged` is the case's digest, "" in files from elsewhere."""

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
    """Where and whom to ask. `url` is the base (`http://localhost:8000/v1`), `key` the bearer token, "" for none.

    A request is tried `attempts` times, with pauses of `pause` seconds that double, or as long as the server asks
    for, and given up after `timeout` seconds without a word. At most `workers` are under way.
    """

    url: str
    model: str
    key: str = ""
    workers: int = 8
    attempts: int = 6
    pause: float = 1.0
    timeout: float = 120.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise VlmixError(
                f"judge {self.url!r}: a URL with http:// or https:// is expected, such as http://localhost:8000/v1"
            )
        if not self.model:
            raise VlmixError(f"judge {self.url}: no model is named; --judge-model says which one is to judge")


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
    if (grades := _read_grades(data)) is not None:
        return {id.removeprefix("v1_"): _average(id.removeprefix("v1_"), grade) for id, grade in grades.items()}
    found: Judgements = {}
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            judgement = _lines.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            if cut and number == len(lines):
                break
            raise VlmixError(
                f"{path}: line {number}: {error}; a judgement has question_id and tuple: remove the line, and the same "
                "command judges that answer again"
            ) from None
        found[str(judgement.question_id)] = judgement
    return found


def _read_grades(data: bytes) -> dict[str, _Grade] | None:
    try:
        return _grades.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _average(id: str, grade: _Grade) -> Judgement:
    mean = sum(grade.score) / len(grade.score) if grade.score else 0.0
    return Judgement(
        question_id=id,
        content=grade.content[0] if grade.content else "",
        tuple=[mean],
        model=grade.model[0] if grade.model else "",
    )


def judge(
    cases: Sequence[Case], verdict: Verdict, endpoint: Endpoint, path: Path, progress: Progress | None = None
) -> Judgements:
    """Asks `endpoint` about every case that `path` has no judgement of yet, adds each judgement to `path` as it
    comes, and returns all of them.

    `verdict` reads the scores in a reply, None if there are none; then the case's next temperature is tried, and after
    the last one its `failed` scores stand. Raises VlmixError if the judge cannot be reached or refuses; what was
    judged until then is kept.
    """
    saved = _resume(path)
    check(saved, cases, path)
    open_cases = [case for case in cases if case.id not in saved]
    done = len(cases) - len(open_cases)
    refused: _Refused | None = None
    with (
        disk_errors(path),
        path.open("ab") as file,
        ThreadPoolExecutor(endpoint.workers, thread_name_prefix="judge") as pool,
    ):
        todo = iter(open_cases)
        running: set[Future[Judgement]] = set()
        while True:
            if refused is None:
                running |= {
                    pool.submit(_judge_one, case, verdict, endpoint)
                    for case in islice(todo, endpoint.workers - len(running))
                }
            if not running:
                break
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                try:
                    judgement = future.result()
                except _Refused as error:
                    refused = error
                    continue
                file.write(msgspec.json.encode(judgement) + b"\n")
                file.flush()
                saved[str(judgement.question_id)] = judgement
                done += 1
                if progress is not None:
                    progress("judge", done, len(cases))
    if refused is not None:
        raise VlmixError(
            f"judge {endpoint.url} ({endpoint.model}): {refused}; {done:,} of {len(cases):,} judgements are in {path}, "
            "and the same command goes on from there"
        )
    return saved


def check(saved: Judgements, cases: Iterable[Case], path: Path) -> None:
    """Raises VlmixError if a judgement in `path` was about another answer than the case of its id."""
    for case in cases:
        judgement = saved.get(case.id)
        if judgement is not None and judgement.judged and judgement.judged != case.digest:
            raise VlmixError(
                f"{path}: its judgement of question {case.id} is about another answer or question; each file of "
                "answers needs a file of judgements of its own"
            )


def _resume(path: Path) -> Judgements:
    if not path.exists():
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return {}
    saved = read_judgements(path, cut=True)
    data = path.read_bytes()
    if _read_grades(data) is not None:
        raise VlmixError(f"{path} is MM-Vet's own file of grades, to which nothing can be added; name another file")
    if data and not data.endswith(b"\n"):  # a killed run left half a line
        with disk_errors(path), path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)
        saved = read_judgements(path)
    return saved


def _judge_one(case: Case, verdict: Verdict, endpoint: Endpoint) -> Judgement:
    reply, scores = "", None
    for number, temperature in enumerate(case.temperatures):
        reply = ask(
            endpoint, case.system, case.prompt + (case.reminder if number else ""), temperature, case.max_tokens
        )
        scores = verdict(reply)
        if scores is not None:
            break
    return Judgement(
        question_id=case.id,
        category=case.category,
        content=reply,
        tuple=list(case.failed) if scores is None else scores,
        model=endpoint.model,
        judged=case.digest,
    )


class _Refused(Exception):
    """The judge cannot be asked."""


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
            with urllib.request.urlopen(request, timeout=endpoint.timeout) as response:  # noqa: S310
                return _content(response.read(_MOST_READ))
        except urllib.error.HTTPError as error:
            said = error.read(500).decode(errors="replace").strip()
            problem = f"it answers {error.code} {error.reason}" + (f": {said}" if said else "")
            if error.code not in (408, 409, 425, 429) and error.code < 500:
                raise _Refused(problem) from None
            pause = max(pause, min(_seconds(error.headers.get("Retry-After")), _LONGEST_PAUSE))
        except (OSError, ValueError) as error:  # no connection, no answer in time, an answer that is not JSON
            problem = str(getattr(error, "reason", None) or error)
        if attempt + 1 < endpoint.attempts:
            time.sleep(pause)
    raise _Refused(f"{problem} (tried {endpoint.attempts} times)")


def _content(data: bytes) -> str:
    """The reply's text; a reply of another form is a ValueError."""
    try:
        content: Any = json.loads(data)["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise ValueError(f"its reply has no choices[0].message.content: {data[:200]!r}") from None
    if content is None:
        return ""
    if not isinstance(content, str):
        raise ValueError(f"its reply's content is no text: {data[:200]!r}")
    return content


def _seconds(header: str | None) -> float:
    try:
        seconds = float(header or 0)
    except ValueError:  # a date
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0
