"""The judged benchmarks, against a real server on this machine: requests, retries, resuming, and the official means."""

import base64
import json
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import dump
from vlmix.builders import known_benchmarks
from vlmix.builders.benchmarks.llava_bench import wild_scores
from vlmix.builders.benchmarks.mm_vet import vet_prompt, vet_score
from vlmix.mixture.benchmark.answers import Answer, Answers
from vlmix.mixture.benchmark.judge import Endpoint, JudgeRequest, judge, key_from_environment, read_judgements
from vlmix.mixture.errors import VlmixError

Reply = tuple[int, bytes, dict[str, str]]


class Server:
    """A chat completions endpoint. `answer(request, number)` gives status, body and headers; `requests` are the bodies
    that came, `most` how many were under way at once."""

    def __init__(self, answer: Callable[[dict[str, Any], int], Reply | str]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.paths: set[str] = set()
        self.most = self._now = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.requests.append(body)
                    outer.keys.append(self.headers["Authorization"])
                    outer.paths.add(self.path)
                    number = len(outer.requests)
                    outer._now += 1
                    outer.most = max(outer.most, outer._now)
                found = answer(body, number)
                if isinstance(found, str):
                    found = 200, json.dumps({"choices": [{"message": {"content": found}}]}).encode(), {}
                with lock:
                    outer._now -= 1
                status, data, headers = found
                with suppress(OSError):  # a client that gave up
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(data)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def endpoint(self, **more: Any) -> Endpoint:
        return Endpoint(self.url, "judge-1", **{"pause": 0.001, "attempts": 3, "timeout": 5.0, **more})


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[dict[str, Any], int], Reply | str]], Server]]:
    servers: list[Server] = []

    def start(answer: Callable[[dict[str, Any], int], Reply | str]) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def answers(texts: dict[Any, str]) -> Answers:
    return Answers([Answer(question_id=str(id), text=text) for id, text in texts.items()])


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# Reading replies


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ("8 7\nBoth …", [8.0, 7.0]),
        ("8,7", [8.0, 7.0]),
        ("8.5 7", [8.5, 7.0]),
        ("8, 7", None),  # the comma becomes a second space
        (" 8 7", None),
        ("8 7 ", None),
        ("8\n7", None),
        ("Assistant 1: 8, Assistant 2: 7", None),
        ("eight seven", None),
        ("nan 7", None),
        ("", None),
    ],
)
def test_llava_benchs_first_line_must_be_two_numbers(reply: str, scores: list[float] | None) -> None:
    assert wild_scores(reply) == scores


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ("0.5", [0.5]),
        ("1.0 because", [1.0]),
        (" 0.5", None),
        ("1.1", None),
        ("-0.1", None),
        ("half", None),
        ("nan", None),
    ],
)
def test_mm_vets_score_stands_before_the_first_space(reply: str, scores: list[float] | None) -> None:
    assert vet_score(reply) == scores


# LLaVA-Bench-in-the-Wild


@pytest.fixture
def wild(tmp_path: Path) -> Path:
    folder = tmp_path / "wild"
    folder.mkdir()
    asked = [
        {"question_id": n, "image": "001.jpg", "text": f"Q{n}?", "category": category}
        for n, category in enumerate(["conv", "detail", "complex"])
    ]
    lines(folder / "questions.jsonl", asked)
    lines(folder / "context.jsonl", [{"id": "001", "image": "001.jpg", "caption": ["A mountain.", "A lake."]}])
    lines(folder / "answers_gpt4.jsonl", [{"question_id": n, "text": f"reference {n}"} for n in range(3)])
    return folder


GIVEN = {0: "answer 0", 1: "answer 1", 2: "answer 2"}


