"""What is checked inside a real ComfyUI; `test_nodes.py` runs this with ComfyUI's own Python and reads the answers.

    python comfy_checks.py COMFYUI_DIR PACK_DIR BASE_DIR ANSWERS.json [CHECK ...]

Every function named `check_*` is one check; the answers map its name to null or a traceback.
"""

import dataclasses
import inspect
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import av
import torch
from comfy_harness import (
    BASE,
    IDS,
    PACK,
    PREFIX,
    SAMPLE,
    SETTINGS,
    SHOWN,
    STORE,
    InputImpl,
    call,
    clip,
    core,
    core_video,
    engine,
    error_of,
    extract_node_configuration,
    folder_paths,
    frames_of,
    full_graph,
    models,
    new_executor,
    node,
    nodes,
    run,
    stored,
    upscale_graph,
    video_graph,
)


def check_loads_silently():
    assert not STORE["warnings"] and not STORE["printed"], (STORE["warnings"], STORE["printed"])
    assert not STORE["reached"], STORE["reached"]
    print(f"import took {STORE['load seconds']:.2f} s")
    assert STORE["load seconds"] < 0.5, STORE["load seconds"]
    missing = [name for name in IDS if name not in nodes.NODE_CLASS_MAPPINGS]
    assert not missing, missing


def check_schemas():
    for name in IDS:
        kind = nodes.NODE_CLASS_MAPPINGS[name]
        schema = kind.GET_SCHEMA()
        assert schema.description and schema.display_name.startswith("AdcVSR "), name
        for each in schema.inputs:
            assert each.tooltip, f"{name}.{each.id}"
            widget = hasattr(each, "default")
            assert not widget or each.default is not None, f"{name}.{each.id} has no default"
        for each in schema.outputs:
            assert each.tooltip, f"{name} output {each.id}"
        assert schema.outputs and kind.INPUT_TYPES() is not None


def check_every_node_runs_on_its_defaults():
    images = clip(3, 12, 18)
    for name in IDS:
        (result,) = run(full_graph(name) | {"images": stored("images", images)})
        assert result is not None, name


def check_settings_are_the_engines():
    known = {field for field in core.UpscaleConfig.__dataclass_fields__}
    for name in ("AdcVSR_Upscale", "AdcVSR_UpscaleVideo"):
        inputs = {each.id: each for each in nodes.NODE_CLASS_MAPPINGS[name].GET_SCHEMA().inputs}
        assert known <= set(inputs), known - set(inputs)
        default = core.UpscaleConfig()
        for field in known:
            assert inputs[field].default == getattr(default, field), field


def named(text: str, options: list[str]) -> tuple[list[str], set[str]]:
    """Return the numbers and the options of a menu that a tooltip speaks of."""
    found = {each for each in options if re.search(rf"\b{re.escape(each)}\b", text, re.ASCII)}
    return sorted(re.findall(r"\d+(?:\.\d+)?", text)), found


def check_locales():
    for language in ("en", "zh"):
        texts = json.loads((PACK / "locales" / language / "nodeDefs.json").read_text("utf-8"))
        assert sorted(texts) == sorted(IDS), language
        for name in IDS:
            schema, text = nodes.NODE_CLASS_MAPPINGS[name].GET_SCHEMA(), texts[name]
            inputs = {each.id: each for each in schema.inputs}
            assert sorted(text["inputs"]) == sorted(inputs), (language, name)
            assert list(text["outputs"]) == [str(i) for i in range(len(schema.outputs))], (language, name)
            for key, each in inputs.items():
                options = getattr(each, "options", None) or []
                told = named(text["inputs"][key]["tooltip"], options)
                assert told == named(each.tooltip, options), (language, name, key, told)
            if language == "en":
                assert text["display_name"] == schema.display_name and text["description"] == schema.description, name
                for key, each in inputs.items():
                    assert text["inputs"][key]["tooltip"] == each.tooltip, (name, key)
                for index, each in enumerate(schema.outputs):
                    shown = text["outputs"][str(index)]
                    assert (shown["name"], shown["tooltip"]) == (each.display_name, each.tooltip), (name, index)


