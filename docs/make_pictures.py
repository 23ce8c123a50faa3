"""Make the pictures of README.md from real sessions: commands in a terminal, and their runs in the MLflow UI.

Run ``make demo`` first, then ``.venv/bin/python docs/make_pictures.py``, which trains once more so that MLflow has two
trainings to show. Needs tmux, chromium and a monospaced font such as DejaVu. ``--only train``, ``--only scores`` and
``--only mlflow`` make a part of the pictures.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp
from PIL import Image
from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

from dmx.tracking.location import embedded_uri, experiment_link, run_link
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.ui import free_port, serving

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
COLUMNS, LINES = 108, 50
_MOST_BYTES = 250_000
_MENU = 202  # pixels of the menu at the left of MLflow's pages
_FIGURE = "figures/overlay_stroke_0014.png"
# MLflow opens a panel for a language model on the first visit, beside which the table has no room.
_NO_PANEL = """
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
"""
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--no-proxy-server",
    "--remote-debugging-port=0",
)


class Terminal:
    """A shell in tmux, which keeps the screen as a person would see it."""

    def __init__(self, lines: int = LINES) -> None:
        self._lines = lines
        self._name = f"dmx-pictures-{os.getpid()}"

    def __enter__(self) -> Self:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._tmux("new-session", "-d", "-x", str(COLUMNS), "-y", str(self._lines), "-c", str(ROOT),
                   "env", f"PATH={path}", "PS1=$ ", "TERM=xterm-256color", "bash", "--norc")  # fmt: skip
        self._tmux("set-option", "-g", "status", "off")
        return self

    def __exit__(self, *_: object) -> None:
        self._tmux("kill-server")

    def _tmux(self, *words: str) -> str:
        command = ["tmux", "-L", self._name, "-f", "/dev/null", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def type(self, command: str) -> None:
        """Type a command and press Enter."""
        self._tmux("send-keys", "-l", command)
        self._tmux("send-keys", "Enter")

    def screen(self) -> str:
        """Return what is on the screen, with its colors."""
        return self._tmux("capture-pane", "-e", "-p").rstrip()

    def wait(self, pattern: str, seconds: float = 1800) -> str:
        """Return the screen as soon as it holds a pattern."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            screen = self.screen()
            if re.search(pattern, Text.from_ansi(screen).plain, re.MULTILINE):
                return screen
            time.sleep(0.2)
        raise TimeoutError(f"'{pattern}' did not appear within {seconds} s:\n{self.screen()}")


