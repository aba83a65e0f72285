"""One real ComfyUI server with the pack in it, spoken to over HTTP as the front end does."""

import json
import subprocess
import time
import urllib.error
from pathlib import Path

import pytest

from tests.comfy_pack import IDS, ROOT, comfyui
from tests.comfy_server import Server

pytestmark = pytest.mark.comfy

SETTINGS = dict(
    detail=1.0, temporal_strength=1.0, color="auto", work_size=0, cuts=0.5, chunk=2, tile=0, overlap=0, height=0
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("server"))
    try:
        running.wait()
        yield running
    finally:
        running.stop()


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


def test_progress_and_previews_come_over_the_websocket(server, tmp_path):
    """The first preview within 5 s of pressing Run, for the bundled sample on a CPU."""
    sent, answer = tmp_path / "graph.json", tmp_path / "answer.json"
    sent.write_text(json.dumps(graph(2.0, crf=20, chunk=0)))  # not the graph of another test, which would be cached
    script = Path(__file__).with_name("comfy_socket.py")
    done = subprocess.run([comfyui()[1], script, server.address, sent, answer], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    heard = json.loads(answer.read_text())
    kinds = [kind for _, kind, _ in heard["messages"]]
    assert kinds[-1] == "execution_success", heard["messages"][-1]
    steps = [data for _, kind, data in heard["messages"] if kind == "progress" and data["node"] == "3"]
    values = [step["value"] for step in steps]
    assert values == sorted(values) and values[-1] == 56 and {step["max"] for step in steps} == {56}, values
    assert len(values) > 5 and len(heard["previews"]) > 2
    seconds, size = heard["previews"][0]
    assert seconds < 5 and size > 1000, heard["previews"][0]


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
