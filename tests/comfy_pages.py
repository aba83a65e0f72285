"""What the pack shows and ComfyUI can make: English texts from the schemas, pictures for help pages and templates.

    python comfy_pages.py COMFYUI_DIR PACK_DIR BASE_DIR ANSWERS.json [write_english] [write_pictures] [write_thumbnails]

Writes PACK_DIR/locales/en, PACK_DIR/web/docs/*.jpg and PACK_DIR/workflows/*.jpg; BASE_DIR is any empty folder.
"""

import functools
import json

import torch
from comfy_harness import (
    IDS,
    PACK,
    SAMPLE,
    call,
    frames_of,
    node,
    nodes,
    run,
    stored,
    upscale_graph,
    video_graph,
)
from PIL import Image


def write_english():
    texts = {}
    for name in IDS:
        schema = nodes.NODE_CLASS_MAPPINGS[name].GET_SCHEMA()
        texts[name] = {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": {e.id: {"name": e.id.replace("_", " "), "tooltip": e.tooltip} for e in schema.inputs},
            "outputs": {
                str(i): {"name": (e.display_name or e.id).replace("_", " "), "tooltip": e.tooltip}
                for i, e in enumerate(schema.outputs)
            },
        }
    path = PACK / "locales" / "en" / "nodeDefs.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(texts, indent=2, ensure_ascii=False) + "\n", "utf-8")


@functools.cache
def material():
    """Return frames of the bundled clip and what Upscale makes of them, [30,180,320,3] and [30,720,1280,3]."""
    lr = frames_of(SAMPLE)[:30]
    return lr, run(upscale_graph(lr, scale=4.0))[0]


def picture_of(frame):
    return Image.fromarray(frame.clamp(0, 1).mul(255).round().byte().numpy())


def compared(a, b, view, position=0.5, gain=4.0):
    graph = {"a": stored("a", a), "b": stored("b", b)}
    return run({**graph, "out": node("Compare", a=["a", 0], b=["b", 0], view=view, position=position, gain=gain)})[0]


def finished(sr, lr, **changed):
    sliders = dict(detail=1.0, color="none", height=0, grain=0.0, grain_size=1.5, seed=0)
    graph = {"sr": stored("sr", sr), "lr": stored("lr", lr)}
    return run({**graph, "out": node("Finish", images=["sr", 0], source=["lr", 0], **sliders | changed)})[0]


def bars_of(lr, core, halo, unit, line):
    """Return the windows of a clip as one bar each, dark where it is the core."""
    graph = {"images": stored("images", lr), "out": node("SplitWindows", images=["images", 0], core=core, halo=halo)}
    windows = run({**graph, "take": 1})
    bars = torch.full((len(windows) * line, len(lr) * unit, 3), 1.0)
    for row, window in enumerate(windows):
        lines = slice(row * line + line // 6, row * line + line * 5 // 6)
        bars[lines, window.first * unit : window.stop * unit] = torch.tensor([0.75, 0.82, 0.92])
        bars[lines, window.start * unit : (window.start + window.core) * unit] = torch.tensor([0.15, 0.35, 0.65])
    return bars


def write_pictures():
    """Make every help page's picture from a run of its node on the bundled clip."""

    def save(name, frame):
        picture_of(frame).save(PACK / "web" / "docs" / f"AdcVSR_{name}.jpg", quality=88)

    lr, sr = material()
    crop, fine = lr[:, 40:130, 80:240], sr[:, 160:520, 320:960]
    save("Compare", compared(crop, fine, "wipe")[12])
    save("Upscale", compared(crop, fine, "side by side")[12])
    save("LoadModel", compared(crop, fine, "wipe")[20])
    save("Metrics", compared(lr, sr, "time slice")[0])
    (video,) = run(video_graph("demo.mp4", codec="h264", scale=4.0))
    save("UpscaleVideo", compared(lr, frames_of(video.get_stream_source())[:30], "wipe")[25, 100:620, 200:1080])
    details = [finished(sr, lr, detail=detail)[12, 200:460, 400:680] for detail in (0.0, 1.0, 2.0)]
    save("Finish", torch.cat(details, 1))
    kinds = ("clean", "light", "h264", "h264_crf30", "realbasicvsr", "realesrgan_adcsr", "film", "aigen")
    each = [node("Degrade", images=["good", 0], kind=kind, scale=1, seed=1) for kind in kinds]
    shown = [run({"good": stored("good", sr[:8, 200:360, 400:640].contiguous()), "out": one})[0][4] for one in each]
    save("Degrade", torch.cat([torch.cat(shown[:4], 1), torch.cat(shown[4:], 1)]))
    save("SplitWindows", bars_of(lr, core=8, halo=18, unit=16, line=24))
    graph = upscale_graph(lr, scale=1.0)
    (whole,) = run(graph)
    graph["sr"] = graph.pop("out")
    graph["split"] = node("SplitWindows", images=["images", 0], core=8, halo=18)
    graph["sr"]["inputs"]["images"] = ["split", 0]
    graph["out"] = node("StitchWindows", images=["sr", 0], windows=["split", 1], join="auto", model=["model", 0])
    save("StitchWindows", compared(run(graph)[0], whole, "time slice")[0])


def write_thumbnails():
    """Make the picture that the list of templates shows for each example, square, from runs of its nodes."""

    def save(name, frame, edge=400):
        picture, short = picture_of(frame), min(frame.shape[:2])
        left, top = (frame.shape[1] - short) // 2, (frame.shape[0] - short) // 2
        square = picture.crop((left, top, left + short, top + short)).resize((edge, edge), Image.Resampling.LANCZOS)
        square.save(PACK / "workflows" / f"{name}.jpg", quality=85)

    lr, sr = material()
    save("quick_upscale", compared(lr, sr, "wipe", position=0.44)[12, 160:520, 380:740])
    strip = [sr[index, :, 280:1000] for index in (0, 8, 16, 24)]
    save("long_video_file_to_file", torch.cat([torch.cat(strip[:2], 1), torch.cat(strip[2:], 1)]))
    large = sr[12].clone()
    large[-204:-12, 292:624] = 1.0
    large[-198:-18, 298:618] = lr[12]
    save("ai_clip_to_4k", large)
    bars = bars_of(lr, core=8, halo=6, unit=12, line=60)
    save("windows_by_hand", torch.cat([torch.ones(60, *bars.shape[1:]), bars, torch.ones(60, *bars.shape[1:])]))
    save("compare_and_measure", compared(lr, sr, "difference", gain=16.0)[12, 160:520, 380:740])
    good = sr[:8, 160:520, 400:760].contiguous()
    (bad,) = run(
        {"good": stored("good", good), "out": node("Degrade", images=["good", 0], kind="light", scale=4, seed=1)}
    )
    (restored,) = run(upscale_graph(bad, scale=4.0))
    save("degrade_and_restore_lab", compared(bad, restored, "wipe")[4])
    save("old_film", finished(sr, lr, color="wavelet", grain=8.0, grain_size=2.5)[12, 160:520, 380:740])


call({each.__name__: each for each in (write_english, write_pictures, write_thumbnails)})
