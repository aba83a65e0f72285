"""The ComfyUI nodes: what can be seen without ComfyUI, and, marked `comfy`, everything in a real one.

The marked tests need COMFYUI_DIR, a ComfyUI's folder, and its Python: COMFYUI_PYTHON, or a venv in or beside it.
They run `comfy_checks.py`, `comfy_faults.py` and `comfy_memory.py` in processes of their own.
"""

import ast
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image

from adcvsr_core.config import PRESETS, UpscaleConfig
from adcvsr_core.planner import plan_memory
from adcvsr_core.video import VideoWriter
from tests.comfy_pack import IDS, ROOT, comfyui, copy_pack

CHECKS, FAULTS, MEMORY = (Path(__file__).with_name(f"comfy_{name}.py") for name in ("checks", "faults", "memory"))
SLOW = "check_a_full_size_checkpoint"
NODE_FILES = sorted((ROOT / "nodes").glob("*.py"))


def check_names(script: Path) -> list[str]:
    tree = ast.parse(script.read_text("utf-8"))
    names = [each.name for each in tree.body if isinstance(each, ast.FunctionDef)]
    return [name for name in names if name.startswith("check_") and name != SLOW]


@pytest.mark.parametrize("path", NODE_FILES, ids=lambda path: path.name)
def test_node_files_are_short_and_explained(path):
    text = path.read_text("utf-8")
    assert text.count("\n") <= 150, f"{path.name}: move logic into adcvsr_core"
    for call in ast.walk(ast.parse(text)):
        if not isinstance(call, ast.Call):
            continue
        made = [ast.unparse(each) for each in (call.func, *call.args[:1])]
        if any(re.fullmatch(r"[\w.]+\.(Input|Output)", each) for each in made):
            assert "tooltip" in {each.arg for each in call.keywords}, f"{path.name}:{call.lineno} has no tooltip"
        if isinstance(call.func, ast.Attribute) and call.func.attr == "get":
            assert "environ" not in ast.unparse(call.func), f"{path.name}:{call.lineno} reads the environment"


@pytest.mark.parametrize(
    "path", [path for path in NODE_FILES if path.stem not in ("comfy", "comfy_models")], ids=lambda path: path.name
)
def test_two_files_talk_to_comfyui(path):
    """Folders, memory, progress and cancel are the bridge's; the others see only ComfyUI's schema types."""
    for each in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = [alias.name for alias in each.names] if isinstance(each, ast.Import) else []
        names += [each.module] if isinstance(each, ast.ImportFrom) and each.level == 0 else []
        assert not {name.split(".")[0] for name in names} & {"comfy", "folder_paths", "server", "execution"}, path.name


def test_schemas_name_the_nodes_that_are_promised():
    text = "\n".join(path.read_text("utf-8") for path in NODE_FILES)
    found = {f"AdcVSR_{name}" for name in re.findall(r"return schema\(\s*\"(\w+)\"", text)}
    assert found == IDS


@pytest.mark.parametrize("name", sorted(IDS))
def test_every_node_has_help(name):
    text = (ROOT / "web" / "docs" / f"{name}.md").read_text("utf-8")
    assert len(text) > 400, f"{name}.md says too little"
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert f"{name}.jpg" in pictures, f"{name}.md shows no picture"
    for link in pictures:
        assert (ROOT / "web" / "docs" / link).is_file(), f"{name}.md shows {link}, which is missing"