def test_llava_bench_is_judged_and_counted_as_officially(wild: Path, tmp_path: Path, serve: Any) -> None:
    said = {"Q0": "8 4\nGood.", "Q1": "10 5", "Q2": "I cannot say."}
    server = serve(lambda body, _: next(text for q, text in said.items() if q in body["messages"][1]["content"]))
    benchmark = known_benchmarks()["llava-bench"]
    path = tmp_path / "judgements.jsonl"
    found = benchmark.judge(answers(GIVEN), wild, server.endpoint(key="secret"), path)
    report = benchmark.score(answers(GIVEN), wild, judgements=found)
    # The reply without scores is -1 and -1, and stays: (8 + 10 - 1) / 3 = 5.667 against (4 + 5 - 1) / 3 = 2.667.
    assert report.score == 47.1
    assert report.metrics["conv"] == 50.0
    assert report.metrics["all/reference"] == 56.7
    assert report.metrics["all/model"] == 26.7
    assert report.metrics["complex"] == 100.0  # -1 against -1
    assert any("1 replies without two scores" in note for note in report.notes)
    assert any("3 of 3 questions judged by judge-1" in note for note in report.notes)
    request = next(body for body in server.requests if "Q0" in body["messages"][1]["content"])
    assert request["model"] == "judge-1"
    assert request["temperature"] == 0.2
    assert request["max_tokens"] == 1024
    assert request["messages"][0]["role"] == "system"
    assert request["messages"][1]["content"].startswith(
        "[Context]\nA mountain.\nA lake.\n\n[Question]\nQ0?\n\n[Assistant 1]\nreference 0\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nanswer 0\n\n[End of Assistant 2]\n\n[System]\nWe would like to request your feedback"
    )
    assert server.paths == {"/v1/chat/completions"}
    assert set(server.keys) == {"Bearer secret"}
    saved = benchmark.saved_judgements(answers(GIVEN), wild, path)
    assert benchmark.score(answers(GIVEN), wild, judgements=saved) == report


def test_llavas_own_review_files_are_scored(wild: Path, tmp_path: Path) -> None:
    path = tmp_path / "reviews.jsonl"
    review = {"id": 1, "answer1_id": "a", "answer2_id": "b", "category": "llava_bench_conv", "content": "9 6\nWell."}
    lines(path, [{**review, "question_id": n, "tuple": [9.0, 6.0]} for n in range(3)])
    benchmark = known_benchmarks()["llava-bench"]
    report = benchmark.score(answers(GIVEN), wild, judgements=benchmark.saved_judgements(answers(GIVEN), wild, path))
    assert report.score == 66.7
    assert any("by a judge that the file does not name" in note for note in report.notes)


def test_answers_that_are_missing_are_not_judged(wild: Path, tmp_path: Path, serve: Any) -> None:
    server = serve(lambda body, _: "10 5")
    benchmark = known_benchmarks()["llava-bench"]
    found = benchmark.judge(answers({1: "x", 7: "y"}), wild, server.endpoint(), tmp_path / "j.jsonl")
    report = benchmark.score(answers({1: "x", 7: "y"}), wild, judgements=found)
    assert (report.score, report.answered, report.missing, report.unknown) == (50.0, 1, 2, 1)
    assert len(server.requests) == 1
    assert server.keys == [None]


def test_a_judged_benchmark_asks_for_judgements(wild: Path) -> None:
    with pytest.raises(VlmixError, match="llava-bench needs a judge: name one with --judge, or .*--judgements"):
        known_benchmarks()["llava-bench"].score(answers(GIVEN), wild)
    with pytest.raises(VlmixError, match="vqav2 needs no judge"):
        known_benchmarks()["vqav2"].saved_judgements(answers(GIVEN), wild, wild / "x")


# MM-Vet


@pytest.fixture
def vet(tmp_path: Path) -> Path:
    def question(text: str, answer: str, *capability: str) -> dict[str, Any]:
        return {
            "imagename": "v1_0.png",
            "question": text,
            "answer": answer,
            "capability": list(capability),
            "imagesource": "x",
        }

    rows = {
        "v1_0": question("x?", "-1<AND>-5", "ocr", "math"),
        "v1_1": question("y?", "a<OR>b", "math", "ocr"),
        "v1_2": question("z?", "c", "rec"),
    }
    return dump(tmp_path / "mm-vet" / "mm-vet.json", rows).parent


