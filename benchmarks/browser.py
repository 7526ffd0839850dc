"""A headless Chromium, driven through its DevTools protocol over a pipe, for tests and screenshots; Python alone."""

import base64
import fcntl
import json
import os
import select
import shutil
import tempfile
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATH = next(filter(None, map(shutil.which, NAMES)), None)
"""Path of the browser; None if none is installed."""
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # a page that needs the network fails
)


class Browser:
    """``with Browser() as browser: page = browser.page(url)``; pages share no cookies and no storage."""

    def __enter__(self):
        assert PATH is not None, "no Chromium or Chrome is installed here"
        self._folder = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        ours, theirs = os.pipe(), os.pipe()
        ends = [_high(ours[0]), _high(theirs[1])]
        self._write, self._read = ours[1], theirs[0]
        quiet = [(os.POSIX_SPAWN_OPEN, end, os.devnull, os.O_RDWR, 0) for end in (0, 1, 2)]
        pipes = [(os.POSIX_SPAWN_DUP2, ends[0], 3), (os.POSIX_SPAWN_DUP2, ends[1], 4)]
        command = [PATH, *OPTIONS, f"--user-data-dir={self._folder.name}"]
        self._process = os.posix_spawn(PATH, command, os.environ, file_actions=[*quiet, *pipes])
        for end in ends:
            os.close(end)
        self._number, self._rest, self.heard = 0, b"", []
        self.ask("Browser.getVersion")
        return self

    def __exit__(self, *_):
        self.ask("Browser.close")
        os.waitpid(self._process, 0)
        os.close(self._write)
        os.close(self._read)
        self._folder.cleanup()

    def page(self, url, width=1280, height=900, dark=False, touch=False):
        """Open a page in a browser context of its own."""
        context = self.ask("Target.createBrowserContext")["browserContextId"]
        target = self.ask("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, context)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.ask(f"{domain}.enable")
        page.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.ask("Emulation.setEmulatedMedia", features=[scheme])
        page.ask("Page.navigate", url=url)
        return page

    def ask(self, method, session=None, **parameters):
        """The answer to a command; events before it are added to ``heard``."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        os.write(self._write, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while True:
            if (answer := self._next(60)) is None:
                raise TimeoutError(f"The browser did not answer {method} within a minute.")
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.heard.append(answer)

    def listen(self, seconds):
        """Add the events of the next seconds to ``heard``."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and (event := self._next(left)):
            self.heard.append(event)

    def _next(self, seconds):
        """The next message; None if none arrives within ``seconds``."""
        until = time.monotonic() + seconds
        while b"\0" not in self._rest:
            left = max(0, until - time.monotonic())
            if not select.select([self._read], [], [], left)[0]:
                return None
            if not (more := os.read(self._read, 2**20)):
                raise RuntimeError("The browser has ended.")
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


class Page:
    """One page of a `Browser`."""

    def __init__(self, browser, session, context):
        self._browser, self._session, self._context = browser, session, context

    def ask(self, method, **parameters):
        """The answer to a command for this page."""
        return self._browser.ask(method, self._session, **parameters)

    def run(self, script):
        """The value of a JavaScript expression, awaited if it is a promise."""
        done = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in done:
            raise RuntimeError(f"{script}: {done['exceptionDetails']['exception'].get('description')}")
        return done["result"].get("value")

    def wait(self, script, seconds=60):
        """The value of an expression as soon as it is true."""
        until = time.monotonic() + seconds
        value = f"(() => {{ try {{ const v = {script}; return v instanceof Node || v; }} catch {{ return null; }} }})()"
        while not (result := self.run(value)):
            if time.monotonic() > until:
                raise TimeoutError(f"Not true within {seconds} s: {script}. The page says: {self.text()[:2000]}")
            self._browser.listen(0.1)
        return result

    def text(self):
        """The text of the page."""
        return self.run("document.body ? document.body.innerText : ''")

    def press(self, selector):
        """Click on an element."""
        self.wait(f"document.querySelector({json.dumps(selector)})")
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def type(self, selector, text):
        """Replace the text of an input or a text area, as keys do."""
        self.wait(f"document.querySelector({json.dumps(selector)})")
        self.run(f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.focus(); e.select(); }})()")
        self.ask("Input.insertText", text=text)

    def key(self, name, code):
        """Press and release a key, such as Enter, 13."""
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code)

    def downloads(self, folder):
        """Write the page's downloads to a folder, under their own names."""
        how = {"behavior": "allow", "browserContextId": self._context, "downloadPath": str(folder)}
        self._browser.ask("Browser.setDownloadBehavior", **how)

    def picture(self, path, *, whole=False):
        """Write a screenshot as PNG; whole: of the page beyond the window's lower edge."""
        screenshot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(screenshot["data"]))

    @property
    def console(self):
        """Warnings and errors of the page so far, with those of loading and running it."""
        messages = []
        for kind, event in self._events():
            if kind == "Runtime.exceptionThrown":
                details = event["exceptionDetails"]
                messages.append(details.get("exception", {}).get("description") or details["text"])
            elif kind == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning", "assert"):
                words = [str(word.get("value", word.get("description"))) for word in event["args"]]
                messages.append(" ".join(words))
            elif kind == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
                messages.append(f"{event['entry']['text']} {event['entry'].get('url', '')}")
        return messages

    @property
    def requested(self):
        """Every address that the page has requested."""
        return [event["request"]["url"] for kind, event in self._events() if kind == "Network.requestWillBeSent"]

    def _events(self):
        self._browser.listen(0.2)
        return [
            (event["method"], event["params"])
            for event in self._browser.heard
            if event.get("sessionId") == self._session
        ]


def _high(end):
    """The same end of a pipe under a number above 9, because the browser uses 3 and 4."""
    number = fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(end)
    return number
