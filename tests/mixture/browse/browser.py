"""Chromium without a window, driven over a pipe with its own protocol (DevTools): pages, keys, clicks, what it says."""

import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)

_PATIENCE = 60  # seconds
# The browser reads commands from descriptor 3 and answers on 4.
_START = """
import fcntl, os, sys
for number, own in ((3, sys.argv[1]), (4, sys.argv[2])):
    sys.argv[number - 2] = fcntl.fcntl(int(own), fcntl.F_DUPFD, 100)
os.dup2(sys.argv[1], 3)
os.dup2(sys.argv[2], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One page of a browser. `said` are its console's messages and its exceptions."""

    def __init__(self, profile: Path) -> None:
        theirs, self._to = os.pipe()
        self._from, answers = os.pipe()
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        command += [f"--user-data-dir={profile}", "--no-first-run", "--disable-background-networking"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(theirs), str(answers), *command],
            pass_fds=(theirs, answers),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(answers)
        self._number, self._held, self._session = 0, b"", ""
        self.said: list[str] = []
        self.events: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                return dict(answer["result"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._held:
            assert select.select([self._from], [], [], _PATIENCE)[0], "Chromium does not answer"
            self._held += os.read(self._from, 1 << 20)
        message, _, self._held = self._held.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        name, inside = answer.get("method", ""), answer.get("params", {})
        self.events.append(name)
        if name == "Runtime.exceptionThrown":
            self.said.append(json.dumps(inside["exceptionDetails"]))
        if name == "Runtime.consoleAPICalled":
            self.said.append(json.dumps(inside["args"]))
        if name == "Log.entryAdded":
            self.said.append(inside["entry"]["text"])
        return answer

    def open(self, url: str, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url="about:blank")  # so that a change of the fragment alone is a new page, too
        self.events.clear()
        self.call("Page.navigate", url=url)
        self.loaded(url)

    def loaded(self, url: str = "") -> None:
        """Waits until the page (of that address) is there."""
        where = url.partition("#")[0]
        end = time.monotonic() + 60
        while True:
            state = self.js("[document.readyState, location.href.split('#')[0]]")
            if state[0] == "complete" and (not where or state[1] == where):
                return
            assert time.monotonic() < end, f"{url} did not load: {state}"
            time.sleep(0.02)

    def js(self, expression: str) -> Any:
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def key(self, key: str, text: str = "") -> None:
        codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Escape": 27, "Enter": 13}
        code = codes.get(key, ord(key.upper()[0]))
        text = text or {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=text, windowsVirtualKeyCode=code)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """A real click in the middle of an element."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.js(f"{found}.scrollIntoView({{block: 'center'}})")
        x, y = self.js(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({found}.getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def shot(self, path: Path) -> None:
        import base64

        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