def test_mm_vet_means_by_capability_and_combination(vet: Path, tmp_path: Path, serve: Any) -> None:
    server = serve(lambda body, _: "0.5" if "| answer 0 |" in body["messages"][0]["content"] else "1.0 yes")
    benchmark = known_benchmarks()["mm-vet"]
    found = benchmark.judge(answers(GIVEN), vet, server.endpoint(), tmp_path / "j.jsonl")
    report = benchmark.score(answers(GIVEN), vet, judgements=found)
    assert report.score == round(100 * 2.5 / 3, 1) == 83.3
    assert report.metrics == {"math": 75.0, "ocr": 75.0, "together/math+ocr": 75.0, "rec": 100.0, "together/rec": 100.0}
    prompts = [body["messages"][0]["content"] for body in server.requests]
    assert vet_prompt("x?", "-1<AND>-5", "answer 0") in prompts
    assert any(prompt.endswith("| 1.0\n\nx? | -1 <AND> -5 | answer 0 | ") for prompt in prompts)
    assert {body["max_tokens"] for body in server.requests} == {3}
    assert {body["temperature"] for body in server.requests} == {0.0}


def test_mm_vet_asks_again_warmer_and_gives_nothing_after_five_replies(vet: Path, tmp_path: Path, serve: Any) -> None:
    benchmark = known_benchmarks()["mm-vet"]
    server = serve(lambda body, number: "Well" if number < 3 else "0.4")
    found = benchmark.judge(answers({"v1_0": "a"}), vet, server.endpoint(), tmp_path / "a.jsonl")
    assert found["0"].tuple == [0.4]
    assert [body["temperature"] for body in server.requests] == [0.0, 0.0, 0.5]
    reminder = "\nPredict the correctness of the answer (digit): "
    assert [body["messages"][0]["content"].endswith(reminder) for body in server.requests] == [False, True, True]
    server = serve(lambda body, number: "Well")
    found = benchmark.judge(answers({"v1_0": "a"}), vet, server.endpoint(), tmp_path / "b.jsonl")
    assert found["0"].tuple == [0.0]
    assert [body["temperature"] for body in server.requests] == [0.0, 0.0, 0.5, 1.0, 1.5]


def test_mm_vets_own_grades_are_scored_and_runs_averaged(vet: Path, tmp_path: Path) -> None:
    grades = {
        "v1_0": {"model": ["gpt-4", "gpt-4"], "content": ["0.0", "1.0"], "score": [0.0, 1.0]},
        "v1_1": {"model": ["gpt-4"], "content": ["0.5"], "score": [0.5]},
        "v1_2": {"model": ["gpt-4"], "content": ["0.2"], "score": [0.2]},
    }
    path = dump(tmp_path / "grades.json", grades)
    benchmark = known_benchmarks()["mm-vet"]
    report = benchmark.score(answers(GIVEN), vet, judgements=benchmark.saved_judgements(answers(GIVEN), vet, path))
    assert report.score == 40.0
    assert report.metrics["ocr"] == 50.0
    with pytest.raises(VlmixError, match="MM-Vet's own file of grades, to which nothing can be added"):
        benchmark.judge(answers(GIVEN), vet, Endpoint("http://127.0.0.1:1", "m"), path)


