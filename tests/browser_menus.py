"""What the front end shows of the pack around the graph: help pages, the list of templates, names in Chinese."""

import asyncio
import json
from pathlib import Path

import aiohttp
from browser_comfy import open_graph, picture, set_settings
from browser_page import Page

EXAMPLE = "quick_upscale"
SELECT = """type => {
    app.canvas.selectNode(app.graph._nodes.find(each => each.type == type))
    app.canvas.setDirty(true, true)}"""
INFO_BUTTON = """(() => {
    const found = document.querySelector('[data-testid=info-button], button:has(i[class*="lucide--info"])')
    const box = found?.getBoundingClientRect()
    return box?.width ? [box.x + box.width / 2, box.y + box.height / 2] : null})()"""
HELP = """title => {
    const head = [...document.querySelectorAll('h1')].find(each => each.innerText.trim() == title)
    const page = head?.parentElement, pictures = [...page?.querySelectorAll('img') ?? []]
    return pictures.length && pictures.every(each => each.naturalWidth) && head.getBoundingClientRect().width
        ? {text: page.innerText, pictures: pictures.map(each => each.naturalWidth)} : null}"""
# A card's name stands alone in an element; its picture is above it.
CARDS = """names => {
    const leaves = [...document.querySelectorAll('[role=dialog] *')].filter(each => !each.children.length)
    return names.filter(name => leaves.some(each => each.innerText?.trim() == name))}"""
CARD = """name => {
    const leaves = [...document.querySelectorAll('[role=dialog] *')].filter(each => !each.children.length)
    const found = leaves.find(each => each.innerText?.trim() == name)
    found?.scrollIntoView({block: 'center'})
    const box = found?.getBoundingClientRect()
    return box?.width ? [box.x + box.width / 2, box.y - 40] : null}"""
PICTURES = (
    """[...document.querySelectorAll('[role=dialog] img')].map(each => [each.naturalWidth, each.naturalHeight])"""
)
NAMES = """app.graph._nodes.filter(each => each.type.startsWith('AdcVSR_')).map(each => ({
    type: each.type, title: each.title, outputs: each.outputs.map(one => one.label ?? one.localized_name ?? one.name),
    inputs: Object.fromEntries(each.inputs.map(one => [one.name, one.label ?? one.localized_name ?? one.name]))}))"""


async def help_page(page: Page, task: dict, kind: str, title: str) -> dict:
    """Select a node, press its info button and return what the help panel shows."""
    await page.evaluate(SELECT, kind)
    await page.click(*await page.until(INFO_BUTTON, 30))
    await page.until(f"({HELP})({json.dumps(title)})", 30)
    await asyncio.sleep(1)
    await page.picture(Path(task["out"]) / f"help_{kind}.png")
    return await page.evaluate(HELP, title)


async def templates(page: Page, task: dict) -> dict:
    """Open the list of templates, then one of them by a click; return the names and picture sizes in the list."""
    names = sorted(task["workflows"])
    await page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    await page.until(f"({CARDS})({json.dumps(names)}).length == {len(names)}", 30)
    await asyncio.sleep(2)
    await page.picture(Path(task["out"]) / "templates.png")
    found = {"names": await page.evaluate(CARDS, names), "pictures": await page.evaluate(PICTURES)}
    await page.evaluate("app.graph.clear()")
    await page.until(f"({CARD})({json.dumps(EXAMPLE)})", 10)
    await asyncio.sleep(0.5)  # until it is scrolled
    await page.click(*await page.evaluate(CARD, EXAMPLE))
    await page.until("app.graph._nodes.length", 30)
    return {**found, "opened": await page.evaluate("app.graph._nodes.map(each => each.type)")}


async def look(page: Page, session: aiohttp.ClientSession, task: dict) -> dict:
    """Return what the menus show, and the front end's version."""
    graph, address = json.loads(Path(task["workflows"][EXAMPLE]).read_text("utf-8")), task["address"]
    await open_graph(page, address, graph, EXAMPLE)
    titles = {each["type"]: each["title"] for each in await page.evaluate(NAMES)}
    helps = {kind: await help_page(page, task, kind, titles[kind]) for kind in ("AdcVSR_Upscale", "AdcVSR_Compare")}
    version = await page.evaluate("window.__COMFYUI_FRONTEND_VERSION__")
    await open_graph(page, address, graph, EXAMPLE)
    listed = await templates(page, task)
    await set_settings(session, address, {"Comfy.Locale": "zh"})
    await open_graph(page, address, graph, EXAMPLE)
    chinese = await page.evaluate(NAMES)
    await picture(page, Path(task["out"]) / "chinese.png")
    await set_settings(session, address, {"Comfy.Locale": "en"})
    return {"version": version, "help": helps, "templates": listed, "chinese": chinese}
