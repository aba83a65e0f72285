"""A real ComfyUI in this process, with the pack loaded: graphs in, results out. No server is started.

    python SCRIPT COMFYUI_DIR PACK_DIR BASE_DIR ANSWERS.json [FUNCTION ...]

Importing this, which only scripts run by ComfyUI's own Python may do, boots ComfyUI and loads the pack.
"""

import asyncio
import contextlib
import copy
import importlib
import io
import json
import logging
import os
import shutil
import sys
import time
import traceback
from pathlib import Path

from comfy_prompts import prompt_of  # noqa: F401  (for the checks, and while this folder is on the path)

COMFY, PACK, BASE, ANSWERS = (Path(each).absolute() for each in sys.argv[1:5])
CHOSEN = sys.argv[5:]
sys.argv = ["main.py", "--cpu", "--base-directory", str(BASE)]
sys.path[0] = str(COMFY)
os.chdir(COMFY)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
# Before nodes, which puts comfy/ with its own utils.py on the path.
import utils.extra_config  # noqa: E402, F401

# isort: split
import comfy.model_management as mm  # noqa: E402, F401  (for the checks)
import comfy.utils  # noqa: E402
import execution  # noqa: E402
import folder_paths  # noqa: E402
import server  # noqa: E402
import torch  # noqa: E402
from comfy_api.latest import InputImpl  # noqa: E402, F401  (for the checks)
from comfy_config.config_parser import extract_node_configuration  # noqa: E402, F401

nodes = importlib.import_module("nodes")  # ComfyUI's, not this project's

NAMES = "LoadModel Upscale UpscaleVideo Finish SplitWindows StitchWindows Compare Metrics Degrade"
IDS = [f"AdcVSR_{name}" for name in NAMES.split()]
SETTINGS = dict(
    scale=2.0,
    height=0,
    detail=1.0,
    temporal_strength=1.0,
    color="auto",
    work_size=0,
    cuts=0.5,
    chunk=5,
    tile=0,
    overlap=0,
)
REACHING = ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")
STORE: dict = {}
SHOWN: list = []  # (value, total, preview) of every step of a progress bar
LOOP = asyncio.new_event_loop()
asyncio.set_event_loop(LOOP)


class Stored:
    """A node that puts out what a check left in STORE."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"key": ("STRING", {})}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("*",), "get", "test"
    IS_CHANGED = classmethod(lambda cls, key: STORE.setdefault(f"version of {key}", 0))

    def get(self, key):
        return (STORE[key],)


class Kept:
    """A node that keeps what arrives, as a list of the times it did."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"value": ("*", {})}})
    VALIDATE_INPUTS = classmethod(lambda cls, input_types: True)
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE, INPUT_IS_LIST = (), "keep", "test", True, True

    def keep(self, value):
        STORE["kept"] = value
        return ()


class Server:
    """As much of the server as an execution talks to."""

    client_id = last_node_id = last_prompt_id = None
    sockets_metadata: dict = {}  # noqa: RUF012

    def __init__(self):
        self.sent = []

    def send_sync(self, event, data, sid=None):
        self.sent.append((event, data))


class AnyType(str):
    """Equal to every type, so that a test node fits every wire."""

    def __ne__(self, other):
        return False

    __hash__ = str.__hash__


Stored.RETURN_TYPES = (AnyType("*"),)
nodes.NODE_CLASS_MAPPINGS |= {"Stored": Stored, "Kept": Kept}
server.PromptServer.instance = SERVER = Server()
CACHES = {"lru": 0, "ram": 0, "ram_inactive": 0}


def new_executor():
    return execution.PromptExecutor(SERVER, cache_type=execution.CacheType.CLASSIC, cache_args=dict(CACHES))


def default_hook(value, total, preview, node_id=None):
    SHOWN.append((value, total, preview))


def stored(key, value):
    """Return a link to a fresh node that puts out a value; equal keys with equal values are cached."""
    if STORE.get(key) is not value:
        STORE[key] = value
        STORE[f"version of {key}"] = time.monotonic_ns()
    return {"class_type": "Stored", "inputs": {"key": key}}


def node(name, **inputs):
    return {"class_type": name if name in nodes.NODE_CLASS_MAPPINGS else f"AdcVSR_{name}", "inputs": inputs}


def run(prompt, executor=None):
    """Execute a graph whose node "out" is what we want (output 0, or as in "out:1"), and return what arrived there."""
    prompt = copy.deepcopy(prompt)
    which = prompt.pop("take", 0)
    prompt["kept"] = {"class_type": "Kept", "inputs": {"value": ["out", which]}}
    executor, SERVER.sent[:], SHOWN[:] = executor or new_executor(), [], []
    STORE.pop("kept", None)
    comfy.utils.set_progress_bar_global_hook(STORE.get("hook", default_hook))
    valid = LOOP.run_until_complete(execution.validate_prompt("prompt", prompt, None))
    if not valid[0]:
        raise Refused(json.dumps([valid[1], valid[3]], default=str))
    LOOP.run_until_complete(executor.execute_async(prompt, "prompt", {}, valid[2]))
    for event, data in executor.status_messages:
        if event in ("execution_error", "execution_interrupted"):
            raise Failed(event, data)
    assert executor.success
    return STORE["kept"]


class Refused(Exception):
    """Validation said no."""


