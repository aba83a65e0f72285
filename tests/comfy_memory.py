"""What is checked about memory inside a real ComfyUI: who moves the weights, running out, and the RAM of long clips.

    python comfy_memory.py COMFYUI_DIR PACK_DIR BASE_DIR ANSWERS.json [NAME ...]

Run as `comfy_checks.py` is. Every `check_*` answers with null or a traceback; `peak` answers with a number, and means
something only alone in its process.
"""

import sys
from pathlib import Path

import torch
from comfy_harness import (
    BASE,
    PREFIX,
    SHOWN,
    STORE,
    call,
    clip,
    core,
    engine,
    error_of,
    folder_paths,
    frames_of,
    mm,
    models,
    new_executor,
    node,
    run,
    upscale_graph,
    video_graph,
)


def managed() -> list:
    """Return our models among those that ComfyUI moves."""
    return [
        each.model for each in mm.current_loaded_models if each.model and isinstance(each.model.model, models._Held)
    ]


def check_comfyui_manages_the_weights():
    """Whatever ComfyUI unloads between runs, and however it is asked to, the next run has it again."""
    mm.unload_all_models()
    executor = new_executor()
    (before,) = run(upscale_graph(clip()), executor)
    (patcher,) = managed()
    for index, unload in enumerate((mm.unload_all_models, lambda: mm.free_memory(1e30, mm.get_torch_device()))):
        unload()
        assert not managed()
        (images,) = run(upscale_graph(clip(), cuts=0.4 + index / 100), executor)  # the model comes from the cache
        assert managed() == [patcher] and torch.equal(images, before)


def check_half_precision():
    for dtype, tolerance in (("bf16", 0.05), ("fp16", 0.01)):
        graph = upscale_graph(clip())
        graph["model"] = node("LoadModel", model="default", dtype=dtype)
        (images,) = run(graph)
        difference = (images - engine(clip())).abs().max()
        assert images.dtype == torch.float32 and 0 < difference < tolerance, (dtype, difference)


def check_images_have_the_type_that_comfyui_wants():
    """Newer ComfyUIs can be told to keep IMAGE in half precision."""
    if not hasattr(mm, "intermediate_dtype"):
        return
    original, mm.intermediate_dtype = mm.intermediate_dtype, lambda: torch.float16
    try:
        (images,) = run(upscale_graph(clip()))
    finally:
        mm.intermediate_dtype = original
    assert images.dtype == torch.float16 and (images - engine(clip())).abs().max() < 1e-3


def failing(condition):
    """Let the network run out of memory when `condition(frames)` is true; return what it was."""
    original = core.Student.forward

    def forward(self, lr, stream=None, *arguments, **options):
        if lr.device.type != "meta" and condition(lr):  # the size of a stream's state is found with empty tensors
            raise mm.OOM_EXCEPTION("out of memory")
        return original(self, lr, stream, *arguments, **options)

    core.Student.forward = forward
    return original


def check_out_of_memory_goes_on_at_the_same_frame():
    calls = []
    original = failing(lambda lr: calls.append(lr.shape[1]) or (len(calls) > 2 and lr.shape[1] > 2))
    try:
        (images,) = run(upscale_graph(clip(), chunk=8))
        values = [value for value, _, _ in SHOWN]
        assert calls == [8, 8, 6, 4, 2, 2, 2], calls  # the third fails, and so does half of a step; the end is drained
        calls.clear()
        (video,) = run(video_graph("demo.mp4", scale=0.5, chunk=8))
        assert calls[:5] == [8, 8, 8, 4, 2] and max(calls[5:]) == 2, calls
    finally:
        core.Student.forward = original
    assert (images - engine(clip())).abs().max() < 1e-4
    assert values == sorted(values) and values[-1] == 22, values
    (whole,) = run(video_graph("demo.mp4", scale=0.5, chunk=8))
    found, expected = (frames_of(each.get_stream_source()) for each in (video, whole))
    assert (found - expected).abs().max() <= 1 / 255 + 1e-5


def check_out_of_memory_for_good_says_what_to_do():
    original = failing(lambda _: True)
    try:
        message = error_of(upscale_graph(clip()))
    finally:
        core.Student.forward = original
    assert "out of memory with one frame of 25x18" in message and "choose a smaller work size" in message, message
    assert len(run(upscale_graph(clip()))[0]) == 22


def check_a_full_size_checkpoint():
    """Slow: 453 million random weights through Load Model and Upscale."""
    from_presets = core.Student(core.PRESETS["adcvsr"]).half()
    save = sys.modules[f"{PREFIX}adcvsr_core.checkpoint"].save_student
    save(from_presets, BASE / "elsewhere" / "full.safetensors")
    del from_presets
    folder_paths.filename_list_cache.clear()
    graph = upscale_graph(clip(3, 32, 32), chunk=1)
    graph["model"] = node("LoadModel", model="full.safetensors", dtype="bf16")
    assert run(graph)[0].shape == (3, 64, 64, 3)


def peak() -> int:
    """Return the highest RAM of this process in KiB after input/long.mp4 went through the VIDEO node."""
    STORE["hook"] = lambda *arguments, **options: None  # the usual one keeps every preview
    run(video_graph("long.mp4", codec="h264", scale=2.0, work_size=32, chunk=0))
    # Not getrusage, whose figure a process takes over from the one that started it.
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


call({name: each for name, each in globals().items() if name.startswith("check_")} | {"peak": peak})
