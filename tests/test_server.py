"""One real ComfyUI server with the pack in it, spoken to over HTTP as the front end does."""

import json
import subprocess
import time
import urllib.error
from pathlib import Path

import pytest

from adcvsr_core.video import read_video
from tests.comfy_pack import IDS, ROOT, comfyui
from tests.comfy_prompts import changes_of, prompt_of
from tests.comfy_server import Server

pytestmark = pytest.mark.comfy

WORKFLOWS = {path.stem: path for path in sorted((ROOT / "workflows").glob("*.json"))}
NUM_FRAMES = 56  # of the bundled clip
SNAPSHOT = Path(__file__).with_name("object_info.json")
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


def snapshot_of(info: dict) -> dict:
    """Return of a node's /object_info what saved graphs rely on, and what every ComfyUI tells alike.

    That is the order, type, default and limits of its inputs, the options of its menus but for files, and its outputs.
    """
    inputs = {}
    for group in ("required", "optional"):
        for name, (kind, *options) in info["input"].get(group, {}).items():
            told = options[0] if options else {}
            inputs[name] = {"type": kind, "group": group}
            inputs[name] |= {key: told[key] for key in ("default", "min", "max", "step", "options") if key in told}
            if name in ("model", "lora"):
                inputs[name].pop("options", None)
    kept = ("output", "output_is_list", "output_name", "output_node", "category")
    return {"inputs": inputs, **{key: info[key] for key in kept}}


def test_nodes_are_what_saved_graphs_rely_on(server):
    """A change that is meant goes into the file; widgets may only be added at the end, nothing may be renamed."""
    offered, expected = json.loads(server.get("/object_info")), json.loads(SNAPSHOT.read_text("utf-8"))
    found = {name: snapshot_of(offered[name]) for name in sorted(IDS)}
    assert found == expected
    assert [list(each["inputs"]) for each in found.values()] == [list(each["inputs"]) for each in expected.values()]


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


def run(server, folder: Path, prompt: dict) -> dict:
    """Run a graph and return what came over the websocket meanwhile."""
    sent, answer = folder / "graph.json", folder / "answer.json"
    sent.write_text(json.dumps(prompt))
    script = Path(__file__).with_name("comfy_socket.py")
    done = subprocess.run([comfyui()[1], script, server.address, sent, answer], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    heard = json.loads(answer.read_text())
    _, kind, data = heard["messages"][-1]
    assert kind == "execution_success", (kind, data.get("exception_message"), data.get("traceback"))
    return heard


def steps_of(heard: dict, number: str) -> list[tuple[int, int]]:
    """Return the steps of a node's progress bar."""
    data = [data for _, kind, data in heard["messages"] if kind == "progress" and data["node"] == number]
    return [(each["value"], each["max"]) for each in data]


def test_progress_and_previews_come_over_the_websocket(server, tmp_path):
    """The first preview within 5 s of pressing Run, for the bundled sample on a CPU."""
    heard = run(server, tmp_path, graph(2.0, crf=20, chunk=0))  # not the graph of another test, which would be cached
    steps = steps_of(heard, "3")
    assert steps == sorted(steps) and steps[-1] == (56, 56) and {most for _, most in steps} == {56}, steps
    assert len(steps) > 5 and len(heard["previews"]) > 2
    seconds, size = heard["previews"][0]
    assert seconds < 5 and size > 1000, heard["previews"][0]


def prompt_for(server, name: str) -> dict:
    """Return an example as the page would send it."""
    kinds = {kind: each["input"] for kind, each in json.loads(server.get("/object_info")).items()}
    return prompt_of(json.loads(WORKFLOWS[name].read_text("utf-8")), kinds)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_example_runs(server, name, tmp_path):
    """The graph as it is saved, all frames of the clip, with smaller pictures."""
    prompt = prompt_for(server, name)
    for node in prompt.values():
        node["inputs"] |= changes_of(name).get(node["class_type"], {})
        if "cuts" in node["inputs"]:  # else a node may come from the cache of another example
            node["inputs"]["cuts"] -= list(WORKFLOWS).index(name) / 1000
    check_run(server, prompt, run(server, tmp_path, prompt))


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_example_runs_as_it_is_saved(server, name, tmp_path):
    prompt = prompt_for(server, name)
    check_run(server, prompt, run(server, tmp_path, prompt))


def check_run(server, prompt: dict, heard: dict) -> None:
    """Look at the progress of every node of ours that shows any, and at what every output node put out."""
    shown = {data["node"]: data["output"] for _, kind, data in heard["messages"] if kind == "executed"}
    assert heard["previews"]
    for number, node in prompt.items():
        kind = node["class_type"]
        steps = steps_of(heard, number)
        if kind in ("AdcVSR_Upscale", "AdcVSR_UpscaleVideo", "AdcVSR_Finish", "AdcVSR_Compare"):
            assert steps[-1][0] == steps[-1][1] and all(value <= most for value, most in steps), (kind, steps)
            assert len(steps) > (3 if "Upscale" in kind else 0), (kind, steps)  # newer cores leave out fast ones
        if kind == "SaveVideo":
            (file,) = shown[number].get("images") or shown[number]["video"]
            with read_video(server.base / "output" / file["subfolder"] / file["filename"]) as clip:
                assert sum(map(len, clip)) == NUM_FRAMES, file
        if kind == "PreviewImage":
            assert len(shown[number]["images"]) in (1, NUM_FRAMES)
        if kind == "PreviewAny":
            (text,) = shown[number]["text"]
            assert "flicker" in text or "equal to the whole clip" in text, text


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