class Failed(Exception):
    """Execution ended with an error or an interrupt."""

    def __init__(self, event, data):
        super().__init__(event, data.get("exception_message"), "".join(data.get("traceback") or []))
        self.event, self.message = event, data.get("exception_message", "")


def error_of(prompt):
    try:
        run(prompt)
    except Failed as failed:
        return failed.message
    except Refused as refused:
        return f"refused: {refused}"
    raise AssertionError("the graph ran; expected an error")


class RecordList(logging.Handler):
    """Log records of WARNING and above."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.records = []

    def emit(self, record):
        self.records.append(record.getMessage())


def load_pack():
    """Load the pack as ComfyUI does and return the warnings; STORE gets what it printed and what it reached for."""
    extra = BASE / "elsewhere"
    extra.mkdir(exist_ok=True)
    shutil.copy(PACK / "adcvsr_core" / "weights" / "default.safetensors", extra / "other.safetensors")
    folder_paths.folder_names_and_paths["adcvsr"] = ([str(extra)], set())  # as extra_model_paths.yaml leaves it
    heard = RecordList()
    logging.getLogger().addHandler(heard)
    reached, printed = [], io.StringIO()
    sys.addaudithook(lambda event, values: reached.append((event, str(values))) if event in REACHING else None)
    begin = time.process_time()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        loaded = LOOP.run_until_complete(nodes.load_custom_node(str(PACK)))
    STORE["load seconds"], STORE["printed"] = time.process_time() - begin, printed.getvalue()
    STORE["reached"] = list(reached)  # the hook stays, and others reach out later
    logging.getLogger().removeHandler(heard)
    assert loaded, heard.records
    return heard.records


for extra in ("nodes_video.py", "nodes_preview_any.py"):
    file = COMFY / "comfy_extras" / extra
    LOOP.run_until_complete(nodes.load_custom_node(str(file), module_parent="comfy_extras"))
STORE["warnings"] = load_pack()
PREFIX = next(name for name in sys.modules if name.endswith(".adcvsr_core")).removesuffix("adcvsr_core")
core = sys.modules[f"{PREFIX}adcvsr_core"]
core_video = sys.modules[f"{PREFIX}adcvsr_core.video"]
models = sys.modules[f"{PREFIX}nodes.comfy_models"]
needs = sys.modules[f"{PREFIX}adcvsr_core.needs"]
SAMPLE = PACK / "adcvsr_core" / "samples" / "demo.mp4"
LOADED = node("LoadModel", model="default", dtype="auto")


def clip(num_frames=22, height=36, width=50, channels=3):
    """Frames of a moving pattern, the same at every call."""
    key = ("clip", num_frames, height, width, channels)
    if key not in STORE:
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        frames = [
            torch.stack([torch.sin((x + t) / (c + 3)) * torch.cos((y - t) / (c + 2)) for c in range(channels)], -1)
            for t in range(num_frames)
        ]
        STORE[key] = torch.stack(frames) * 0.4 + 0.5
    return STORE[key]


def settings(**changed):
    return {**SETTINGS, **changed}


def engine(frames, **changed):
    """What the command line's engine makes of frames."""
    student = core.load_student("default")
    return torch.cat(list(core.upscale([frames], student, core.UpscaleConfig(**settings(**changed)))))


def upscale_graph(images, **changed):
    return {
        "model": LOADED,
        "images": stored("images", images),
        "out": node("Upscale", model=["model", 0], images=["images", 0], **settings(**changed)),
    }


def full_graph(name, **changed):
    """A node of ours with something on every required socket and the default on every widget."""
    wires = {"IMAGE": ["images", 0], "VIDEO": ["video", 0], "ADCVSR_MODEL": ["model", 0], "ADCVSR_WINDOW": ["split", 1]}
    inputs = {}
    for each in nodes.NODE_CLASS_MAPPINGS[name].GET_SCHEMA().inputs:
        if each.get_io_type() in wires and not each.optional:
            inputs[each.id] = wires[each.get_io_type()]
        elif getattr(each, "default", None) is not None:
            inputs[each.id] = each.default
    if name == "AdcVSR_StitchWindows":
        inputs["images"] = ["split", 0]
    return {
        "images": stored("images", clip()),
        "model": LOADED,
        "video": node("CreateVideo", images=["images", 0], fps=12.0),
        "split": node("SplitWindows", images=["images", 0], core=6, halo=2),
        "out": node(name, **inputs | changed),
    }


def video_graph(name, codec="ffv1", **changed):
    shutil.copy(SAMPLE, BASE / "input" / "demo.mp4")
    return {
        "model": LOADED,
        "video": node("LoadVideo", file=name),
        "out": node("UpscaleVideo", model=["model", 0], video=["video", 0], codec=codec, crf=-1, **settings(**changed)),
    }


def frames_of(path):
    with core_video.read_video(path) as reader:
        return torch.cat(list(reader))


@torch.inference_mode()
def call(functions):
    """Call what the command line names, or all, and write what each returned, or a traceback."""
    answers = {}
    for name in ("input", "output", "temp"):
        (BASE / name).mkdir(parents=True, exist_ok=True)
    for name in CHOSEN or functions:
        begin = time.monotonic()
        try:
            answers[name] = functions[name]()
        except Exception:
            answers[name] = traceback.format_exc()
            STORE.pop("hook", None)
        said = "FAILED" if isinstance(answers[name], str) else "ok"
        print(f"{name}: {said} in {time.monotonic() - begin:.1f} s", flush=True)
        ANSWERS.write_text(json.dumps(answers))
