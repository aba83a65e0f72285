"""One real ComfyUI server with the pack in it, spoken to over HTTP as the front end does."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest

from tests.comfy_pack import IDS, ROOT, comfyui, copy_pack

pytestmark = pytest.mark.comfy

SETTINGS = dict(
    detail=1.0, temporal_strength=1.0, color="auto", work_size=0, cuts=0.5, chunk=2, tile=0, overlap=0, height=0
)


class Server:
    """A running ComfyUI."""

    def __init__(self, base):
        folder, python = comfyui()
        self.base = base
        copy_pack(base / "custom_nodes" / "ComfyUI-AdcVSR")
        for name in ("input", "page"):
            (base / name).mkdir()
        (base / "page" / "index.html").write_text("no front end")
        shutil.copy(ROOT / "adcvsr_core" / "samples" / "demo.mp4", base / "input")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        options = ["--cpu", "--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base)]
        options += ["--front-end-root", str(base / "page"), "--disable-auto-launch", "--verbose", "INFO"]
        self.log = open(base / "log.txt", "w", encoding="utf-8")  # noqa: SIM115
        self.process = subprocess.Popen(
            [python, "main.py", *options], cwd=folder, stdout=self.log, stderr=subprocess.STDOUT
        )

    def get(self, path, body=None):
        """Return what an address answers, as text; with a body, which is sent as JSON."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read().decode("utf-8")

    def wait(self):
        for _ in range(240):
            assert self.process.poll() is None, self.said()
            try:
                return self.get("/system_stats")
            except OSError:
                time.sleep(0.5)
        raise AssertionError(self.said())

    def said(self):
        return (self.base / "log.txt").read_text("utf-8", errors="replace")

    def finished(self, prompt_id, seconds=240):
        for _ in range(4 * seconds):
            history = json.loads(self.get(f"/history/{prompt_id}"))
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.25)
        raise AssertionError(self.said()[-3000:])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("server"))
    try:
        running.wait()
        yield running
    finally:
        running.process.terminate()
        running.process.wait(30)
        running.log.close()


def graph(scale: float, **changed) -> dict:
    settings = {**SETTINGS, "scale": scale, "codec": "h264", "crf": -1, **changed}
    return {
        "1": {"class_type": "AdcVSR_LoadModel", "inputs": {"model": "default", "dtype": "auto"}},
        "2": {"class_type": "LoadVideo", "inputs": {"file": "demo.mp4"}},
        "3": {"class_type": "AdcVSR_UpscaleVideo", "inputs": {"model": ["1", 0], "video": ["2", 0], **settings}},
        "4": {
            "class_type": "SaveVideo",
            "inputs": {"video": ["3", 0], "filename_prefix": "adcvsr", "format": "auto", "codec": "auto"},
        },
    }


def test_all_nodes_are_offered_and_nothing_complains(server):
    offered = json.loads(server.get("/object_info"))
    assert set(offered) >= IDS
    for name in IDS:
        assert offered[name]["display_name"].startswith("AdcVSR ") and offered[name]["python_module"].endswith("AdcVSR")
    ours = [line for line in server.said().splitlines() if "ComfyUI-AdcVSR" in line]
    assert ours and not [line for line in ours if "FAILED" in line or "warn" in line.lower()], ours


def test_help_locales_and_examples_are_served(server):
    for name in IDS:
        page = server.get(f"/extensions/ComfyUI-AdcVSR/docs/{name}.md")
        assert page == (ROOT / "web" / "docs" / f"{name}.md").read_text("utf-8")
    texts = json.loads(server.get("/i18n"))
    assert set(texts["en"]["nodeDefs"]) >= IDS and set(texts["zh"]["nodeDefs"]) >= IDS
    examples = json.loads(server.get("/workflow_templates"))["ComfyUI-AdcVSR"]
    assert sorted(examples) == sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
    for name in examples:
        assert json.loads(server.get(f"/api/workflow_templates/ComfyUI-AdcVSR/{name}.json"))["nodes"]


def test_a_clip_runs_from_file_to_file(server):
    answer = json.loads(server.get("/prompt", {"prompt": graph(0.5)}))
    done = server.finished(answer["prompt_id"])
    assert done["status"]["status_str"] == "success", done["status"]
    assert list((server.base / "output").glob("adcvsr*.mp4"))


def test_bad_settings_are_refused_with_our_words(server):
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.get("/prompt", {"prompt": graph(0.5, codec="../wrong")})
    said = refused.value.read().decode()
    assert refused.value.code == 400 and "is none of: h264" in said
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.get("/prompt", {"prompt": graph(400.0)})
    assert "bigger than max" in refused.value.read().decode()


def test_interrupt_stops_a_run_and_leaves_no_file(server):
    before = {path.name for path in (server.base / "temp").iterdir()}
    answer = json.loads(server.get("/prompt", {"prompt": graph(4.0)}))
    for _ in range(240):
        if any(".part" in path.name for path in (server.base / "temp").iterdir()):
            break
        time.sleep(0.25)
    server.get("/interrupt", {})
    done = server.finished(answer["prompt_id"], seconds=60)
    assert "execution_interrupted" in [message[0] for message in done["status"]["messages"]], done["status"]
    assert {path.name for path in (server.base / "temp").iterdir()} == before
