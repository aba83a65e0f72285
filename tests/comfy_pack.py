"""Where a real ComfyUI is, and how the pack gets into it: shared by the tests marked `comfy`."""

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ("__init__.py", "pyproject.toml", "requirements.txt", "adcvsr_core", "nodes", "web", "locales", "workflows")
IDS = {
    f"AdcVSR_{name}"
    for name in (
        "LoadModel",
        "Upscale",
        "UpscaleVideo",
        "Finish",
        "SplitWindows",
        "StitchWindows",
        "Compare",
        "Metrics",
        "Degrade",
    )
}


def comfyui() -> tuple[Path, Path]:
    """Return ComfyUI's folder and its Python."""
    if not os.environ.get("COMFYUI_DIR"):
        pytest.fail("set COMFYUI_DIR to the folder of a real ComfyUI (0.3.75 or newer)")
    folder = Path(os.environ["COMFYUI_DIR"]).resolve()
    programs = ("bin/python", "Scripts/python.exe")
    places = [base / venv / each for base in (folder, folder.parent) for venv in (".venv", "venv") for each in programs]
    if os.environ.get("COMFYUI_PYTHON"):
        places = [Path(os.environ["COMFYUI_PYTHON"])]
    found = [place for place in places if place.is_file()]
    if not found or not (folder / "execution.py").is_file():
        pytest.fail(f"{folder} is no ComfyUI, or none of {', '.join(map(str, places))} exists; set COMFYUI_PYTHON")
    return folder, found[0]


def copy_pack(pack: Path) -> None:
    """Copy what ships into a folder of custom_nodes."""
    pack.mkdir(parents=True)
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, pack / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, pack / name)
