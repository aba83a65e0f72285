"""Send a graph to a ComfyUI server and listen on its websocket until the run ends, as the front end does.

    python comfy_socket.py ADDRESS GRAPH.json ANSWER.json

Run by ComfyUI's own Python, because aiohttp is part of every ComfyUI. The answer holds the messages and the number of
bytes of every preview, both with the seconds since the graph was sent.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

import aiohttp

ENDS = ("execution_success", "execution_error", "execution_interrupted")


async def listen(address: str, graph: dict) -> dict:
    """Return everything that was heard."""
    heard = {"messages": [], "previews": []}
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{address}/ws?clientId=test") as socket:
        body = {"prompt": graph, "client_id": "test"}
        async with session.post(f"{address}/prompt", json=body) as answer:
            answer.raise_for_status()
        begin = time.monotonic()
        async for message in socket:
            seconds = time.monotonic() - begin
            if message.type == aiohttp.WSMsgType.BINARY:
                heard["previews"].append([seconds, len(message.data)])
                continue
            data = json.loads(message.data)
            heard["messages"].append([seconds, data["type"], data["data"]])
            if data["type"] in ENDS:
                break
    return heard


if __name__ == "__main__":
    found = asyncio.run(asyncio.wait_for(listen(sys.argv[1], json.loads(Path(sys.argv[2]).read_text())), 600))
    Path(sys.argv[3]).write_text(json.dumps(found))
