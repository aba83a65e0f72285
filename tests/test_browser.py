"""The example workflows in ComfyUI's real front end, in a headless Chromium: `python bootstrap.py browser`.

Besides COMFYUI_DIR and COMFYUI_PYTHON, as the tests marked `comfy`, these need

    CHROMIUM              the program; else `chromium`, `chromium-browser` or `google-chrome` on the path
    COMFYUI_FRONT_END     the folder with its index.html; else the front end that is installed beside ComfyUI
    COMFYUI_SCREENSHOTS   where the pictures go; else a temporary folder

What is missing fails; nothing is skipped.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.comfy_pack import IDS, ROOT, comfyui
from tests.comfy_prompts import changes_of, prompt_of
from tests.comfy_server import Server

pytestmark = pytest.mark.browser

STEPS = Path(__file__).with_name("browser_steps.py")
WORKFLOWS = {path.stem: path for path in sorted((ROOT / "workflows").glob("*.json"))}
TITLE = 30  # pixels of a node above its position


def chromium() -> str:
    """Return the browser's program."""
    names = (
        [os.environ["CHROMIUM"]] if os.environ.get("CHROMIUM") else ["chromium", "chromium-browser", "google-chrome"]
    )
    found = [path for path in map(shutil.which, names) if path]
    if not found:
        pytest.fail(f"no Chromium: none of {', '.join(names)} is a program; install one or set CHROMIUM to its path")
    return found[0]


def front_end() -> Path:
    """Return the folder of the front end's pages."""
    given = os.environ.get("COMFYUI_FRONT_END", "")
    if not given:
        script = "import comfyui_frontend_package as it; print(it.__path__[0])"
        done = subprocess.run([comfyui()[1], "-c", script], capture_output=True, text=True)
        given = str(Path(done.stdout.strip() or ".") / "static")
    if not (Path(given) / "index.html").is_file():
        pytest.fail(
            f"no front end: {given} has no index.html; set COMFYUI_FRONT_END or install comfyui-frontend-package"
        )
    return Path(given).resolve()


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict:
    """Open every workflow, press Run, and return what the page and the server made of each."""
    program, pages, out = chromium(), front_end(), tmp_path_factory.mktemp("seen")
    pictures = Path(os.environ.get("COMFYUI_SCREENSHOTS") or out)
    pictures.mkdir(parents=True, exist_ok=True)
    server = Server(tmp_path_factory.mktemp("server"), pages)
    try:
        server.wait()
        task = {
            "chromium": program,
            "address": server.address,
            "out": str(pictures.resolve()),
            "workflows": {name: str(path) for name, path in WORKFLOWS.items()},
            "run": {name: changes_of(name) for name in WORKFLOWS},
        }
        (out / "task.json").write_text(json.dumps(task), "utf-8")
        done = subprocess.run([comfyui()[1], STEPS, out / "task.json"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:] + server.said()[-3000:]
        described = json.loads(server.get("/object_info"))
        answers = json.loads((pictures / "answers.json").read_text("utf-8"))
        made = [path.name for path in (server.base / "output").rglob("*.mp4")]
    finally:
        server.stop()
    kinds = {name: each["input"] for name, each in described.items()}
    return {"kinds": kinds, "answers": answers, "pictures": pictures, "made": made}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_page_opens_it_without_complaint(seen, name):
    answer = seen["answers"][name]
    assert not answer["errors"] and not answer["dialogs"]
    nodes = answer["nodes"]
    assert len(nodes) == len(json.loads(WORKFLOWS[name].read_text("utf-8"))["nodes"])
    for node in nodes:
        assert node["known"] and not node["red"], node["type"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_nodes_do_not_lie_over_each_other(seen, name):
    boxes = [(each["type"], *each["pos"], *each["size"]) for each in seen["answers"][name]["nodes"]]
    for index, (kind, x, y, width, height) in enumerate(boxes):
        for other, left, top, wide, high in boxes[:index]:
            apart = x >= left + wide or left >= x + width or y - TITLE >= top + high or top - TITLE >= y + height
            assert apart, f"{kind} and {other}"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_page_sends_what_the_file_means(seen, name):
    """This is where widgets that are saved in another order than the schema's would show."""
    found, kinds = seen["answers"][name]["prompt"], seen["kinds"]
    expected = prompt_of(json.loads(WORKFLOWS[name].read_text("utf-8")), kinds)
    assert set(found) == set(expected)
    for number, node in found.items():
        kind, inputs = node["class_type"], node["inputs"]
        if kind not in IDS:  # the page's own preview widgets on ComfyUI's nodes are sent along, as if they were inputs
            known = {**kinds[kind].get("required", {}), **kinds[kind].get("optional", {})}
            inputs = {key: value for key, value in inputs.items() if key.split(".")[0] in known}
        assert {"class_type": kind, "inputs": inputs} == expected[number]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_run_runs_it(seen, name):
    answer = seen["answers"][name]
    assert answer["history"]["status"]["status_str"] == "success", answer["history"]["status"]
    assert answer["history"]["outputs"]
    steps = answer["heard"]["progress"]
    assert steps[-1][0] == steps[-1][1] and answer["heard"]["previews"] > 0, steps
    for suffix in ("", "_done"):
        assert (seen["pictures"] / f"{name}{suffix}.png").stat().st_size > 20_000


def test_the_clips_are_there(seen):
    assert any(each.startswith("adcvsr_wipe") for each in seen["made"]), seen["made"]
