"""The examples in the front end in headless Chromium, and what the page shows of the pack; `test_browser.py` runs this.

    python browser_steps.py TASK.json

Run by ComfyUI's own Python, because the one package that this needs, aiohttp, is part of every ComfyUI. The task:

    chromium, address, out   the program, the server's address, the folder for pictures and `answers.json`
    workflows                {name: file} to open, one after the other, each in a page of its own
    run                      {name: {node type: {widget: value}}}: set these and then press Run

For each workflow the answer holds what the page made of it: its nodes, its prompt, messages and errors, and, if it
was run, the entry in the server's history and the values of the progress bar. Besides, what `browser_menus` saw.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

import aiohttp
import browser_menus
from browser_comfy import USER_SETTINGS, open_graph, picture, set_settings
from browser_page import Page, opened_page

LOOK = """(async () => ({
    nodes: app.graph._nodes.map(node => ({
        id: node.id, type: node.type, known: node.type in LiteGraph.registered_node_types, red: !!node.has_errors,
        pos: [...node.pos], size: [...node.size], least: [...node.computeSize()],
        widgets: (node.widgets ?? []).map(each => [each.name, typeof each.value == 'object' ? null : each.value])})),
    prompt: (await app.graphToPrompt()).output,
    dialogs: [...document.querySelectorAll('[role=dialog], [role=alert]')].map(each => each.innerText.trim())
        .filter(text => text)}))()"""
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
    graph, out = json.loads(Path(task["workflows"][name]).read_text("utf-8")), Path(task["out"])
    await open_graph(page, task["address"], graph, name)
    answer = await page.evaluate(LOOK)
    await picture(page, out / f"{name}.png")
    if name in task["run"]:
        answer |= await press_run(page, session, task, task["run"][name])
        await asyncio.sleep(1)
        await picture(page, out / f"{name}_done.png")
    return {**answer, "errors": list(page.errors)}


async def main(task: dict) -> None:
    async with aiohttp.ClientSession() as session:
        await set_settings(session, task["address"], USER_SETTINGS)
        async with opened_page(session, task["chromium"]) as page:
            answers = {name: await visit(page, session, task, name) for name in task["workflows"]}
            menus = await browser_menus.look(page, session, task)
    found = {"workflows": answers, **menus}
    (Path(task["out"]) / "answers.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text("utf-8"))))
