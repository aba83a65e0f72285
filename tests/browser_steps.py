"""The front end in headless Chromium, driven over its remote debugging; `test_browser.py` runs this.

    python browser_steps.py TASK.json

Run by ComfyUI's own Python, because the one package that this needs, aiohttp, is part of every ComfyUI. The task:

    chromium, address, out   the program, the server's address, the folder for pictures and `answers.json`
    workflows                {name: file} to open, one after the other, each in a page of its own
    run                      {name: {node type: {widget: value}}}: set these and then press Run

For each workflow the answer holds what the page made of it: its nodes, its prompt, messages and errors, and, if it
was run, the entry in the server's history and the values of the progress bar.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import subprocess
import sys
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
# A new user is greeted by dialogs that would lie over the graph.
USER_SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.InstalledVersion": "9.9.9",
    "Comfy.Release.Status": "skipped",
    "Comfy.Release.Timestamp": int(time.time() * 1000),
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Workflow.Persist": False,
}
# What an earlier page left there would open again, a banner for new users would take room, and a page with changes
# asks before it is left.
FORGET = """localStorage.clear(); sessionStorage.clear(); localStorage.vueNodesBannerDismissed = 'true'
    addEventListener('beforeunload', event => event.stopImmediatePropagation(), true)"""

READY = "!!(window.app?.graph && app.extensionManager && window.LiteGraph?.registered_node_types?.AdcVSR_LoadModel)"
LOOK = """(async () => ({
    nodes: app.graph._nodes.map(node => ({
        id: node.id, type: node.type, known: node.type in LiteGraph.registered_node_types, red: !!node.has_errors,
        pos: [...node.pos], size: [...node.size], least: [...node.computeSize()],
        widgets: (node.widgets ?? []).map(each => [each.name, typeof each.value == 'object' ? null : each.value])})),
    prompt: (await app.graphToPrompt()).output,
    dialogs: [...document.querySelectorAll('[role=dialog], [role=alert]')].map(each => each.innerText.trim())
        .filter(text => text)}))()"""
FIT = """(() => {
    const nodes = app.graph._nodes, edge = (pick, sides) => pick(...nodes.map(sides)), left = 90, top = 120, rest = 70
    const x = edge(Math.min, n => n.pos[0]), y = edge(Math.min, n => n.pos[1] - 30)
    const w = edge(Math.max, n => n.pos[0] + n.size[0]) - x, h = edge(Math.max, n => n.pos[1] + n.size[1]) - y
    const scale = Math.min((innerWidth - left - rest) / w, (innerHeight - top - rest) / h, 1)
    app.canvas.ds.scale = scale
    app.canvas.ds.offset = [left / scale - x, top / scale - y]
    app.canvas.setDirty(true, true)})()"""
LISTEN = """(() => {
    window.heard = {progress: [], previews: 0}
    app.api.addEventListener('progress', each => heard.progress.push([each.detail.value, each.detail.max]))
    app.api.addEventListener('b_preview', () => heard.previews++)})()"""
CHANGE = """(([type, values]) => {
    for (const node of app.graph._nodes.filter(each => each.type == type))
        for (const [name, value] of Object.entries(values)) node.widgets.find(each => each.name == name).value = value
    app.canvas.setDirty(true, true)})"""
RUN_BUTTON = """(() => {
    const found = document.querySelector('[data-testid=queue-button]')
        ?? document.querySelector('.comfyui-queue-button button')
    const box = found?.getBoundingClientRect()
    return box?.width ? [box.x + box.width / 2, box.y + box.height / 2] : null})()"""


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
        """Save what the page shows, with the whole graph in view."""
        await self.evaluate(FIT)
        await asyncio.sleep(1.5)
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


async def history(session: aiohttp.ClientSession, address: str) -> dict:
    async with session.get(f"{address}/history") as answer:
        return await answer.json()


async def press_run(page: Page, session: aiohttp.ClientSession, task: dict, changes: dict) -> dict:
    """Set widgets, press Run, wait for the end and return what came of it."""
    for change in changes.items():
        await page.evaluate(CHANGE, list(change))
    await page.evaluate(LISTEN)
    before, begin = set(await history(session, task["address"])), time.monotonic()
    await page.click(*await page.until(RUN_BUTTON, 30))
    while time.monotonic() - begin < task.get("seconds", 300):
        now = await history(session, task["address"])
        if new := set(now) - before:
            entry = now[new.pop()]
            seconds = round(time.monotonic() - begin, 1)
            return {"history": entry, "seconds": seconds, "heard": await page.evaluate("heard")}
        await asyncio.sleep(0.25)
    raise TimeoutError("the run did not end in time")


async def visit(page: Page, session: aiohttp.ClientSession, task: dict, name: str) -> dict:
    """Open a workflow, look at it, and run it if the task says so."""
    page.errors.clear()
    graph, out = json.loads(Path(task["workflows"][name]).read_text("utf-8")), Path(task["out"])
    await page.send("Page.navigate", url=task["address"])
    await page.until(READY, 90)
    await asyncio.sleep(1)  # the page opens a graph of its own first
    await page.evaluate("([graph, name]) => app.loadGraphData(graph, true, true, name)", [graph, name])
    await asyncio.sleep(0.5)
    answer = await page.evaluate(LOOK)
    await page.picture(out / f"{name}.png")
    if name in task["run"]:
        answer |= await press_run(page, session, task, task["run"][name])
        await asyncio.sleep(1)
        await page.picture(out / f"{name}_done.png")
    return {**answer, "errors": list(page.errors)}


async def main(task: dict) -> None:
    async with aiohttp.ClientSession() as session:
        for key, value in USER_SETTINGS.items():
            async with session.post(f"{task['address']}/settings/{key}", json=value) as answer:
                answer.raise_for_status()
        async with opened_page(session, task["chromium"]) as page:
            answers = {name: await visit(page, session, task, name) for name in task["workflows"]}
    (Path(task["out"]) / "answers.json").write_text(json.dumps(answers, indent=1))


if __name__ == "__main__":
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text("utf-8"))))
