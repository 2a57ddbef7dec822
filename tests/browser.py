"""Open pages in a headless Chromium: `python tests/browser.py FOLDER [--screenshots FOLDER]`, or `make look`.

Every page of the folder is opened at the width of a screen and of a telephone, light and dark. Said are script errors,
anything that is fetched from elsewhere, broken images and links, what is wider than the window, text that is hard to
read on its background, a search that finds nothing, and pages that are not done in time. The exit code is 1 if there
was any of this.
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urldefrag, urlparse

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
PAGE_SECONDS = 30.0
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu-sandbox", "--hide-scrollbars"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-component-update"),
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--allow-file-access-from-files"),
)
LOOK = """(async () => {
  for (let k = 0; k < 2; k++) await new Promise(requestAnimationFrame);  // until what changed is drawn
  const root = document.documentElement, found = [];
  const name = (e) => `<${e.tagName.toLowerCase()} class="${e.getAttribute("class") || ""}"> `
    + JSON.stringify((e.textContent || "").trim().slice(0, 60));
  const scrolls = (e) => e && e !== root && e !== document.body
    && (getComputedStyle(e).overflowX !== "visible" || scrolls(e.parentElement));
  if (root.scrollWidth > root.clientWidth) {
    const wide = [...document.body.querySelectorAll("*")].filter(
      (e) => e.getBoundingClientRect().right > root.clientWidth + 1 && !scrolls(e.parentElement));
    found.push(`${root.scrollWidth - root.clientWidth} px too wide: ${wide.slice(0, 3).map(name).join(", ")}`);
  }
  for (const image of document.images)
    if (image.loading !== "lazy" && !image.naturalWidth) found.push(`no image: ${image.src.slice(0, 100)}`);
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (text) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const known = new Map(), colour = (text) => known.get(text) || known.set(text, rgba(text)).get(text);
  const over = (top, under) => top.slice(0, 3).map((v, k) => v * top[3] + under[k] * (1 - top[3])).concat(1);
  const background = (e) => {
    if (!e) return [255, 255, 255, 1];
    const own = colour(getComputedStyle(e).backgroundColor);
    return own[3] === 1 ? own : over(own, background(e.parentElement));
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const faint = new Map();
  for (const e of document.querySelectorAll("main *, body > *, article *, figcaption, th, td")) {
    if (e.closest("svg, canvas, option, .headerlink") || !e.checkVisibility({opacityProperty: true})) continue;
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    const ground = background(e), text = over(colour(getComputedStyle(e).color), ground);
    const [low, high] = [light(ground), light(text)].sort((a, b) => a - b), ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 3) faint.set(getComputedStyle(e).color, `contrast ${ratio.toFixed(1)}: ${name(e)}`);
  }
  found.push(...faint.values());
  return {found, links: [...document.querySelectorAll("a[href]")].map((a) => a.href),
    anchors: [...document.querySelectorAll("[id], a[name]")].map((e) => e.id || e.name),
    ground: background(document.body).join()};
})()"""
FOUND = """(async () => {
  for (let k = 0; k < 200; k++) {
    const found = document.querySelectorAll(".md-search-result__item").length;
    if (found) return found;
    await new Promise((done) => setTimeout(done, 50));
  }
  return 0;
})()"""


class Browser:
    """One headless Chromium with one tab, driven through the DevTools protocol over a pair of pipes."""

    def __init__(self) -> None:
        if CHROMIUM is None:
            raise RuntimeError("there is no browser here: install chromium")
        self.folder = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        self._start()

    def _start(self) -> None:
        pipes = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for pair in (os.pipe(), os.pipe()) for fd in _closed(pair)]
        its_input, self._writes, self._reads, its_output = pipes
        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={self.folder.name}", "--remote-debugging-pipe"]
        script = f'exec "$@" 3<&{its_input} 4>&{its_output} {its_input}<&- {its_output}>&-'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "browser", *command],
            pass_fds=(its_input, its_output),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(its_input)
        os.close(its_output)
        self._rest, self._count, self.events = b"", 0, []  # type: list[dict[str, Any]]
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self.folder.cleanup()

    def _stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._reads)
        os.close(self._writes)

    def restart(self) -> None:
        """A new process in place of one that no longer answers."""
        self._stop()
        self._start()

    def call(self, method: str, seconds: float = PAGE_SECONDS, **parameters: Any) -> dict[str, Any]:
        """The answer to a command. Raises TimeoutError, or RuntimeError if the browser refuses it."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writes, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + seconds
        while True:
            answer = self._next(end, method)
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])

    def _next(self, end: float, awaited: str) -> dict[str, Any]:
        """The next message; events are kept too."""
        while b"\0" not in self._rest:
            if not select.select([self._reads], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError(f"no {awaited} in time")
            part = os.read(self._reads, 1 << 20)
            if not part:
                raise TimeoutError(f"the browser ended before {awaited}")
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self.events.append(message)
        return message

    def resize(self, width: int, scheme: str = "light", height: int = 900) -> None:
        """The window of a screen, or below 600 pixels that of a telephone, and the colours that its owner prefers."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        wishes = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        self.call("Emulation.setEmulatedMedia", features=[{"name": k, "value": v} for k, v in wishes.items()])

    def open(self, url: str, seconds: float = PAGE_SECONDS) -> None:
        """Load a page; `events` are those since. Raises TimeoutError, or RuntimeError if there is no such page."""
        self.events.clear()
        end = time.monotonic() + seconds
        answer = self.call("Page.navigate", seconds, url=url)
        if "errorText" in answer:
            raise RuntimeError(f"{url}: {answer['errorText']}")
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._next(end, "end of loading")

    def evaluate(self, expression: str, seconds: float = PAGE_SECONDS) -> Any:
        """The value of an expression of JavaScript, awaited. Raises RuntimeError with what it throws."""
        options = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        answer = self.call("Runtime.evaluate", seconds, **options)
        if "exceptionDetails" in answer:
            raise RuntimeError(_told(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """What the window shows, as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def problems(self) -> list[str]:
        """Script errors, what failed to load and what was fetched from elsewhere, since the page was opened."""
        found = []
        for event in self.events:
            method, about = event["method"], event["params"]
            if method == "Runtime.exceptionThrown":
                found.append(f"script: {_told(about['exceptionDetails'])}")
            elif method == "Log.entryAdded" and about["entry"]["level"] == "error":
                found.append(f"error: {about['entry']['text']} {about['entry'].get('url', '')}")
            elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "assert"):
                found.append(f"console: {' '.join(str(a.get('value', a.get('description'))) for a in about['args'])}")
            elif method == "Network.requestWillBeSent":
                url = about["request"]["url"]
                if urlparse(url).scheme not in ("file", "data", "blob"):
                    found.append(f"fetched from elsewhere: {url}")
        return found


