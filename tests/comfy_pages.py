"""What the pack shows and ComfyUI can make: English texts from the schemas, pictures for the help pages.

    python comfy_pages.py COMFYUI_DIR PACK_DIR BASE_DIR ANSWERS.json [write_english] [write_pictures]

Writes PACK_DIR/locales/en and PACK_DIR/web/docs/*.jpg; BASE_DIR is any empty folder.
"""

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


def write_pictures():
    """Make every help page's picture from a run of its node on the bundled clip."""

    def save(name, picture):
        levels = picture.clamp(0, 1).mul(255).round().byte().numpy()
        Image.fromarray(levels).save(PACK / "web" / "docs" / f"AdcVSR_{name}.jpg", quality=88)

    def compared(a, b, view):
        graph = {"a": stored("a", a), "b": stored("b", b)}
        return run({**graph, "out": node("Compare", a=["a", 0], b=["b", 0], view=view, position=0.5, gain=4.0)})[0]

    lr = frames_of(SAMPLE)[:30]
    graph = upscale_graph(lr, scale=4.0)
    (sr,) = run(graph)
    crop, fine = lr[:, 40:130, 80:240], sr[:, 160:520, 320:960]
    save("Compare", compared(crop, fine, "wipe")[12])
    save("Upscale", compared(crop, fine, "side by side")[12])
    save("LoadModel", compared(crop, fine, "wipe")[20])
    save("Metrics", compared(lr, sr, "time slice")[0])
    (video,) = run(video_graph("demo.mp4", codec="h264", scale=4.0))
    save("UpscaleVideo", compared(lr, frames_of(video.get_stream_source())[:30], "wipe")[25, 100:620, 200:1080])
    graph["sr"] = graph.pop("out")
    crops = []
    for detail in (0.0, 1.0, 2.0):
        sliders = dict(detail=detail, color="none", height=0, grain=0.0, grain_size=1.5, seed=0)
        graph["out"] = node("Finish", images=["sr", 0], source=["images", 0], **sliders)
        crops.append(run(graph)[0][12, 200:460, 400:680])
    save("Finish", torch.cat(crops, 1))
    kinds = ("clean", "light", "h264", "h264_crf30", "realbasicvsr", "realesrgan_adcsr", "film", "aigen")
    each = [node("Degrade", images=["good", 0], kind=kind, scale=1, seed=1) for kind in kinds]
    shown = [run({"good": stored("good", sr[:8, 200:360, 400:640].contiguous()), "out": one})[0][4] for one in each]
    save("Degrade", torch.cat([torch.cat(shown[:4], 1), torch.cat(shown[4:], 1)]))
    graph["split"] = node("SplitWindows", images=["images", 0], core=8, halo=18)
    parts = run({**graph, "out": graph["split"], "take": 1})
    bars = torch.full((len(parts) * 24, 30 * 16, 3), 1.0)
    for row, window in enumerate(parts):
        lines = slice(row * 24 + 4, row * 24 + 20)
        bars[lines, window.first * 16 : window.stop * 16] = torch.tensor([0.75, 0.82, 0.92])
        bars[lines, window.start * 16 : (window.start + window.core) * 16] = torch.tensor([0.15, 0.35, 0.65])
    save("SplitWindows", bars)
    graph["sr"]["inputs"] |= {"images": ["split", 0], "scale": 1.0}
    (whole,) = run(upscale_graph(lr, scale=1.0))
    graph["out"] = node("StitchWindows", images=["sr", 0], windows=["split", 1], join="auto", model=["model", 0])
    save("StitchWindows", compared(run(graph)[0], whole, "time slice")[0])


call({"write_english": write_english, "write_pictures": write_pictures})
