"""A page of a headless Chromium, driven over its remote debugging. Knows nothing about ComfyUI.

Used by scripts that ComfyUI's own Python runs: the one package that this needs, aiohttp, is part of every ComfyUI.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import subprocess
import tempfile
import time
from pathlib import Path

import aiohttp

WIDTH, HEIGHT = 1600, 900
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-extensions", "--remote-debugging-port=0", f"--window-size={WIDTH},{HEIGHT}"),
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # the page reaches nothing but the server
)
# What an earlier page left there would open again, a banner for new users would take room, and a page with changes
# asks before it is left.
FORGET = """localStorage.clear(); sessionStorage.clear(); localStorage.vueNodesBannerDismissed = 'true'
    addEventListener('beforeunload', event => event.stopImmediatePropagation(), true)"""


class Page:
    """A page of the browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.waiting: dict[int, asyncio.Future] = {}
        self.errors: list[str] = []
        self.numbers = itertools.count(1)
        self.reader = asyncio.create_task(self.read())

    async def read(self) -> None:
        """Give answers to who waits for them and keep what the page throws."""
        async for message in self.socket:
            data = json.loads(message.data)
            if "id" in data:
                self.waiting.pop(data["id"]).set_result(data)
            elif data.get("method") == "Runtime.exceptionThrown":
                thrown = data["params"]["exceptionDetails"]
                self.errors.append(thrown.get("exception", {}).get("description") or thrown["text"])

    async def send(self, method: str, **parameters) -> dict:
        """Send a command and return its result."""
        number = next(self.numbers)
        future = self.waiting[number] = asyncio.get_running_loop().create_future()
        await self.socket.send_json({"id": number, "method": method, "params": parameters})
        answer = await asyncio.wait_for(future, 90)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    async def evaluate(self, script: str, argument=None):
        """Return the value of an expression; with an argument, that of the function that the expression is."""
        script = script if argument is None else f"({script})({json.dumps(argument)})"
        answer = await self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description", script))
        return answer["result"].get("value")

    async def until(self, script: str, seconds: float):
        """Wait until an expression is true and return its value."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(RuntimeError):  # the page is still being loaded
                if value := await self.evaluate(script):
                    return value
            await asyncio.sleep(0.2)
        raise TimeoutError(f"in {seconds} s this did not come true: {script}; the page said {self.errors}")

    async def picture(self, path: Path) -> None:
        """Save what the page shows."""
        found = await self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(found["data"]))

    async def click(self, x: float, y: float) -> None:
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            await self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


@contextlib.asynccontextmanager
async def opened_page(session: aiohttp.ClientSession, chromium: str):
    """Start the browser and give its page."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [chromium, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        with open(Path(profile) / "log.txt", "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            where = Path(profile) / "DevToolsActivePort"
            for _ in range(300):
                if where.exists() and where.read_text().count("\n"):
                    break
                if process.poll() is not None:
                    break
                await asyncio.sleep(0.1)
            else:
                raise TimeoutError("Chromium did not open its debugging port in 30 s")
            if process.poll() is not None:
                said = (Path(profile) / "log.txt").read_text("utf-8", errors="replace")
                raise RuntimeError(f"{chromium} ended at once: {said[-2000:]}")
            port = where.read_text().split()[0]
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                targets = [each for each in await answer.json(content_type=None) if each["type"] == "page"]
            async with session.ws_connect(targets[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                for domain in ("Page", "Runtime"):
                    await page.send(f"{domain}.enable")
                screen = dict(width=WIDTH, height=HEIGHT, deviceScaleFactor=1, mobile=False)
                await page.send("Emulation.setDeviceMetricsOverride", **screen)
                await page.send("Page.addScriptToEvaluateOnNewDocument", source=FORGET)
                yield page
                page.reader.cancel()
        finally:
            process.terminate()
            process.wait(30)