def test_mm_vet_counts_what_was_not_judged_as_nothing(vet: Path, tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    lines(path, [{"question_id": "2", "tuple": [1.0]}])
    report = known_benchmarks()["mm-vet"].score(answers(GIVEN), vet, judgements=read_judgements(path))
    assert report.score == 33.3
    lines(path, [{"question_id": "2", "tuple": [1.0, 2.0]}])
    with pytest.raises(VlmixError, match="question 2 has 2 scores, one is expected"):
        known_benchmarks()["mm-vet"].score(answers(GIVEN), vet, judgements=read_judgements(path))


def test_mm_vet_questions_and_submission(vet: Path, tmp_path: Path) -> None:
    question = known_benchmarks()["mm-vet"].questions(vet)[1]
    assert (question.id, question.text, question.image) == ("1", "y?", "images/v1_0.png")
    out = tmp_path / "out.json"
    known_benchmarks()["mm-vet"].submission(answers({0: "a", "v1_2": "c"}), vet, out)
    assert json.loads(out.read_text()) == {"v1_0": "a", "v1_2": "c"}


# The judge


def cases(count: int) -> list[JudgeRequest]:
    return [JudgeRequest(str(n), "x", f"prompt {n}", (-1.0, -1.0)) for n in range(count)]


def test_a_busy_or_confused_judge_is_asked_again(tmp_path: Path, serve: Any) -> None:
    replies: list[Reply | str] = [
        (429, b"slow down", {"Retry-After": "0.01"}),
        (503, b"", {}),
        (200, b"<html>", {}),
        (200, b'{"choices": []}', {}),
        "1 2",
    ]
    server = serve(lambda body, number: replies[number - 1])
    found = judge(cases(1), wild_scores, server.endpoint(attempts=5), tmp_path / "j.jsonl")
    assert found["0"].tuple == [1.0, 2.0]
    assert len(server.requests) == 5


def test_a_judge_that_refuses_is_not_asked_again(tmp_path: Path, serve: Any) -> None:
    server = serve(lambda body, number: (401, b'{"error": "no such key"}', {}))
    with pytest.raises(
        VlmixError, match=r"judge http.* \(judge-1\): it answers 401 Unauthorized: .*no such key.*; 0 of 1 "
    ):
        judge(cases(1), wild_scores, server.endpoint(), tmp_path / "j.jsonl")
    assert len(server.requests) == 1


def test_a_judge_that_is_down_is_told(tmp_path: Path, serve: Any) -> None:
    server = serve(lambda body, number: "1 2")
    server.close()
    with pytest.raises(VlmixError, match=r"Connection refused \(tried 3 times\); 0 of 5 judgements are in .*resumes"):
        judge(cases(5), wild_scores, server.endpoint(), tmp_path / "j.jsonl")


def test_a_judge_that_does_not_answer_in_time_is_given_up(tmp_path: Path, serve: Any) -> None:
    release = threading.Event()
    server = serve(lambda body, number: "1 2" if release.wait(5) else "")
    with pytest.raises(VlmixError, match=r"timed out \(tried 2 times\)"):
        judge(cases(1), wild_scores, server.endpoint(timeout=0.05, attempts=2), tmp_path / "j.jsonl")
    release.set()


def test_an_interrupted_judging_goes_on(tmp_path: Path, serve: Any) -> None:
    path = tmp_path / "deep" / "j.jsonl"
    server = serve(lambda body, number: "1 2" if number <= 4 else (403, b"enough", {}))
    with pytest.raises(VlmixError, match="4 of 10 judgements are in"):
        judge(cases(10), wild_scores, server.endpoint(workers=1), path)
    whole = path.read_bytes()
    assert whole.count(b"\n") == 4
    path.write_bytes(whole[:-9])  # killed in the middle of a line
    server = serve(lambda body, number: "3 4")
    steps: list[tuple[str, int, int]] = []
    found = judge(cases(10), wild_scores, server.endpoint(), path, lambda *step: steps.append(step))
    assert len(server.requests) == 7
    assert [found[str(n)].tuple for n in range(10)] == [[1.0, 2.0]] * 3 + [[3.0, 4.0]] * 7
    assert read_judgements(path) == found
    assert steps[-1] == ("judge", 10, 10)
    assert judge(cases(10), wild_scores, Endpoint("http://127.0.0.1:1", "m"), path) == found  # nothing left to ask


def test_no_more_requests_than_workers_are_under_way(tmp_path: Path, serve: Any) -> None:
    gate = threading.Barrier(3)

    def answer(body: dict[str, Any], number: int) -> str:
        if number <= 3:
            gate.wait(5)  # three at once, or the test fails here
        return "1 2"

    server = serve(answer)
    judge(cases(12), wild_scores, server.endpoint(workers=3), tmp_path / "j.jsonl")
    assert server.most == 3


def test_judgements_of_other_answers_are_refused(wild: Path, tmp_path: Path, serve: Any) -> None:
    server = serve(lambda body, number: "1 2")
    path = tmp_path / "j.jsonl"
    benchmark = known_benchmarks()["llava-bench"]
    benchmark.judge(answers(GIVEN), wild, server.endpoint(), path)
    other = answers({**GIVEN, 1: "another answer"})
    for attempt in (
        lambda: benchmark.saved_judgements(other, wild, path),
        lambda: benchmark.judge(other, wild, server.endpoint(), path),
    ):
        with pytest.raises(VlmixError, match="its judgement of question 1 is about another answer or question"):
            attempt()


def test_damaged_judgements_and_endpoints_are_told(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text('{"question_id": 1, "tuple": [1, 2]}\n{"question_id": 2}\n')
    with pytest.raises(VlmixError, match="j.jsonl: line 2: .*`tuple`.*remove the line"):
        read_judgements(path)
    with pytest.raises(VlmixError, match="absent.jsonl: No such file"):
        read_judgements(tmp_path / "absent.jsonl")
    with pytest.raises(VlmixError, match="a URL with http:// or https:// is expected"):
        Endpoint("file:///etc/passwd", "m")
    with pytest.raises(VlmixError, match="--judge-model says"):
        Endpoint("http://localhost", "")


def test_the_key_comes_from_the_environment() -> None:
    assert key_from_environment({}) == ""
    assert key_from_environment({"OPENAI_API_KEY": "a"}) == "a"
    assert key_from_environment({"OPENAI_API_KEY": "a", "VLMIX_JUDGE_KEY": "b"}) == "b"


# The key, redirects and replies that break off

KEY = 'sk-"Secret/key\\123'
OUTSIDE = r"(?i)secret"


def judge_error(server: Any, path: Path, **more: Any) -> str:
    """The message of a judging that fails, having looked through the whole chain of exceptions for the key."""
    with pytest.raises(VlmixError) as caught:
        judge(cases(1), wild_scores, server.endpoint(key=KEY, **more), path)
    error: BaseException | None = caught.value
    while error is not None:
        assert not re.search(OUTSIDE, f"{error!r} {error}")
        error = error.__cause__ or error.__context__
    return str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int, tmp_path: Path, serve: Any) -> None:
    other = serve(lambda body, number: "1 2")
    elsewhere = other.url.replace("127.0.0.1", "localhost") + "/x"
    server = serve(lambda body, number: (status, b"", {"Location": elsewhere}))
    seen: list[str] = []
    for connection in (other, server):
        connection._server.RequestHandlerClass.do_GET = lambda handler: seen.append(handler.path)
    said = judge_error(server, tmp_path / "j.jsonl")
    assert f"it redirects to 'localhost' ({status}), which is not followed" in said and "\n" not in said
    assert (len(server.requests), len(other.requests), seen) == (1, 0, [])


@pytest.mark.parametrize(
    "form",
    [
        str,
        lambda key: json.dumps(key),
        lambda key: json.dumps(key).replace("/", "\\/"),
        lambda key: "".join(f"\\u{ord(letter):04x}" for letter in key),
        lambda key: urllib.parse.quote(key, safe=""),
        lambda key: base64.b64encode(key.encode()).decode(),
        lambda key: "x" * 472 + key,  # cut short inside the key
    ],
)
@pytest.mark.parametrize("status", [200, 401, 500])
def test_an_echoed_key_is_not_repeated(form: Any, status: int, tmp_path: Path, serve: Any) -> None:
    echoed = form(KEY)
    server = serve(lambda body, number: (status, f"your key is {echoed} .".encode(), {}))
    said = judge_error(server, tmp_path / "j.jsonl", attempts=1)
    assert echoed not in said
    assert not any(echoed[start : start + 9] in said for start in range(max(0, echoed.find("sk-")), len(echoed) - 8))
    assert set(server.keys) == {f"Bearer {KEY}"}


def test_the_key_is_in_no_judgement(tmp_path: Path, serve: Any) -> None:
    path = tmp_path / "j.jsonl"
    server = serve(lambda body, number: f"1 2\nYou sent {KEY}.")
    found = judge(cases(1), wild_scores, server.endpoint(key=KEY), path)
    assert found["0"].content == "1 2\nYou sent ***." and found["0"].tuple == [1.0, 2.0]
    assert "ecret" not in path.read_text()
    assert "ecret" not in repr(server.endpoint(key=KEY))


def test_space_around_a_key_is_dropped(tmp_path: Path, serve: Any) -> None:
    server = serve(lambda body, number: "1 2")
    judge(cases(1), wild_scores, server.endpoint(key=" abc\r\n"), tmp_path / "j.jsonl")
    assert server.keys == ["Bearer abc"]


@pytest.mark.parametrize("key", ["Secret\nX-Other: 1", "Secret\x00", "Secret key", "Secré"])
def test_a_key_that_no_header_carries_is_refused_unseen(key: str) -> None:
    with pytest.raises(VlmixError, match="VLMIX_JUDGE_KEY or OPENAI_API_KEY to the key alone") as caught:
        Endpoint("http://localhost", "m", key)
    assert not re.search(OUTSIDE, str(caught.value)) and "Secr" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:80a/v1",
        "http://a b/v1",
        "http://[::1",
        "http://",
        "http://h:99999",
        "http://h/\n",
        "http://h/v1?x=1",
    ],
)
def test_a_url_that_is_none_is_told_at_once(url: str) -> None:
    with pytest.raises(VlmixError, match=r"^judge '.*a URL .*is expected, such as http://localhost:8000/v1$"):
        Endpoint(url, "m")