def check_registry_metadata():
    """As ComfyUI reads pyproject.toml; one classifier that it does not know would void all."""
    found = extract_node_configuration(str(PACK))
    assert found.project.name == "adcvsr" and "comfyui" not in found.project.name.lower()
    assert found.project.supported_comfyui_version == ">=0.3.75" and found.project.urls.repository
    assert found.project.supported_os == ["OS Independent"] and len(found.project.supported_accelerators) == 4
    assert found.tool_comfy.publisher_id and found.tool_comfy.display_name and found.tool_comfy.icon.endswith(".png")


def check_image_node_equals_the_engine():
    (images,) = run(upscale_graph(clip()))
    assert images.shape == (22, 72, 100, 3) and images.dtype == torch.float32 and images.is_contiguous()
    assert torch.equal(images, engine(clip())), (images - engine(clip())).abs().max()
    (other,) = run(upscale_graph(clip(), chunk=0))
    assert (other - images).abs().max() < 1e-4


def check_video_node_equals_the_command_line():
    (video,) = run(video_graph("demo.mp4", scale=0.5, chunk=8))
    path = video.get_stream_source()
    out = BASE / "output" / "command_line.mkv"
    command = [sys.executable, "-m", "adcvsr_core", "upscale", str(SAMPLE), str(out), "--scale", "0.5", "--chunk", "8"]
    subprocess.run([*command, "--codec", "ffv1", "--overwrite", "--device", "cpu"], cwd=PACK, check=True)
    ours, theirs = frames_of(path), frames_of(out)
    assert ours.shape == (56, 90, 160, 3), ours.shape
    assert torch.equal(ours, theirs), (ours - theirs).abs().max()
    made = engine(frames_of(SAMPLE), scale=0.5, chunk=8)
    assert (ours - made).abs().max() <= 0.5 / 255 + 1e-5
    assert core_video.read_video(path).info.has_audio
    assert {value for value, _, _ in SHOWN} and SHOWN[-1][:2] == (56, 56), SHOWN[-1]


def check_results_lie_where_save_video_finds_them():
    """In the temp folder what it can store, which is MP4; in the output folder, numbered, what needs no other node."""
    assert nodes.NODE_CLASS_MAPPINGS["AdcVSR_UpscaleVideo"].GET_SCHEMA().is_output_node
    graph = full_graph("AdcVSR_UpscaleVideo", scale=2.0) | {"images": stored("images", clip(5))}
    for codec, kind in core_video.CODECS.items():
        if kind.encoder not in av.codecs_available:
            continue
        graph["out"]["inputs"]["codec"] = codec
        fits = codec not in ("prores", "prores_4444", "ffv1")
        save = {"save": node("SaveVideo", video=["out", 0], filename_prefix=codec, format="auto", codec="auto")}
        runs = run(graph | save if fits else graph), run(graph)
        first, second = (Path(video.get_stream_source()) for (video,) in runs)
        assert first.parent == second.parent == BASE / ("temp" if fits else "output"), (first, second)
        assert fits or first.name < second.name, (first, second)
        if fits:
            (saved,) = (BASE / "output").glob(f"{codec}_*")
            assert torch.equal(frames_of(saved), frames_of(first)), f"{codec} was encoded again"
    assert not list(BASE.glob("*/*.part*"))


def check_video_of_frames_keeps_sound():
    sound = {"waveform": torch.sin(torch.arange(16000) / 20)[None, None].expand(1, 2, -1), "sample_rate": 16000}
    for codec, suffix in (("h264", ".mp4"), ("vp9", ".webm")):
        graph = video_graph("demo.mp4", codec=codec)
        graph["video"] = node("CreateVideo", images=["images", 0], fps=12.0, audio=["sound", 0])
        graph |= {"images": stored("images", clip()), "sound": stored("sound", sound)}
        (video,) = run(graph)
        info = core_video.read_video(video.get_stream_source()).info
        assert str(info.path).endswith(suffix) and info.has_audio and info.fps == 12, info
        found = frames_of(info.path)
        assert found.shape == (22, 72, 100, 3), found.shape
        assert (found - engine(clip())).abs().mean() < 0.03
    assert not list((BASE / "temp").glob("*.m4a"))


