"""The direction of imports, what each part may depend on, and that the core runs without the optional packages.

Every Python file of the project is parsed; nothing is imported for it. The tables say what is allowed. A new
file has no place in them, fails here, and is added where it belongs.
"""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What each module of adcvsr_core may import from adcvsr_core. "*" = any.
CORE = {
    # the network, upwards
    "errors": "",
    "config": "errors",
    "streaming": "errors config",
    "attention": "errors config",
    "norms": "",
    "triton_kernels": "",
    "fused": "errors config memory triton_kernels",
    "layers": "errors config streaming attention fused",
    "unet": "errors config streaming layers fused",
    "banding": "errors config layers norms",
    "decoder": "errors config streaming layers banding fused",
    "student": "errors config streaming layers unet decoder",
    "pickles": "errors config",
    "checkpoint": "errors config streaming layers unet decoder student pickles",
    "convert": "errors config streaming layers unet decoder student pickles checkpoint",
    "lora": "errors config streaming layers unet decoder student pickles checkpoint",
    "cost": "errors config streaming layers unet decoder student",
    "compiled": "errors config layers student",
    # leaves
    "tiling": "errors config",
    "color": "errors config",
    "shots": "errors config",
    "memory": "errors config",
    "pipeline": "errors config memory",
    "metrics": "errors config",
    "compare": "errors config",
    "frames": "errors config",
    "windows": "errors config",
    "paths": "errors config",
    "views": "errors config frames compare",
    "finish": "errors config frames color",
    # files in and out, a branch of its own
    "pixels": "errors config",
    "images": "errors config pixels",
    "remux": "errors config",
    "sound": "errors config",
    "video_read": "errors config pixels images",
    "video_codecs": "errors config",
    "video_write": "errors config pixels images remux video_read video_codecs",
    "video": "errors config pixels images remux video_read video_codecs video_write",
    # frames and a Student in, frames out: neither files nor checkpoints
    "engine": "errors config student streaming tiling color shots memory norms pipeline ladder planner",
    # what a run will need, counted ahead of it
    "footprint": "errors config streaming layers decoder student cost",
    "ladder": "errors config",
    "planner": "errors config cost tiling memory pipeline footprint ladder",
    "needs": "errors config student streaming tiling color shots memory cost engine",
    # faces
    "__init__": "errors config streaming student checkpoint engine",
    "cli": "*",
    "__main__": "*",
}

# The same within adcvsr_core/degradation, whose modules may import errors and these of each other.
DEGRADATION = {
    "levels": "",
    "yuv": "",
    "draws": "",
    "kernels": "draws",
    "resize": "draws",
    "filters": "draws kernels",
    "noise": "draws filters",
    "codecs": "draws levels yuv",
    # pipelines
    "mild": "draws filters resize noise levels codecs",
    "realworld": "draws filters resize noise levels codecs kernels",
    "film_dirt": "draws",
    "film": "draws filters resize noise levels codecs film_dirt",
    "latents": "noise",
    "generated": "draws filters resize levels codecs latents",
    # faces
    "presets": "draws kernels resize noise codecs mild realworld film generated",
    "__init__": "levels yuv codecs mild realworld film generated presets",
}
CORE |= {
    f"degradation.{module}": " ".join(["errors", *(f"degradation.{each}" for each in allowed.split())])
    for module, allowed in DEGRADATION.items()
}

# What the files of each part of the project may import from the other parts.
PARTS = {
    "adcvsr_core": "",
    "nodes": "adcvsr_core",
    "training": "adcvsr_core",
    "benchmarks": "adcvsr_core training",
    "tests": "adcvsr_core training benchmarks bootstrap",
    "__init__.py": "nodes",
    "bootstrap.py": "",
}