@pytest.mark.parametrize("host", ["localhost", "localhost:80a", "a b", "[::1"])
@pytest.mark.parametrize("password", ["Secret", "Se/Secret"])
def test_a_password_in_the_url_is_refused_unseen(password: str, host: str) -> None:
    with pytest.raises(VlmixError, match="its URL holds a user or a password; the key goes into VLMIX_") as caught:
        Endpoint(f"http://me:{password}@{host}/v1", "m")
    assert not re.search(OUTSIDE, str(caught.value))


_OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        _OK + b"Transfer-Encoding: chunked\r\n\r\n40\r\nhalf",
        b"HTTP/1.1 500 Broken\r\nTransfer-Encoding: chunked\r\n\r\n40\r\nhalf",
        b"nonsense\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        _OK + b"X: " + b"y" * 70_000 + b"\r\n\r\n",
        _OK + b"\r\n" + b"[" * 200_000,
        _OK + b'\r\n{"choices": [{"message": {"content": "1 2 \\ud800"}}]}',
        b"",
    ],
    ids=["cut", "cut error", "no status", "protocol", "long line", "nested", "surrogate", "nothing"],
)
def test_a_judge_that_breaks_off_is_asked_again(raw: bytes, tmp_path: Path, serve: Any) -> None:
    content = json.dumps({"choices": [{"message": {"content": "1 2"}}]}).encode()
    server = serve(lambda body, number: (200, content, {}))
    handler: Any = server._server.RequestHandlerClass
    usual = handler.do_POST
    asked: list[int] = []

    def first_break_off(self: Any) -> None:
        asked.append(1)
        if len(asked) > 1:
            usual(self)
            return
        self.rfile.read(int(self.headers["Content-Length"]))
        self.close_connection = True
        self.wfile.write(raw)

    handler.do_POST = first_break_off
    found = judge(cases(1), wild_scores, server.endpoint(), tmp_path / "j.jsonl")
    assert found["0"].tuple == [1.0, 2.0] and len(asked) == 2
    handler.do_POST = lambda self: (self.rfile.read(int(self.headers["Content-Length"])), self.wfile.write(raw))
    with pytest.raises(VlmixError, match=r"tried 2 times\); 0 of 1 judgements"):
        judge(cases(1), wild_scores, server.endpoint(attempts=2), tmp_path / "k.jsonl")