def test_the_advice_by_vram_is_what_the_planner_gives():
    """Whole frames in nine tenths of the card, the temporal state on it or in RAM: no tiles."""
    config, tables = PRESETS["adcvsr"], []
    for name in ("AdcVSR_Upscale", "AdcVSR_UpscaleVideo"):
        text = (ROOT / "web" / "docs" / f"{name}.md").read_text("utf-8")
        tables.append(re.findall(r"^\| (\d+) GB \| (.*) \| (.*) \|$", text, re.MULTILINE))
    assert len(tables[0]) == 5 and tables[0] == tables[1]
    for size, *cells in tables[0]:
        for offload, cell in enumerate(cells):
            lines, output = re.fullmatch(r"up to (\d+) lines(?:, (\d+) in the output)?", cell).groups()
            padded = tuple(-(-side // 16) * 16 for side in (int(lines), round(int(lines) * 16 / 9)))
            settings = UpscaleConfig(memory=0.9 * int(size) * 2**30 / 1e9)
            plan = plan_memory(config, settings, padded, torch.bfloat16, torch.device("cuda"), 16)
            assert plan.fits and len(plan.grid.tiles) == 1 and plan.footing.offload == bool(offload), (size, plan)
            assert not output or int(output) == 4 * int(lines), size


@pytest.mark.parametrize("language", ["en", "zh"])
def test_locales_name_every_node(language):
    texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))
    assert set(texts) == IDS
    for name, text in texts.items():
        assert text["display_name"] and text["description"], name
        for kind in ("inputs", "outputs"):
            for key, each in text[kind].items():
                assert each["name"] and each["tooltip"], f"{language} {name} {kind} {key}"
    other = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text("utf-8"))
    for name in IDS:
        for kind in ("inputs", "outputs"):
            assert list(texts[name][kind]) == list(other[name][kind]), f"{name}: {kind} differ from English"


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_workflows_are_whole_and_explain_themselves(path):
    graph = json.loads(path.read_text("utf-8"))
    by_id = {each["id"]: each for each in graph["nodes"]}
    for number, source, slot, target, entry, kind in graph["links"]:
        assert number in by_id[source]["outputs"][slot]["links"] and by_id[source]["outputs"][slot]["type"] == kind
        assert by_id[target]["inputs"][entry]["link"] == number
    assert {each["type"] for each in graph["nodes"]} & IDS
    notes = [each["widgets_values"][0] for each in graph["nodes"] if each["type"] == "MarkdownNote"]
    assert len(notes) == 1 and "adcvsr_core/samples/demo.mp4" in notes[0] and "your own clip" in notes[0]


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_workflows_have_a_square_picture(path):
    with Image.open(path.with_suffix(".jpg")) as picture:
        assert picture.width == picture.height >= 300


def test_the_registry_finds_the_icon():
    """The registry's limit is 800x400; the address is that of a file of the repository."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    address = re.search(r'^Icon = "([^"]+)"', text, re.MULTILINE)[1]
    repository = re.search(r'^Repository = "https://github.com/([^"]+)"', text, re.MULTILINE)[1]
    prefix = f"https://raw.githubusercontent.com/{repository}/main/"
    assert address.startswith(prefix)
    with Image.open(ROOT / address.removeprefix(prefix)) as icon:
        assert icon.width <= 800 and icon.height <= 400


def run_checks(base: Path, folder_name: str, names: list[str], script: Path = CHECKS) -> dict[str, object]:
    """Copy the pack into a fresh ComfyUI base folder under a name, run checks there and return the answers."""
    folder, python = comfyui()
    pack, answers = base / "custom_nodes" / folder_name, base / "answers.json"
    copy_pack(pack)
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [python, script, folder, pack, base, answers, *names],
        env={**kept, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert answers.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(answers.read_text("utf-8"))
    assert done.returncode == 0, done.stderr[-3000:]
    return found


@pytest.fixture(scope="session")
def answers(tmp_path_factory) -> dict[str, object]:
    found = {}
    for script in (CHECKS, FAULTS, MEMORY):
        found |= run_checks(tmp_path_factory.mktemp("base"), "ComfyUI-AdcVSR", check_names(script), script)
    return found


@pytest.mark.comfy
@pytest.mark.parametrize("name", [*check_names(CHECKS), *check_names(FAULTS), *check_names(MEMORY)])
def test_in_comfyui(name, answers):
    assert answers[name] is None, answers[name]


@pytest.mark.comfy
def test_the_folder_may_have_another_name(tmp_path):
    """A download from a web page unpacks under this name."""
    names = ["check_loads_silently", "check_schemas", "check_image_node_equals_the_engine"]
    assert run_checks(tmp_path, "comfyui-adcvsr-main", names) == dict.fromkeys(names)


@pytest.mark.comfy
def test_long_videos_need_no_more_memory(tmp_path):
    """From cold, each length in a process of its own."""
    picture, lengths, peaks = torch.rand(1, 128, 192, 3), (50, 300), []
    for length in lengths:
        base = tmp_path / str(length)
        (base / "input").mkdir(parents=True)
        with VideoWriter(base / "input" / "long.mp4", width=192, height=128, fps=24) as writer:
            for shift in range(length):
                writer.write(picture.roll(shift, 2))
        peaks.append(run_checks(base, "ComfyUI-AdcVSR", ["peak"], MEMORY)["peak"])
    print(f"highest RAM in MiB at {lengths} frames: {[each // 1024 for each in peaks]}")
    held = (lengths[1] - lengths[0]) * 256 * 384 * 3 * 4 / 1024
    assert held > 0.2 * peaks[0], "the clips are too small to tell"
    assert peaks[1] <= 1.05 * peaks[0], peaks


@pytest.mark.comfy
@pytest.mark.slow
def test_a_full_size_checkpoint_runs(tmp_path):
    assert run_checks(tmp_path, "ComfyUI-AdcVSR", [SLOW], MEMORY) == {SLOW: None}