def screen_svg(screen: str, title: str) -> str:
    """Draw a screen as a window, with fonts of this machine."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(screen), soft_wrap=True)
    svg = console.export_svg(title=title, theme=DIMMED_MONOKAI)
    return re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)


class Browser:
    """A page of Chromium, spoken to through its DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0

    async def call(self, method: str, **params: object) -> Any:
        """Call a method and return its result."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        while True:
            answer = json.loads((await self._socket.receive()).data)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    async def run(self, script: str) -> Any:
        """Run JavaScript in the page and return its value."""
        answer = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        return answer["result"].get("value")

    async def open(self, address: str, size: tuple[int, int], *texts: str) -> None:
        """Open a page of a size in pixels, and wait until it shows some texts."""
        width, height = size
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        await self.call("Page.navigate", url=address)
        for text in texts:
            await self.until(f"document.body && document.body.innerText.includes({json.dumps(text)})")

    async def until(self, condition: str, seconds: float = 60) -> None:
        """Wait until a condition in JavaScript holds."""
        deadline = time.monotonic() + seconds
        while not await self.run(f"Boolean({condition})"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{condition} did not come true; the page says:\n{await self.run(_PAGE_TEXT)}")
            await asyncio.sleep(0.3)

    async def save(self, name: str, *, left: int = 0) -> None:
        """Write the page as a PNG file, without ``left`` pixels at its left."""
        await asyncio.sleep(2)
        width, height = await self.run("[innerWidth, innerHeight]")
        clip = {"x": left, "y": 0, "width": width - left, "height": height, "scale": 1}
        answer = await self.call("Page.captureScreenshot", format="png", clip=clip)
        data = _with_palette(base64.b64decode(answer["data"]))
        if len(data) > _MOST_BYTES:
            raise ValueError(f"{name} has {len(data)} bytes; a picture has at most {_MOST_BYTES}.")
        (IMAGES / name).write_bytes(data)
        print(f"docs/images/{name}: {width - left} x {height}, {len(data) // 1000} kB")


def _with_palette(png: bytes) -> bytes:
    """Return a picture with at most 256 colors, which takes a third of the bytes."""
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(256)
    smaller = io.BytesIO()
    picture.save(smaller, "PNG", optimize=True)
    return smaller.getvalue()


_CLICK = 'document.querySelectorAll("{selector}").forEach(button => button.click())'
_PAGE_TEXT = "document.body.innerText.slice(0, 2000)"


@contextmanager
def chromium() -> Iterator[int]:
    """Run Chromium without a window; yield the port of its DevTools."""
    with tempfile.TemporaryDirectory() as profile:
        process = subprocess.Popen(
            ["chromium", *_FLAGS, f"--user-data-dir={profile}", "about:blank"], stderr=subprocess.DEVNULL
        )
        try:
            port = Path(profile) / "DevToolsActivePort"
            while not (port.is_file() and port.read_text().strip()):
                if process.poll() is not None:
                    raise RuntimeError("chromium did not start")
                time.sleep(0.1)
            yield int(port.read_text().split()[0])
        finally:
            process.terminate()
            process.wait()


async def draw_screen(browser: Browser, name: str, screen: str) -> None:
    """Write the picture of a screen."""
    svg = screen_svg(screen, "dmx")
    width, height = (round(float(word)) for word in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0])
    background = DIMMED_MONOKAI.background_color.hex
    page = f"<meta charset='utf-8'><body style='margin:0;background:{background}'>{svg}</body>"
    await browser.open("data:text/html;base64," + base64.b64encode(page.encode()).decode(), (width, height))
    await browser.save(name)


async def draw_training(browser: Browser) -> None:
    """Write the picture of a training, late in its last epoch but one."""
    with Terminal() as terminal:
        terminal.wait(r"^\$$")
        terminal.type("dmx train experiments/demo/stroke.yaml")
        screen = terminal.wait(r"^Epoch 6/7 .* [3-6]\d/75 .* left")
        await draw_screen(browser, "terminal-train.png", screen)
        terminal.wait(r"^Look: ")


async def draw_scores(browser: Browser) -> None:
    """Write the picture of an evaluation and the list of runs."""
    with Terminal() as terminal:
        terminal.wait(r"^\$$")
        terminal.type("dmx evaluate --from-run demo/last")
        terminal.wait(r"evaluation/cases.csv\n\$$")
        terminal.type("dmx runs list")
        screen = terminal.wait(r"run +name(.|\n)*\n\$")
        await draw_screen(browser, "terminal-scores.png", screen.removesuffix("$").rstrip())


async def draw_pages(browser: Browser) -> None:
    """Write the pictures of the MLflow UI: the experiment's runs, and a figure of the last evaluation."""
    await browser.call("Page.enable")
    await browser.call("Page.addScriptToEvaluateOnNewDocument", source=_NO_PANEL)
    uri = embedded_uri(ROOT)
    last = open_store(uri).list_runs(experiment="demo", tags={"dmx.kind": "evaluate"}, limit=1)[0]
    with serving(uri, free_port(5300)) as base:
        await browser.open(experiment_link(base, last.experiment_id), (_MENU + 1106, 620), "Run Name", "matching runs")
        await browser.run(_CLICK.format(selector="[aria-label='Hide banner']"))
        await browser.run(_CLICK.format(selector="button[data-component-id*=runnamecellrenderer]"))
        await browser.until(f"document.body.innerText.includes({json.dumps(last.name)})")
        await browser.save("mlflow-runs.png", left=_MENU)
        figure = run_link(base, last.experiment_id, last.id).replace("?", f"/artifacts/{_FIGURE}?")
        await browser.open(figure, (_MENU + 1106, 745), "Artifacts", "confusion.png")
        await browser.until("[...document.images].some(image => image.naturalWidth > 500)")
        await browser.save("mlflow-evaluation.png", left=_MENU)


_PARTS = {"train": draw_training, "scores": draw_scores, "mlflow": draw_pages}


async def draw(parts: list[str]) -> None:
    """Make the pictures."""
    IMAGES.mkdir(exist_ok=True)
    with chromium() as port:
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                page = next(item for item in await answer.json() if item["type"] == "page")
            async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                browser = Browser(socket)
                for part in parts:
                    await _PARTS[part](browser)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=_PARTS)
    only = parser.parse_args().only
    asyncio.run(draw([only] if only else list(_PARTS)))