# LLaVA-1.5-13B's answers as GPT-4 graded them for the paper (eval.zip, results/llava-v1.5-13b_gpt-4-grade-1runs.json):
# tenths of question 0, 1, 2 …, X for ten.
PUBLISHED_GRADES = (
    "0000000000 0000000XX0 X000X0X0X0 0X000X05X1 XX00000005 XXX000050X 00000000X0 0XXXXXX000 X0010X0009 X13XX030X5 "
    "00050X0X00 XXX0XXXXXX X0XXXXXXXX X0XXXXXX0X 75X0977720 0700727200 0610330200 0002060033 2630120000 2062600300 "
    "0040001062 22206667"
)


def test_published_grades_come_out_at_the_published_score(tmp_path: Path) -> None:
    tenths = [10 if digit == "X" else int(digit) for digit in PUBLISHED_GRADES.replace(" ", "")]
    assert len(tenths) == 218
    grades = {
        f"v1_{n}": {"model": ["gpt-4"], "content": [str(t / 10)], "score": [t / 10]} for n, t in enumerate(tenths)
    }
    question = {"imagename": "x.png", "question": "?", "answer": "a", "capability": ["rec"]}
    data = dump(tmp_path / "mm-vet.json", {f"v1_{n}": question for n in range(218)})
    given = answers(dict.fromkeys(range(218), "x"))
    benchmark = known_benchmarks()["mm-vet"]
    saved = benchmark.saved_judgements(given, data, dump(tmp_path / "grades.json", grades))
    assert benchmark.score(given, data, judgements=saved).score == 36.1