# What they may import from other packages, beside the standard library. "*" = any.
PACKAGES = {
    "adcvsr_core": "torch safetensors einops numpy PIL av triton",
    "nodes": "torch numpy PIL av comfy comfy_api folder_paths",
    "training": "*",
    "benchmarks": "*",
    "tests": "*",
    "__init__.py": "",
    "bootstrap.py": "",
}
COMMAND_LINE = {"adcvsr_core/cli.py", "adcvsr_core/__main__.py"}  # these may import rich as well

SHIPPED = ("adcvsr_core", "nodes")  # runs on users' machines, on files that users were given
NEVER_SHIPPED = {"subprocess", "socket", "urllib", "http", "ftplib", "requests"}
NEVER_CALLED = {"eval", "exec", "__import__", "import_module", "system", "popen"}

OPTIONAL = ["diffusers", "accelerate", "peft", "transformers", "torchvision", "cv2", "matplotlib", "comfy"]


def python_files() -> list[str]:
    """Return the project's Python files, relative to its root; not what it installs or writes."""
    skipped = {"demo", "runs", "build"}
    tops = [each for each in ROOT.iterdir() if not each.name.startswith(".") and each.name not in skipped]
    files = [file for top in tops for file in (top.rglob("*.py") if top.is_dir() else [top]) if file.suffix == ".py"]
    return sorted(file.relative_to(ROOT).as_posix() for file in files)


def parse(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text("utf-8"), name)


def core_module(name: str) -> str:
    """Return the dotted name within adcvsr_core of one of its files."""
    return name.removeprefix("adcvsr_core/").removesuffix(".py").replace("/", ".")


def module_of(parts: tuple[str, ...], imported: str) -> str:
    """Return the dotted module that `from PARTS import IMPORTED` reads, within this project."""
    if (ROOT.joinpath(*parts) / f"{imported}.py").exists() or (ROOT.joinpath(*parts) / imported).is_dir():
        return ".".join((*parts, imported))
    return ".".join(parts) if ROOT.joinpath(*parts).with_suffix(".py").exists() else ".".join((*parts, "__init__"))