def check_video_of_frames_keeps_its_depth():
    """Newer ComfyUIs let Create Video say how many bits its frames are worth."""
    if "bit_depth" not in nodes.NODE_CLASS_MAPPINGS["CreateVideo"].INPUT_TYPES().get("optional", {}):
        return
    graph = {**video_graph("demo.mp4", codec="h265"), "images": stored("images", clip())}
    graph["video"] = node("CreateVideo", images=["images", 0], fps=12.0, bit_depth=10)
    assert core_video.read_video(run(graph)[0].get_stream_source()).info.bit_depth == 10


def check_trims_are_honoured():
    """As ComfyUI trims, where it does (from 0.13 on), and as 0.22 and newer tell of it."""
    media, whole = sys.modules[f"{PREFIX}nodes.media"], frames_of(SAMPLE)
    fps = core_video.read_video(SAMPLE).info.fps
    first = int(-(-fps // 2))

    class Told(InputImpl.VideoFromFile):
        def get_active_trim_window(self):
            return 0.5, 1.0

    videos = [Told(str(SAMPLE))]
    if "start_time" in inspect.signature(InputImpl.VideoFromFile).parameters:
        videos.append(InputImpl.VideoFromFile(str(SAMPLE), start_time=0.5, duration=1.0))
    for video in videos:
        with media.open_video(video) as (reader, like):
            trimmed = torch.cat(list(reader))
        expected = whole[first : first + len(trimmed)]
        assert abs(len(trimmed) - fps) <= 1, len(trimmed)
        if "source" in like:
            assert torch.equal(trimmed, expected)
        else:  # decoded by ComfyUI, whose colours differ a little
            off = (trimmed - whole[first + 1 : first + 1 + len(trimmed)]).abs().mean()
            assert (trimmed - expected).abs().mean() < min(0.02, off / 2)


def check_split_upscale_stitch_equals_the_whole_clip():
    images = torch.cat((clip(22, 24, 30), clip(18, 24, 30).flip(1) * 0.4))  # two shots
    assert sys.modules[f"{PREFIX}adcvsr_core.shots"].find_cuts(images, None, SETTINGS["cuts"]) == [22]
    graph = upscale_graph(images)
    (whole,) = run(graph)
    graph["split"] = node("SplitWindows", images=["images", 0], core=10, halo=18)
    graph["out"]["inputs"]["images"] = ["split", 0]
    graph["sr"] = graph.pop("out")
    stitch = dict(images=["sr", 0], windows=["split", 1], join="auto", model=["model", 0])
    graph["out"] = node("StitchWindows", **stitch)
    (stitched,) = run(graph)
    assert (stitched - whole).abs().max() < 1e-4, (stitched - whole).abs().max()
    assert "equal to the whole clip" in run({**graph, "take": 1})[0]
    graph["split"]["inputs"]["halo"] = 3
    (faded,) = run(graph)
    assert faded.shape == whole.shape and "not exact" in run({**graph, "take": 1})[0]


def check_windows_take_any_upscaler():
    graph = {
        "images": stored("images", clip(23)),
        "split": node("SplitWindows", images=["images", 0], core=5, halo=2),
        "sr": node("ImageScaleBy", image=["split", 0], upscale_method="bicubic", scale_by=1.5),
        "out": node("StitchWindows", images=["sr", 0], windows=["split", 1], join="auto"),
    }
    (stitched,) = run(graph)
    graph["out"] = node("ImageScaleBy", image=["images", 0], upscale_method="bicubic", scale_by=1.5)
    assert (stitched - run(graph)[0]).abs().max() < 1e-5


def check_progress_and_preview():
    run(upscale_graph(clip(), chunk=4))
    values = [value for value, _, _ in SHOWN]
    assert values == sorted(values) and values[-1] == 22 and {total for _, total, _ in SHOWN} == {22}
    for step, expected in ((0, (50, 36)), (1, (100, 72))):  # the source at once, then results
        kind, picture, size = SHOWN[step][2]
        assert (kind, picture.size, size) == ("JPEG", expected, 512)
    assert values[0] == 0


def check_alpha_is_carried():
    (images,) = run(upscale_graph(clip(channels=4)))
    assert images.shape == (22, 72, 100, 4)
    assert torch.equal(images[..., :3], engine(clip(channels=4)[..., :3].contiguous()))
    assert (images[:, ::2, ::2, 3] - clip(channels=4)[..., 3]).abs().mean() < 0.05


def check_models_are_found_where_they_belong():
    names = models.model_names()
    assert names[0] == "default" and "other.safetensors" in names, names
    student = models.load_model("other.safetensors", "bf16").student
    assert student.dtype == torch.bfloat16 and models.load_model("default", "auto").student.dtype == torch.float32
    folder = BASE / "models" / "adcvsr"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "net_params_200.pkl", "w") as archive:
        archive.writestr("archive/data.pkl", b"body.1.conv_in.weight")
    folder_paths.filename_list_cache.clear()
    message = error_of({"out": node("LoadModel", model="net_params_200.pkl", dtype="auto")})
    assert "python -m adcvsr_core convert --adcsr" in message and str(folder) not in message, message


def check_finish_never_runs_the_network():
    calls = []
    forward = core.Student.forward
    core.Student.forward = lambda self, *a, **k: (calls.append(1), forward(self, *a, **k))[1]
    try:
        executor, graph = new_executor(), upscale_graph(clip())
        graph["sr"] = graph.pop("out")
        sliders = dict(detail=1.0, color="none", height=0, grain=0.0, grain_size=1.5, seed=0)
        graph["out"] = node("Finish", images=["sr", 0], source=["images", 0], **sliders)
        (neutral,) = run(graph, executor)
        count = len(calls)
        assert count and (neutral - engine(clip())).abs().max() < 1e-6
        calls.clear()
        for changed in (dict(detail=0.4), dict(color="wavelet", height=50), dict(grain=6.0, grain_size=2.0, seed=3)):
            graph["out"]["inputs"] |= changed
            (finished,) = run(graph, executor)
        assert not calls, f"{len(calls)} more runs of the network"
        assert finished.shape == (22, 50, 70, 3), finished.shape
    finally:
        core.Student.forward = forward


def check_compare_measure_degrade():
    images = clip(23, 41, 50)
    graph = {
        "hr": stored("hr", images),
        "lr": node("Degrade", images=["hr", 0], kind="light", scale=2, seed=5),
    }
    (lr,) = run({**graph, "out": graph["lr"]})
    assert lr.shape == (23, 20, 25, 3)
    shapes = {
        "side by side": (23, 41, 108, 3),
        "wipe": (23, 41, 50, 3),
        "difference": (23, 41, 50, 3),
        "time slice": (1, 23 * 11, 108, 3),
    }
    for view, shape in shapes.items():
        graph["out"] = node("Compare", a=["lr", 0], b=["hr", 0], view=view, position=0.5, gain=4.0)
        (shown,) = run(graph)
        assert shown.shape == shape and shown.isfinite().all(), (view, shown.shape)
    graph["out"] = node("Metrics", images=["hr", 0], reference=["hr", 0], seam_period=5)
    found = [run({**graph, "take": index})[0] for index in range(8)]
    assert found[1] == float("inf") and abs(found[2] - 1) < 1e-9 and found[5] == 0 and found[6:] == [0, 0], found
    assert "dB" in found[0] and found[3] > 0 and found[4] > 0
    broken = images.clone()
    broken[4] = float("nan")
    graph["hr"] = stored("hr", broken)
    graph["out"] = node("Metrics", images=["hr", 0], seam_period=0)
    assert run({**graph, "take": 7})[0] == 1


def check_loras_are_listed_apart_and_put_on():
    kit = sys.modules[f"{PREFIX}adcvsr_core.lora"]
    student, file = core.load_student("default"), BASE / "elsewhere" / "film.safetensors"
    change = {"decoder.conv_out.bias.delta": torch.tensor([1.0, -1.0, 0.5])}
    found = dict(rank=1, alpha=1.0, config=student.config, base=kit.fingerprint(student.state_dict()))
    kit.save_lora(kit.Lora(tensors=change, **found), file)
    folder_paths.filename_list_cache.clear()
    menus = {each.id: each.options for each in nodes.NODE_CLASS_MAPPINGS["AdcVSR_LoadModel"].GET_SCHEMA().inputs[:3]}
    assert menus["lora"] == ["none", "film.safetensors"] and "film.safetensors" not in menus["model"], menus
    graph, executor, plain = upscale_graph(clip()), new_executor(), engine(clip())
    for strength in (0.0, 1.0, -0.5):
        graph["model"] = node("LoadModel", model="default", dtype="auto", lora=file.name, lora_strength=strength)
        (images,) = run(graph, executor)
        student = core.load_student("default")
        kit.merge_lora(student, kit.read_lora(file), strength)
        expected = torch.cat(list(core.upscale([clip()], student, core.UpscaleConfig(**SETTINGS))))
        assert torch.equal(images, expected), strength
        assert torch.equal(images, plain) == (strength == 0)
    kit.save_lora(kit.Lora(tensors={"nothing.delta": torch.zeros(1)}, **found), file)
    message = error_of(graph)
    assert "film.safetensors: 1 unknown keys" in message and str(BASE) not in message, message
    file.unlink()


def check_fidelity_mixes_a_model_with_its_rich_partner():
    save, folder = sys.modules[f"{PREFIX}adcvsr_core.checkpoint"].save_student, BASE / "elsewhere"
    for seed, name in enumerate(("two", "two.rich", "alone")):
        torch.manual_seed(seed)
        save(core.Student(core.PRESETS["nano"]), folder / f"{name}.safetensors")
    folder_paths.filename_list_cache.clear()
    (menu,) = (each.options for each in nodes.NODE_CLASS_MAPPINGS["AdcVSR_LoadModel"].GET_SCHEMA().inputs[:1])
    assert {"two.safetensors", "alone.safetensors"} <= set(menu) and "two.rich.safetensors" not in menu, menu
    graph, executor = upscale_graph(clip(6)), new_executor()
    for fidelity in (1.0, 0.5, 0.0):
        graph["model"] = node("LoadModel", model="two.safetensors", dtype="auto", fidelity=fidelity)
        (images,) = run(graph, executor)
        student = core.load_student(folder / "two.safetensors", fidelity=fidelity)
        assert torch.equal(images, torch.cat(list(core.upscale([clip(6)], student, core.UpscaleConfig(**SETTINGS)))))
    torch.manual_seed(7)
    save(core.Student(core.PRESETS["nano"]), folder / "two.rich.safetensors")
    (others,) = run(graph, executor)
    assert not torch.equal(others, images), "a new rich partner is seen at once"
    graph["model"] = node("LoadModel", model="alone.safetensors", dtype="auto", fidelity=0.5)
    message = error_of(graph)
    assert "alone.rich.safetensors beside it" in message and str(BASE) not in message, message
    (BASE / "secret.safetensors").write_bytes((folder / "two.safetensors").read_bytes())
    (folder / "alone.rich.safetensors").symlink_to(BASE / "secret.safetensors")
    message = error_of(graph)
    assert "alone.rich.safetensors is a link out of its folder" in message and str(BASE) not in message, message
    for name in ("two", "two.rich", "alone", "alone.rich"):
        (folder / f"{name}.safetensors").unlink()


def check_windows_of_a_recurrent_model_are_never_called_exact():
    save = sys.modules[f"{PREFIX}adcvsr_core.checkpoint"].save_student
    config = dataclasses.replace(core.PRESETS["default"], temporal="none", recurrent=True)
    save(core.Student(config), BASE / "elsewhere" / "recurrent.safetensors")
    folder_paths.filename_list_cache.clear()
    graph = upscale_graph(clip(8, 24, 30))
    graph["model"] = node("LoadModel", model="recurrent.safetensors", dtype="auto")
    graph["split"] = node("SplitWindows", images=["images", 0], core=4, halo=18)
    graph["sr"] = node("Upscale", **graph["out"]["inputs"] | {"images": ["split", 0]})
    for join, expected in (("auto", "not exact"), ("cut", "seams are possible")):
        stitched = node("StitchWindows", images=["sr", 0], windows=["split", 1], join=join, model=["model", 0])
        (report,) = run({**graph, "out": stitched, "take": 1})
        assert expected in report and "recurrent" in report, report


call({name: each for name, each in globals().items() if name.startswith("check_")})