def _closed(pair: tuple[int, int]) -> Iterable[int]:
    """Each of a pair of file descriptors, closed once it was used."""
    for fd in pair:
        yield fd
        os.close(fd)


def _told(details: dict[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details.get("text")).partition("\n")[0]


def look(
    browser: Browser, pages: list[Path], screenshots: Path | None = None, seconds: float = PAGE_SECONDS
) -> dict[str, list[str]]:
    """Problems by page; those without any are left out. A page that takes longer has one."""
    found: dict[str, list[str]] = {}
    links: dict[Path, set[str]] = {}
    anchors: dict[Path, set[str]] = {}
    for width in WIDTHS:
        for page in pages:
            told = found.setdefault(str(page), [])
            try:
                told += _look_at(browser, page, width, links, anchors, screenshots, seconds)
            except (TimeoutError, RuntimeError) as problem:
                told.append(f"{width}: {problem}")
                browser.restart()
    for page, targets in links.items():
        for target in sorted(targets):
            url, anchor = urldefrag(target)
            path = Path(unquote(urlparse(url).path))
            if urlparse(url).scheme != "file":
                continue
            if not path.is_file():
                found[str(page)].append(f"link to nothing: {target}")
            elif anchor and unquote(anchor) not in anchors.get(path, {unquote(anchor)}):
                found[str(page)].append(f"link to no place of its page: {target}")
    return {page: told for page, told in found.items() if told}


def _look_at(
    browser: Browser,
    page: Path,
    width: int,
    links: dict[Path, set[str]],
    anchors: dict[Path, set[str]],
    screenshots: Path | None,
    seconds: float,
) -> list[str]:
    """Problems of a page at one width; its links and the places in it are added to those of all."""
    found: list[str] = []
    grounds = []
    for scheme in SCHEMES:
        browser.resize(width, scheme)
        if scheme == SCHEMES[0]:
            browser.open(page.as_uri(), seconds)
        seen = browser.evaluate(LOOK, seconds)
        found += [f"{width} {scheme}: {problem}" for problem in seen["found"]]
        links.setdefault(page, set()).update(seen["links"])
        anchors.setdefault(page, set()).update(seen["anchors"])
        grounds.append(seen["ground"])
        if screenshots is not None:
            name = "-".join(page.with_suffix("").parts[-3:])
            browser.screenshot(screenshots / f"{name}-{width}-{scheme}.png")
    if len(set(grounds)) == 1:
        found.append(f"{width}: as bright in the dark")
    return found + [f"{width}: {problem}" for problem in browser.problems()]


def search(browser: Browser, page: Path, word: str) -> list[str]:
    """What is wrong if the search box of a page, where it has one, finds nothing for a word."""
    browser.resize(WIDTHS[0])
    browser.open(page.as_uri())
    if not browser.evaluate('!!document.querySelector("label[for=__search]")'):
        return []
    browser.evaluate('document.querySelector("label[for=__search]").click()')
    browser.evaluate('document.querySelector("[data-md-component=search-query]").focus()')
    browser.call("Input.insertText", text=word)
    browser.call("Input.dispatchKeyEvent", type="keyUp", key=word[-1])
    return [] if browser.evaluate(FOUND) else [f"the search finds nothing for {word}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with the pages: site, or that of a run")
    parser.add_argument("--screenshots", type=Path, help="folder for a picture of each")
    arguments = parser.parse_args()
    # Servers show 404.html at any address: its links lead from their root.
    pages = sorted(page for page in arguments.folder.resolve().rglob("*.html") if page.name != "404.html")
    if not pages:
        sys.exit(f"no pages in {arguments.folder}: make docs")
    if CHROMIUM is None:
        print("no browser here (chromium): nothing is looked at")
        return
    if arguments.screenshots is not None:
        arguments.screenshots.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with Browser() as browser:
        found = look(browser, pages, arguments.screenshots)
        if told := search(browser, pages[0], "energy"):
            found.setdefault(str(pages[0]), []).extend(told)
    for page, problems in found.items():
        print(page, *problems, sep="\n    ")
    print(f"{len(pages)} pages at {len(WIDTHS)} widths, light and dark: problems on {len(found)}", end="")
    print(f" ({time.monotonic() - start:.0f} s)")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
