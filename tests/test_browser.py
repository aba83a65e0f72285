"""The example workflows in ComfyUI's real front end, in a headless Chromium: `python bootstrap.py browser`.

Besides COMFYUI_DIR and COMFYUI_PYTHON, as the tests marked `comfy`, these need

    CHROMIUM              the program; else `chromium`, `chromium-browser` or `google-chrome` on the path
    COMFYUI_FRONT_END     folders with its index.html, joined as those of PATH; else what is installed beside ComfyUI
    COMFYUI_SCREENSHOTS   where the pictures go; else a temporary folder

What is missing fails; nothing is skipped.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.comfy_pack import IDS, ROOT, comfyui
from tests.comfy_prompts import changes_of, prompt_of
from tests.comfy_server import Server

pytestmark = pytest.mark.browser

STEPS = Path(__file__).with_name("browser_steps.py")
WORKFLOWS = {path.stem: path for path in sorted((ROOT / "workflows").glob("*.json"))}
FRONT_ENDS = os.environ.get("COMFYUI_FRONT_END", "").split(os.pathsep)
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


def front_end(given: str) -> Path:
    """Return the folder of a front end's pages: the one given, or the one that is installed."""
    if not given:
        script = "import comfyui_frontend_package as it; print(it.__path__[0])"
        done = subprocess.run([comfyui()[1], "-c", script], capture_output=True, text=True)
        given = str(Path(done.stdout.strip() or ".") / "static")
    if not (Path(given) / "index.html").is_file():
        pytest.fail(
            f"no front end: {given} has no index.html; set COMFYUI_FRONT_END or install comfyui-frontend-package"
        )
    return Path(given).resolve()


@pytest.fixture(scope="module", params=FRONT_ENDS, ids=lambda path: Path(path).name.rpartition("_")[2] or "installed")
def seen(request, tmp_path_factory) -> dict:
    """Open every workflow, press Run, look around, and return what the page and the server made of each."""
    program, pages, out = chromium(), front_end(request.param), tmp_path_factory.mktemp("seen")
    pictures = Path(os.environ.get("COMFYUI_SCREENSHOTS") or out) / pages.name
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
        thumbnails = {name for name in WORKFLOWS if server.has(f"/api/workflow_templates/ComfyUI-AdcVSR/{name}.jpg")}
    finally:
        server.stop()
    kinds = {name: each["input"] for name, each in described.items()}
    seen = {"kinds": kinds, "pictures": pictures, "made": made, "thumbnails": thumbnails}
    return {**answers, **seen, "answers": answers["workflows"]}


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


@pytest.mark.parametrize("name", ["AdcVSR_Upscale", "AdcVSR_Compare"])
def test_the_info_button_opens_our_help(seen, name):
    """The page with its picture, as it is written but for the marks of Markdown."""
    shown, written = seen["help"][name], (ROOT / "web" / "docs" / f"{name}.md").read_text("utf-8")
    assert shown["pictures"] and written.startswith(f"# {shown['text'].splitlines()[0]}")
    words = re.findall(r"\w{4,}", re.sub(r"!?\[([^]]*)\]\([^)]*\)", "", written))
    missing = set(words) - set(re.findall(r"\w{4,}", shown["text"]))
    assert not missing, missing


def test_the_list_of_templates_offers_the_examples_with_pictures(seen):
    found = seen["templates"]
    assert found["names"] == sorted(WORKFLOWS)
    sizes = [list(Image.open(WORKFLOWS[name].with_suffix(".jpg")).size) for name in seen["thumbnails"]]
    assert [each for each in found["pictures"] if each in sizes] == sizes, found["pictures"]
    example = json.loads(WORKFLOWS["quick_upscale"].read_text("utf-8"))
    assert sorted(found["opened"]) == sorted(each["type"] for each in example["nodes"])


def test_nodes_have_chinese_names(seen):
    texts = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text("utf-8"))
    version = tuple(map(int, seen["version"].split(".")))
    for node in seen["chinese"]:
        text = texts[node["type"]]
        if version < (1, 34, 9) and node["title"] != text["display_name"]:
            continue  # 1.32.9 to 1.34.5 lose all packs' texts in a language when they load their own
        assert node["title"] == text["display_name"]
        assert node["inputs"] == {key: each["name"] for key, each in text["inputs"].items()}
        assert node["outputs"] == [each["name"] for each in text["outputs"].values()]