def imports(name: str) -> list[tuple[int, bool, str]]:
    """Return (line, whether the import is relative, dotted module) of every import in a file, wherever it stands."""
    package = Path(name).parent.parts
    found = []
    for node in ast.walk(parse(name)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, False, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            relative = node.level > 0
            base = package[: len(package) - node.level + 1] if relative else ()
            parts = (*base, *(node.module.split(".") if node.module else ()))
            ours = relative or parts[0] in PARTS
            found += [
                (node.lineno, relative, module_of(parts, alias.name) if ours else ".".join(parts))
                for alias in node.names
            ]
    return found


def allows(table: dict[str, str], key: str, target: str) -> bool:
    allowed = table.get(key, "")
    return allowed == "*" or target in allowed.split()


FILES = python_files()


def test_every_file_has_a_place():
    """A file that the tables do not know is not checked by them."""
    for name in FILES:
        part = name.split("/")[0]
        assert part in PARTS, f"{name}: add {part!r} to PARTS and PACKAGES in tests/test_imports.py"
        if part == "adcvsr_core":
            module = core_module(name)
            assert module in CORE, f"{name}: add {module!r} to CORE in tests/test_imports.py, with what it may import"


def test_installed_copies_have_every_package():
    """A folder that pyproject.toml does not list is missing from what pip installs."""
    listed = (ROOT / "pyproject.toml").read_text("utf-8")
    for init in (ROOT / "adcvsr_core").rglob("__init__.py"):
        package = ".".join(init.parent.relative_to(ROOT).parts)
        assert f'"{package}"' in listed, f"add {package!r} to [tool.setuptools] packages in pyproject.toml"


def test_core_imports_point_one_way():
    """The table itself has no cycle: an order exists in which every module comes after what it imports."""
    placed: set[str] = {module for module in CORE if CORE[module] == "*"}
    waiting = {module: set(CORE[module].split()) for module in CORE if module not in placed}
    while waiting:
        free = [module for module, needs in waiting.items() if not needs & set(waiting)]
        assert free, f"CORE has a cycle among {sorted(waiting)}"
        for module in free:
            del waiting[module]


@pytest.mark.parametrize("name", FILES)
def test_import_direction(name):
    part = name.split("/")[0]
    faults = []
    for line, relative, target in imports(name):
        top, _, rest = target.partition(".")
        if part in SHIPPED and not relative and top in PARTS:
            faults.append(f"line {line}: {target} must be imported relatively, ComfyUI loads the folder by its path")
        elif top == part == "adcvsr_core":
            module = core_module(name)
            if not allows(CORE, module, rest):
                faults.append(f"line {line}: {module} may not import {rest} (allowed: {CORE.get(module) or 'nothing'})")
        elif top in PARTS or f"{top}.py" in PARTS:
            if top != part and not allows(PARTS, part, top):
                faults.append(f"line {line}: {part} may not import {top} (allowed: {PARTS[part] or 'nothing'})")
        elif top not in sys.stdlib_module_names:
            if not allows(PACKAGES, part, top) and not (top == "rich" and name in COMMAND_LINE):
                faults.append(f"line {line}: {part} may not import the package {top} (allowed: {PACKAGES[part]})")
        elif top in NEVER_SHIPPED and part in SHIPPED:
            faults.append(f"line {line}: {part} may not import {top}: it starts no programs and opens no connections")
    assert not faults, f"{name}\n" + "\n".join(faults)


@pytest.mark.parametrize("name", [name for name in FILES if name.split("/")[0] != "tests"])
def test_nothing_runs_what_a_file_says(name):
    """No code from strings, no shell, and torch.load only with weights_only=True."""
    faults = []
    for node in ast.walk(parse(name)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called == "torch.load" and not any(
            each.arg == "weights_only" and isinstance(each.value, ast.Constant) and each.value.value is True
            for each in node.keywords
        ):
            faults.append(f"line {node.lineno}: torch.load without weights_only=True")
        attribute_of_os = called.startswith(("os.", "importlib."))
        if called.split(".")[-1] in NEVER_CALLED and ("." not in called or attribute_of_os):
            faults.append(f"line {node.lineno}: {called}()")
        if called in ("pickle.load", "pickle.loads"):
            faults.append(f"line {node.lineno}: {called}() runs code from the file")
    assert not faults, f"{name}\n" + "\n".join(faults)


RUN_CORE = """
import json, sys

mode, root, optional, config = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in optional:
            raise (ImportError if mode == "absent" else RuntimeError)(f"{name} is {mode}")

def no_network(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind"):
        raise RuntimeError(f"network used: {event} {arguments}")

if mode != "installed":
    sys.meta_path.insert(0, Blocker())
sys.addaudithook(no_network)
sys.path.insert(0, root)
import torch
from_torch = set(sys.modules)
from adcvsr_core import PRESETS, StreamState, Student, StudentConfig, UpscaleConfig, load_student, upscale

student = Student(StudentConfig.from_json(config)).eval()
frames = torch.rand(3, 16, 16, 3)
out = torch.cat(list(upscale([frames], student, UpscaleConfig())))
assert out.shape == (3, 64, 64, 3) and out.isfinite().all(), out.shape
loaded = {name.split(".")[0] for name in set(sys.modules) - from_torch}
print(json.dumps(sorted(loaded)))
"""


@pytest.mark.parametrize("mode", ["absent", "broken at import", "installed"])
def test_core_runs_without_optional_packages(mode, tiny_config):
    """The core loads and upscales where diffusers and the like are missing or broken, and never imports them."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_CORE, mode, str(ROOT), json.dumps(OPTIONAL), tiny_config.to_json()],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    needless = set(json.loads(done.stdout.splitlines()[-1])) & set(OPTIONAL)
    assert not needless, f"adcvsr_core imported {sorted(needless)}"
