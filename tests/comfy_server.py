"""A real ComfyUI server with the pack in it, spoken to over HTTP as the front end does."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.comfy_pack import ROOT, comfyui, copy_pack


class Server:
    """A running ComfyUI, its folders under `base`, with the bundled clip as its one input."""

    def __init__(self, base: Path, front_end: Path | None = None):
        folder, python = comfyui()
        self.base = base
        copy_pack(base / "custom_nodes" / "ComfyUI-AdcVSR")
        (base / "input").mkdir()
        if front_end is None:
            front_end = base / "page"
            front_end.mkdir()
            (front_end / "index.html").write_text("no front end")
        shutil.copy(ROOT / "adcvsr_core" / "samples" / "demo.mp4", base / "input")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        options = ["--cpu", "--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base)]
        options += ["--front-end-root", str(front_end), "--disable-auto-launch", "--verbose", "INFO"]
        self.log = open(base / "log.txt", "w", encoding="utf-8")  # noqa: SIM115
        self.process = subprocess.Popen(
            [python, "main.py", *options], cwd=folder, stdout=self.log, stderr=subprocess.STDOUT
        )

    def get(self, path: str, body: dict | None = None) -> str:
        """Return what an address answers, as text; with a body, which is sent as JSON."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read().decode("utf-8")

    def has(self, path: str) -> bool:
        """Return whether there is something at an address."""
        try:
            with urllib.request.urlopen(self.address + path, timeout=60):
                return True
        except urllib.error.HTTPError:
            return False

    def wait(self) -> str:
        """Wait until it answers."""
        for _ in range(240):
            assert self.process.poll() is None, self.said()
            try:
                return self.get("/system_stats")
            except OSError:
                time.sleep(0.5)
        raise AssertionError(self.said())

    def said(self) -> str:
        """Return its log."""
        return (self.base / "log.txt").read_text("utf-8", errors="replace")

    def finished(self, prompt_id: str, seconds: float = 240) -> dict:
        """Wait until a run has ended and return its entry in the history."""
        for _ in range(int(4 * seconds)):
            history = json.loads(self.get(f"/history/{prompt_id}"))
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.25)
        raise AssertionError(self.said()[-3000:])

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(30)
        self.log.close()