# GPT-4's reviews of LLaVA-1.5 (haotian-liu/LLaVA, llava-bench-in-the-wild/reviews): GPT-4's score/the model's score of
# question 0, 1, 2 … in each of three evaluations. docs/MODEL_ZOO.md there has the means of the three, 72.5 and 65.4.
WILD_CATEGORIES = "vdccvvdcdccvvcdcvdcdcvcccdcvvvdcvcccvdcdcvcvcdcdcvcvdcvdcdcc"  # conVersation, Detail, Complex
PUBLISHED_REVIEWS = {
    "13b": (
        "8/10 9/6.5 8/6 9/8.5 9/2 9/2 9/6 8/7.5 9/7 8/9 8/9 10/10 8/9 9/7 8/3 8/9 9/8.5 9/6 9/8.5 8/4 9/8.5 8/9 "
        "8/7.5 9/7.5 9/8.5 9/6 8/7 9/9 10/10 9/2 9/3 8/5 10/10 9/7.5 6/9 9/6 8/4 9/3 9/4 9/3 9/2 9/1 9/6 9/7 9/7 "
        "9/2 9/6 8/5 9/5 4/6 9/6 9/1 9/5 8/9 10/10 9/6 9/7 9/4 9/9 8/6",
        "7/9 9/6 8/6 9/8.5 9/2 9/1 9/4 8/7.5 9/7 8/9 8/9 10/10 8/9 9/7 9/4 8/9 9/9 9/6.5 9/9 9/6 9/8.5 8/9 8/7 "
        "9/7.5 9/8.5 9/6 8/7 9/9 9/9 9/1 9/2 8/6 10/10 9/7 6/9 9/6 8/4 9/3 9/4 9/3 9/2 9/2 9/6 9/7 9/7 9/2 9/7 "
        "8/5 9/6 4/6 9/6.5 9/2 9/4 8/9 10/10 9/6 9/7 9/4 9/9 8/5",
        "7/9 9/6 8/6 9/8.5 9/2 9/2 9/4 8/7 9/7 8/9.5 8/9 10/10 8/9 9/7 8/4 8/9 9/9 9/6 9/8.5 9/4 9/8.5 8/9 8/7.5 "
        "9/7.5 9/8.5 9/6 8/7 9/9 9/9 9/2 9/3 8/6 10/10 9/7.5 6/8 9/6 9/4 9/3 9/4 9/4 9/2 9/2 9/6 9/7 9/7 8/3 9/6 "
        "9/4 9/6 6/4 9/6.5 9/1 9/4 8/9 10/10 9/6 9/7 9/4 9/9 8/6",
    ),
    "7b": (
        "7/9 8/6 8/6 9/8 9/2 9/2 9/2 8/7.5 9/6 8/9 9/8.5 10/10 8/6 9/7 8/7 8/9 9/8.5 9/5 9/7.5 9/4 9/7.5 9/2 "
        "8/7.5 9/7.5 9/8 8/5 8/6 9/9 9/2 9/2 9/4 8/6 10/10 9/6.5 5/7 9/6 9/4 9/2 9/2 9/3 9/3 9/2 9/4 9/6 9/6 9/2 "
        "9/6 9/2 9/7 7/4 9/6 9/1 9/3 8/7 10/10 9/6 9/7 9/6 9/9 8/4",
        "7/9 8/6 8/6 9/8.5 9/2 9/3 9/2 8/9 9/6 8/9 9/8.5 10/10 8/6 9/6.5 9/8 8/9 9/8.5 9/4 9/7.5 9/4 9/8 9/1 "
        "8/7.5 9/7.5 9/8 9/5 8/6 9/9 9/2 9/2 9/3 8/6 10/10 9/6.5 4/8 9/6 8/4 9/4 9/3 9/4 9/3 9/2 9/3 9/6 9/5 9/2 "
        "9/6 9/2 9/7 7/3 9/6 9/1 9/3 8/7 10/10 9/6 9/7 9/6 9/9 8/4",
        "8/10 8/6 8/6 9/8 9/2 9/1 9/2 8/9 9/6 8/9 9/8.5 10/10 8/6 9/7 8/7 8/9 9/8.5 9/6 9/7.5 9/4 9/7.5 9/2 8/7.5 "
        "9/8 9/8 9/6 8/6 9/9 9/2 9/1 9/4 8/6 10/10 9/6.5 5/8 9/6 8/4 9/3 9/3 9/3 9/3 9/2 9/4 9/6 9/6 9/3 9/6 8/2 "
        "9/7 6/4 9/6 9/1 9/3 8/7 10/10 9/6 9/7 9/6 8/9 8/4",
    ),
}


