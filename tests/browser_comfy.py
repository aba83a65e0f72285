"""ComfyUI's front end in a page: waiting for it, opening graphs, changing its settings, taking its picture."""

import asyncio
import time
from pathlib import Path

import aiohttp
from browser_page import Page

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
READY = "!!(window.app?.graph && app.extensionManager && window.LiteGraph?.registered_node_types?.AdcVSR_LoadModel)"
FIT = """(() => {
    const nodes = app.graph._nodes, edge = (pick, sides) => pick(...nodes.map(sides)), left = 90, top = 120, rest = 70
    const x = edge(Math.min, n => n.pos[0]), y = edge(Math.min, n => n.pos[1] - 30)
    const w = edge(Math.max, n => n.pos[0] + n.size[0]) - x, h = edge(Math.max, n => n.pos[1] + n.size[1]) - y
    const scale = Math.min((innerWidth - left - rest) / w, (innerHeight - top - rest) / h, 1)
    app.canvas.ds.scale = scale
    app.canvas.ds.offset = [left / scale - x, top / scale - y]
    app.canvas.setDirty(true, true)})()"""


async def set_settings(session: aiohttp.ClientSession, address: str, settings: dict) -> None:
    """Change settings of the one user, for the next page that is opened."""
    for key, value in settings.items():
        async with session.post(f"{address}/settings/{key}", json=value) as answer:
            answer.raise_for_status()


async def open_graph(page: Page, address: str, graph: dict, name: str) -> None:
    """Open the front end anew and a graph in it."""
    page.errors.clear()
    await page.send("Page.navigate", url=address)
    await page.until(READY, 90)
    await asyncio.sleep(1)  # the page opens a graph of its own first
    await page.evaluate("([graph, name]) => app.loadGraphData(graph, true, true, name)", [graph, name])
    await asyncio.sleep(0.5)


async def picture(page: Page, path: Path) -> None:
    """Save what the page shows, with the whole graph in view."""
    await page.evaluate(FIT)
    await asyncio.sleep(1.5)
    await page.picture(path)
