"""What is checked about faults inside a real ComfyUI: what is refused and how, cancel, paths, too little memory.

    python comfy_faults.py COMFYUI_DIR PACK_DIR BASE_DIR ANSWERS.json [CHECK ...]

Run as `comfy_checks.py` is.
"""

import gc
import os
import shutil

import torch
from comfy_harness import (
    BASE,
    IDS,
    PACK,
    SHOWN,
    STORE,
    Failed,
    call,
    clip,
    core,
    error_of,
    folder_paths,
    full_graph,
    mm,
    models,
    needs,
    node,
    nodes,
    run,
    stored,
    upscale_graph,
    video_graph,
)


def tensor_bytes() -> int:
    gc.collect()
    return sum(each.nbytes for each in gc.get_objects() if isinstance(each, torch.Tensor) and each.device.type == "cpu")


def interrupting(value, total, preview, node_id=None):
    SHOWN.append((value, total, preview))
    if value:
        mm.interrupt_current_processing()


def check_cancel():
    """It comes true within one step, leaves no file and no frames, and the next run is whole."""
    images = clip(60)
    assert len(run(upscale_graph(images, temporal_strength=0.0))[0]) == 60  # whatever a first run leaves is there
    STORE.pop("kept")
    files, held = [set(os.listdir(BASE / name)) for name in ("temp", "output")], tensor_bytes()
    STORE["hook"] = interrupting
    result = 4 * images.nbytes
    for codec in (None, "h264", "ffv1"):
        graph = video_graph("demo.mp4", codec=codec, scale=0.5, chunk=4) if codec else upscale_graph(images)
        try:
            run(graph)
        except Failed as failed:
            assert failed.event == "execution_interrupted", failed
        else:
            raise AssertionError("the run ended in spite of the interrupt")
        finally:
            mm.interrupt_current_processing(False)
        assert len(SHOWN) == 2, [value for value, _, _ in SHOWN]
        SHOWN.clear()
        assert tensor_bytes() < held + result / 4, (codec, held, tensor_bytes(), result)
    del STORE["hook"]
    assert [set(os.listdir(BASE / name)) for name in ("temp", "output")] == files
    assert len(run(upscale_graph(clip()))[0]) == 22


def check_frames_that_cannot_be_used_are_refused():
    """By every node and on every socket; NaN is what Metrics counts, and Split Windows only passes on."""
    broken = clip().clone()
    broken[7, 3, 3] = float("nan")
    faults = ((clip()[:0], "no frames"), (clip()[..., :2], "expected 3 channels"), (broken, "frame 7 holds NaN"))
    passed = {("AdcVSR_Metrics", "images"), ("AdcVSR_SplitWindows", "images")}
    seen = 0
    for name in sorted(set(IDS) - {"AdcVSR_StitchWindows"}):
        for each in nodes.NODE_CLASS_MAPPINGS[name].GET_SCHEMA().inputs:
            if each.get_io_type() != "IMAGE":
                continue
            for frames, words in faults[: 2 if (name, each.id) in passed else 3]:
                graph = full_graph(name, **{each.id: ["faulty", 0]}) | {"faulty": stored("faulty", frames)}
                message = error_of(graph)
                assert words in message, (name, each.id, words, message)
                seen += 1
    assert seen == 25, seen


def check_wrong_wires_files_and_settings_are_refused():
    graph = upscale_graph(clip())
    graph["out"]["inputs"]["images"] = ["model", 0]
    assert error_of(graph).startswith("refused") and "IMAGE" in error_of(graph)
    assert "multiple of 16" in error_of(upscale_graph(clip(), tile=40))
    text = BASE / "input" / "text.mp4"
    text.write_text("no video")
    message = error_of(video_graph("text.mp4"))
    assert "cannot open text.mp4: not a video" in message and str(BASE) not in message, message
    message = error_of(full_graph("AdcVSR_Degrade", scale=8) | {"images": stored("images", clip(2, 5, 5))})
    assert "frames of 5x5 leave nothing at scale 8" in message, message


def check_too_little_memory_is_told_before_it_is_taken():
    """By every node that makes a whole clip larger, with both numbers and what to do."""
    free, needs.available_bytes = needs.available_bytes, lambda device: 1000
    try:
        for name in ("Upscale", "Finish", "Compare", "StitchWindows"):
            message = error_of(full_graph(f"AdcVSR_{name}"))
            assert "GiB of RAM and 0.0 GiB are free" in message, (name, message)
            assert "AdcVSR Upscale Video" in message or name == "Compare", (name, message)
    finally:
        needs.available_bytes = free


def check_the_model_folder_may_be_missing():
    """The bundled model needs none, and a model that lies nowhere is refused with where to put it."""
    folder = BASE / "models" / "adcvsr"
    shutil.rmtree(folder, ignore_errors=True)
    folder_paths.filename_list_cache.clear()
    assert len(run(upscale_graph(clip()))[0]) == 22 and not folder.exists()
    message = error_of({"out": node("LoadModel", model="mine.safetensors", dtype="auto")})
    assert "mine.safetensors" in message and "default" in message and "models/adcvsr" in message, message


def check_paths_cannot_leave_the_model_folders():
    folder, secret = BASE / "models" / "adcvsr", BASE / "private" / "secret.safetensors"
    for each in (folder, secret.parent):
        each.mkdir(parents=True, exist_ok=True)
    shutil.copy(PACK / "adcvsr_core" / "weights" / "default.safetensors", secret)
    links = {"passwords.safetensors": "/etc/passwd", "out.safetensors": secret, "out": secret.parent}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    folder_paths.filename_list_cache.clear()
    for name in ("../../private/secret.safetensors", str(secret), "../../etc/passwd", "/etc/passwd"):
        assert error_of({"out": node("LoadModel", model=name, dtype="auto")}).startswith("refused"), name
        assert "no model" in refusal_of(name)
    for name in ("passwords.safetensors", "out.safetensors", "out/secret.safetensors"):
        assert name in models.model_names(), name
        assert "a link out of its folder" in error_of({"out": node("LoadModel", model=name, dtype="auto")}), name
        assert "/etc" not in refusal_of(name) and str(BASE) not in refusal_of(name)
    shutil.copy(secret, folder / "inside.safetensors")
    (folder / "alias.safetensors").symlink_to("inside.safetensors")
    folder_paths.filename_list_cache.clear()
    assert models.load_model("alias.safetensors", "auto").name == "alias.safetensors"
    for name in links:
        (folder / name).unlink()


def refusal_of(name: str) -> str:
    try:
        models.load_model(name, "auto")
    except core.AdcvsrError as error:
        return str(error)
    raise AssertionError(f"{name} was loaded")


def check_menus_refuse_what_they_do_not_offer():
    for name in IDS:
        for each in nodes.NODE_CLASS_MAPPINGS[name].GET_SCHEMA().inputs:
            if hasattr(each, "options"):
                graph = upscale_graph(clip()) | {"other": node("LoadModel", model="default", dtype="auto")}
                graph["out"] = {"class_type": name, "inputs": {each.id: "../nonsense"}}
                message = error_of(graph)
                assert message.startswith("refused") and "../nonsense" in message, (name, each.id, message)
                # A wire's value is seen only when the node runs.
                graph = full_graph(name, **{each.id: ["wrong", 0]}) | {"wrong": stored("wrong", "../nonsense")}
                message = error_of(graph)
                assert "../nonsense" in message and len(message) > 40, (name, each.id, message)


call({name: each for name, each in globals().items() if name.startswith("check_")})