@pytest.mark.parametrize(
    ("size", "scores", "published"), [("13b", [72.8, 72.7, 72.1], 72.5), ("7b", [64.7, 65.3, 66.3], 65.4)]
)
def test_published_reviews_come_out_at_the_published_score(
    size: str, scores: list[float], published: float, tmp_path: Path
) -> None:
    names = {"v": "conv", "d": "detail", "c": "complex"}
    categories = [names[letter] for letter in WILD_CATEGORIES]
    assert [categories.count(name) for name in names.values()] == [17, 15, 28]
    asked = [
        {"question_id": n, "image": "001.jpg", "text": "?", "category": category}
        for n, category in enumerate(categories)
    ]
    lines(tmp_path / "questions.jsonl", asked)
    lines(tmp_path / "context.jsonl", [{"image": "001.jpg", "caption": "x"}])
    lines(tmp_path / "answers_gpt4.jsonl", [{"question_id": n, "text": "x"} for n in range(60)])
    given = answers(dict.fromkeys(range(60), "x"))
    benchmark = known_benchmarks()["llava-bench"]
    found = []
    for run in PUBLISHED_REVIEWS[size]:
        pairs = [pair.split("/") for pair in run.split()]
        reviews = [
            {"question_id": n, "category": f"llava_bench_{category}", "tuple": [float(score) for score in pair]}
            for n, (category, pair) in enumerate(zip(categories, pairs, strict=True))
        ]
        lines(tmp_path / "reviews.jsonl", reviews)
        saved = benchmark.saved_judgements(given, tmp_path, tmp_path / "reviews.jsonl")
        found.append(benchmark.score(given, tmp_path, judgements=saved).score)
    assert found == scores
    assert round(sum(found) / len(found), 1) == published
