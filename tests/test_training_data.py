"""Laws of training data: exact motion, samples that depend on their number alone, and what is held out."""

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adcvsr_core.degradation import DEGRADATIONS
from adcvsr_core.errors import ConfigError, InputError
from tests.training_material import smooth_noise
from training import clips, prepare_bundled_data, preview_data
from training.clips import Clip, draw_frames, split
from training.config import AdversaryConfig, DataConfig, LossConfig, StageConfig
from training.motion import Cutout, Motion, Scene, draw_motion, draw_scene, pixel_grid
from training.sampling import Batches, draw_order, make_loader, needs_neighbours
from training.sources import HELD_OUT_FILE, Corpus, open_source

MIXTURE = (("clean", 0.5), ("h264", 0.25), ("light", 0.25))
EVERYTHING = {"loss": LossConfig(flow=1.0), "adversary": AdversaryConfig()}


def stage_of(**changes) -> StageConfig:
    values = {"name": "clips", "steps": 6, "batch": 2, "num_frames": 3, "lr_size": 16, "mixture": MIXTURE}
    return StageConfig(**({"temporal_strength": 1.0} | values | changes))


def test_a_teacher_of_clean_clips_sees_the_same_clip_under_any_damage(folder: Path) -> None:
    """A pool then limits the clips, not what is done to them."""
    stage = {"mixture": (("clean", 0.3), ("h264", 0.4), ("noise10", 0.3)), "steps": 12, "num_frames": 1}
    batches = batches_of(folder, pool=4, stage=stage, with_clean=True)
    samples = [batches.sample(*divmod(number, 2)) for number in range(24)]
    for number, sample in enumerate(samples):
        first = samples[number % 4]
        assert sample["key"] == first["key"] and torch.equal(sample["clean"], first["clean"])
        assert torch.equal(sample["hr"], first["hr"]) and sample["clean"].shape == sample["lr"].shape
        hr = sample["hr"] * 0.5 + 0.5
        small = torch.nn.functional.interpolate(hr, scale_factor=0.25, mode="bicubic", antialias=True)
        assert (sample["clean"] * 0.5 + 0.5 - small.clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-5
    distances = [(sample["lr"] - sample["clean"]).abs().mean().item() for sample in samples]
    assert min(distances) == 0 and max(distances) > 0.01, "some are clean, some are not"
    assert len({round(distance, 6) for distance in distances[::4]}) > 2, "one clip, several damages"


def batches_of(folder: Path, *, seed: int = 0, pool: int = 0, share: float = 0.5, stage: dict | None = None, **options):
    data = DataConfig(pool=pool, video_share=share)
    return Batches(open_source(folder, data), stage_of(**(stage or {})), data, seed, **options)


def equal(a: dict, b: dict) -> bool:
    same = [torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name] for name in a]
    return a.keys() == b.keys() and all(same)


# Motion


@pytest.mark.parametrize("seed", range(8))
def test_camera_stays_inside_the_photograph(seed: int) -> None:
    motion = draw_motion(np.random.default_rng(seed), 7, (64, 64), (240, 300))
    for t in range(7):
        points = motion.points(t, pixel_grid(64, 64))
        assert points.min() >= -0.5 and (points.max((0, 1)) <= [299.5, 239.5]).all()


def test_rendering_shows_the_points_it_says() -> None:
    photo = np.zeros((200, 300, 3), np.uint8)
    photo[..., 0], photo[..., 1] = np.arange(300)[None] * 0.8, np.arange(200)[:, None]
    motion = draw_motion(np.random.default_rng(3), 4, (48, 48), (200, 300))
    frames = Scene(photo, motion).render()[0].numpy() * 255
    for t in range(4):
        points = motion.points(t, pixel_grid(48, 48))
        assert np.abs(frames[t, ..., 0] - points[..., 0] * 0.8).max() < 1.1
        assert np.abs(frames[t, ..., 1] - points[..., 1]).max() < 0.1


def test_flow_leads_to_the_same_point() -> None:
    motion = draw_motion(np.random.default_rng(5), 3, (32, 48), (200, 300))
    pixels = pixel_grid(32, 48)
    points = motion.points(0, pixels)
    assert np.allclose(points, motion.points(1, pixels + motion.flow(0)))
    assert np.allclose(motion.pixels(0, points), pixels)


def test_flow_of_a_plain_pan() -> None:
    motion = Motion(np.array([[50.0, 50.0], [52.0, 50.0]]), np.ones(2), np.zeros(2), (16, 16))
    assert np.allclose(motion.flow(0), [-2.0, 0.0])


def test_what_a_moving_front_covers_is_hidden() -> None:
    """A square of 20 pixels goes right by 5 over a background at rest: the 5 columns before it get hidden."""
    still = Motion(np.full((2, 2), 60.0), np.ones(2), np.zeros(2), (64, 64))
    pan = Motion(np.array([[60.0, 60.0], [55.0, 60.0]]), np.ones(2), np.zeros(2), (64, 64))
    mask = np.pad(np.ones((20, 20), np.float32), 2)
    photo, front = np.zeros((120, 120, 3), np.uint8), np.full((120, 120, 3), 255, np.uint8)
    frames, flow, visible = Scene(photo, still, (front, pan, Cutout((48, 48), mask))).render()
    corner = pan.pixels(0, np.array([50.0, 50.0]))
    left, top = corner.round().astype(int)
    inside = (slice(top + 2, top + 18), slice(left + 2, left + 18))
    ahead = (slice(top + 2, top + 18), slice(left + 22, left + 24))
    beyond = (slice(None), slice(left + 28, 62))
    assert (frames[0][inside] > 0.999).all() and (flow[0][inside] == torch.tensor([5.0, 0.0])).all()
    assert visible[0][inside].all() and visible[0][beyond].all()
    assert not visible[0][ahead].any() and (frames[0][ahead] < 0.001).all() and (frames[1][ahead] > 0.999).all()
    assert (flow[0][ahead] == 0).all() and (flow[0][beyond] == 0).all()


TURNS: dict[str, Callable[[Clip], Clip]] = {
    "as drawn": lambda clip: clip,
    "mirrored": Clip.mirrored,
    "transposed": Clip.transposed,
    "mirrored and transposed": lambda clip: clip.mirrored().transposed(),
}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_flow_takes_the_next_frame_back_where_it_is_visible(seed: int, backwards: bool, turn: str) -> None:
    photos = smooth_noise(240, 300, 10), 255 - smooth_noise(240, 300, 11) // 3
    scene = draw_scene(np.random.default_rng(seed), 4, (64, 64), *photos)
    frames, flow, visible = (scene.reversed() if backwards else scene).render()
    lr = torch.nn.functional.avg_pool2d(frames.permute(0, 3, 1, 2), 4).permute(0, 2, 3, 1)
    clip = TURNS[turn](Clip(frames=frames, name="", flow=flow, visible=visible, lr=lr))
    small = torch.nn.functional.avg_pool2d(clip.frames.permute(0, 3, 1, 2), 4).permute(0, 2, 3, 1)
    assert (clip.lr - small).abs().max() < 1e-6
    grid = (clip.flow + torch.from_numpy(pixel_grid(64, 64)).float()) * 2 / 63 - 1
    following = clip.frames[1:].permute(0, 3, 1, 2)
    warped = torch.nn.functional.grid_sample(following, grid, align_corners=True).permute(0, 2, 3, 1)
    error = (warped - clip.frames[:-1]).abs().mean(dim=3)
    inside = (grid.abs() <= 1).all(dim=3)
    hidden = inside & (clip.visible == 0)
    assert 0.5 < clip.visible.mean() < 1 and not (clip.visible.bool() & ~inside).any()
    seen = error[clip.visible.bool()].mean()
    assert seen < 0.006 and error[hidden].mean() > 3 * seen
    unwarped = (clip.frames[1:] - clip.frames[:-1]).abs().mean(dim=3)
    moving = clip.visible.bool() & (clip.flow.norm(dim=3) > 1)
    assert not moving.any() or unwarped[moving].mean() > 3 * error[moving].mean(), "the flow explains nothing"


def test_a_reversed_scene_shows_the_same_frames_in_reverse() -> None:
    scene = draw_scene(np.random.default_rng(1), 4, (48, 48), smooth_noise(160, 200, 1), smooth_noise(160, 200, 2))
    assert torch.equal(scene.reversed().render()[0], scene.render()[0].flip(0))


def test_before_a_fixed_camera_only_the_front_moves() -> None:
    photos = smooth_noise(160, 200, 1), smooth_noise(160, 200, 2)
    frames, flow, visible = draw_scene(np.random.default_rng(1), 4, (48, 48), *photos, fixed=True).render()
    still = (flow.abs() < 1e-6).all(dim=3)
    assert 0.3 < still.float().mean() < 1
    change = (frames[1:] - frames[:-1]).abs().amax(dim=3)
    assert change[still & visible.bool()].max() < 1 / 255 < change.max()


@pytest.mark.parametrize("name", ["fixed_camera", "page_share"])
@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_a_share(name: str, share: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} .* outside"):
        DataConfig(**{name: share})


def test_one_frame_has_no_motion() -> None:
    frames, flow, visible = draw_scene(np.random.default_rng(0), 1, (32, 32), smooth_noise(96, 96, 0), None).render()
    assert frames.shape == (1, 32, 32, 3) and flow.shape == (0, 32, 32, 2) and visible.shape == (0, 32, 32)


# Sampling


def test_a_sample_depends_on_nothing_but_its_number(folder: Path) -> None:
    forward = [batches_of(folder, stage=EVERYTHING)[step] for step in range(6)]
    batches = batches_of(folder, stage=EVERYTHING)
    for step in reversed(range(6)):
        assert equal(batches[step], forward[step]), f"step {step}"
    keys = {key for batch in forward for key in batch["keys"]}
    assert len(keys) == 12
    assert not keys & set(batches_of(folder, seed=1)[0]["keys"])
    assert not keys & set(batches_of(folder, stage={"seed_offset": 1})[0]["keys"])


def test_workers_change_nothing(folder: Path) -> None:
    alone = list(make_loader(batches_of(folder, micro_batch=1), 2, workers=0))
    helped = list(make_loader(batches_of(folder, micro_batch=1), 2, workers=2))
    numbers = [(step, micro) for step in range(2, 6) for micro in range(2)]
    assert [item[:2] for item in alone] == [item[:2] for item in helped] == numbers
    assert all(equal(a[2], b[2]) for a, b in zip(alone, helped, strict=True))


@pytest.mark.parametrize(("world", "micro_batch"), [(1, 0), (1, 2), (2, 0), (2, 1), (4, 1)])
def test_processes_and_micro_batches_share_one_global_batch(folder: Path, world: int, micro_batch: int) -> None:
    stage = {"batch": 4} | EVERYTHING
    whole = batches_of(folder, stage=stage)[3]
    ranks = [batches_of(folder, stage=stage, rank=rank, world=world, micro_batch=micro_batch) for rank in range(world)]
    num_micro = ranks[0].num_micro
    assert len(ranks[0]) == 6 * num_micro and ranks[0].size * world * num_micro == 4
    parts = [batches[3 * num_micro + micro] for micro in range(num_micro) for batches in ranks]
    joined = {name: torch.cat([part[name] for part in parts]) for name in whole if name != "keys"}
    assert equal(joined | {"keys": [key for part in parts for key in part["keys"]]}, whole)


@pytest.mark.parametrize(("batch", "world", "micro_batch"), [(3, 2, 0), (4, 1, 3), (4, 3, 1), (1, 2, 0)])
def test_a_batch_that_does_not_divide_is_refused(folder: Path, batch: int, world: int, micro_batch: int) -> None:
    with pytest.raises(ConfigError, match=f"{batch} clips a step do not divide"):
        batches_of(folder, stage={"batch": batch}, world=world, micro_batch=micro_batch)


def test_a_pool_comes_again_and_the_real_material_does_not(folder: Path) -> None:
    batches = batches_of(folder, pool=3, stage=EVERYTHING)
    samples = [batches.sample(*divmod(number, 2)) for number in range(9)]
    assert len({sample["key"] for sample in samples}) == 3
    for name in ("lr", "hr", "flow", "key"):
        assert all(equal({name: a[name]}, {name: b[name]}) for a, b in zip(samples, samples[3:], strict=False))
    assert not any(torch.equal(a["real"], b["real"]) for a, b in zip(samples, samples[3:], strict=False))


def test_further_fields_do_not_change_the_pairs(folder: Path) -> None:
    plain, full = batches_of(folder)[1], batches_of(folder, stage=EVERYTHING)[1]
    assert set(plain) == {"lr", "hr", "keys"}
    assert set(full) == {"lr", "hr", "keys", "flow", "visible", "real", "order", "crops"}
    assert equal({name: full[name] for name in plain}, plain)


def test_samples_have_the_stated_shape_and_range(folder: Path) -> None:
    batch = batches_of(folder, stage=EVERYTHING)[0]
    shapes = {name: tuple(value.shape) for name, value in batch.items() if name != "keys"}
    assert shapes.pop("lr") == (2, 3, 3, 16, 16) and shapes.pop("order") == (2, 3)
    assert shapes.pop("flow") == (2, 2, 2, 64, 64) and shapes.pop("visible") == (2, 2, 1, 64, 64)
    assert set(shapes) == {"hr", "real", "crops"} and set(shapes.values()) == {(2, 3, 3, 64, 64)}
    assert all(batch[name].abs().max() <= 1 for name in ("lr", "hr", "real", "crops"))
    small = torch.nn.functional.interpolate(batch["hr"].flatten(0, 1), scale_factor=0.25, mode="area")
    assert (small - batch["lr"].flatten(0, 1)).abs().mean() < 0.15, "lr does not show what hr shows"


def test_the_material_of_the_fields(folder: Path) -> None:
    """Video has no known motion; the real clip is video whatever the share; crops differ from each other."""
    from_video = batches_of(folder, share=1.0, stage=EVERYTHING).sample(0, 0)
    assert "film" in from_video["key"] and not from_video["flow"].any() and not from_video["visible"].any()
    sample = batches_of(folder, share=0.0, stage=EVERYTHING).sample(0, 0)
    assert "in motion" in sample["key"] and sample["visible"].any()
    film = torch.from_numpy(Corpus(folder).film.copy()).float() / 127.5 - 1
    corners = film.unfold(1, 64, 1).unfold(2, 64, 1)[..., 0, 0]  # of every crop that there is: [N,y,x,3]
    wanted = sample["real"][0]
    flips = [wanted, wanted.flip(2), wanted.transpose(1, 2), wanted.flip(2).transpose(1, 2)]
    assert any((corners - flip[:, 0, 0]).abs().amax(3).min() < 1e-6 for flip in flips)
    assert not torch.equal(sample["crops"][0], sample["crops"][1])


def test_only_what_the_discriminators_are_told_is_drawn(folder: Path) -> None:
    single = {"adversary": AdversaryConfig(heads="single"), "num_frames": 1}
    assert set(batches_of(folder, stage=single)[0]) == {"lr", "hr", "keys", "real", "crops"}
    silent = {"adversary": AdversaryConfig(real=0, shuffled=0, still=0)}
    assert set(batches_of(folder, stage=silent)[0]) == {"lr", "hr", "keys", "crops"}
    with pytest.raises(ConfigError, match="shuffled=0"):
        batches_of(folder, stage={"adversary": AdversaryConfig(), "num_frames": 2})


@pytest.mark.parametrize("num_frames", [3, 4, 7])
def test_shuffling_is_neither_forwards_nor_backwards(num_frames: int) -> None:
    forwards = list(range(num_frames))
    for seed in range(50):
        order = list(draw_order(np.random.default_rng(seed), num_frames))
        assert sorted(order) == forwards and order not in (forwards, forwards[::-1])


def test_a_key_tells_the_degradation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = {"mixture": (("light", 1.0),)}
    before = batches_of(folder, stage=stage).sample(0, 0)
    monkeypatch.setitem(DEGRADATIONS, "light", dataclasses.replace(DEGRADATIONS["light"], blur_sigma=(2.0, 2.4)))
    after = batches_of(folder, stage=stage).sample(0, 0)
    assert torch.equal(before["hr"], after["hr"]) and before["key"] != after["key"]
    other = batches_of(folder, stage={"mixture": (("clean", 1.0),)}).sample(0, 0)
    assert other["key"] not in (before["key"], after["key"])


def test_a_key_tells_the_content(folder: Path, tmp_path: Path) -> None:
    for name in ("film.npy", "corpus.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "photographs").mkdir()
    for file in (folder / "photographs").iterdir():
        np.save(tmp_path / "photographs" / file.name, 255 - np.load(file))
    a, b = (batches_of(path, share=0.0).sample(0, 0) for path in (folder, tmp_path))
    assert a["key"] != b["key"]
    a, b = (batches_of(path, share=1.0).sample(0, 0) for path in (folder, tmp_path))
    assert equal(a, b), "the same film elsewhere"


def test_single_frames_get_neighbours_where_they_matter(folder: Path) -> None:
    alone = {"clean", "light", "noise10", "realesrgan_adcsr"}
    assert {name for name, config in DEGRADATIONS.items() if not needs_neighbours(config)} == alone
    coded = batches_of(folder, stage={"num_frames": 1, "mixture": (("h264", 1.0),)})
    samples = [coded.sample(step, 0) for step in range(6)]
    assert all(sample["hr"].shape[0] == 1 for sample in samples)
    assert {sample["key"].split(" frame ")[-1][0] for sample in samples} == {"0", "1", "2"}


# Drawing


def test_frames_follow_the_mode() -> None:
    def drawn(mode: str, length: int = 40) -> set[range]:
        data = DataConfig(mode=mode, stride=3)
        return {draw_frames(np.random.default_rng(seed), length, 5, data) for seed in range(900)}

    assert {frames.step for frames in drawn("uniform")} == {1, 2, 3}
    assert {frames.start for frames in drawn("uniform") if frames.step == 1} == set(range(36))
    assert {frames.start for frames in drawn("head")} == {0}
    assert {frames.start for frames in drawn("slide") if frames.step == 1} == set(range(0, 36, 2))
    assert {frames.step for frames in drawn("full")} == {9} and {f.start for f in drawn("full")} == {0, 1, 2, 3}
    for mode in ("uniform", "head", "slide", "full"):
        assert all(len(f) == 5 and f.start >= 0 and f[-1] < length for length in (5, 7) for f in drawn(mode, length))
    assert draw_frames(np.random.default_rng(0), 1, 1, DataConfig(mode="full")) == range(1)


def test_crops_have_more_detail_than_chance(folder: Path) -> None:
    source = Corpus(folder)
    photo = np.full((240, 300, 3), 128, np.uint8)
    photo[:, 150:] = smooth_noise(240, 150, 1)
    for still in source.stills:
        still.array = photo
    deviations = [source.draw_crop(np.random.default_rng(seed), 32).std() for seed in range(200)]
    # One place would be flat in 119 of 269 cases, both of two in their square.
    assert np.mean([deviation < 1e-6 for deviation in deviations]) < 0.28


def test_held_out_is_stable_and_never_empty() -> None:
    tokens = [f"shot {index}" for index in range(400)]
    held = split(tokens, 0.1)
    assert 20 <= sum(held) <= 60
    more = split([*tokens, "one more", "and another"], 0.1)
    assert more[:400] == held
    for count in (2, 3, 5):
        few = split(tokens[:count], 0.01)
        assert sum(few) == 1 and sum(split(tokens[:count], 0.999)) == count - 1
    assert split(tokens[:1], 0.5) == [False] and not any(split(tokens, 0.0))
    assert split(["a", "b", "a"], 0.01)[0] == split(["a", "b", "a"], 0.01)[2], "a copy stays with its original"


# The prepared folder


def test_held_out_material_is_never_trained_on(folder: Path) -> None:
    train, held_out = Corpus(folder), Corpus(folder, "heldout")
    spans = [[(shot.start, shot.stop) for shot in source.shots] for source in (train, held_out)]
    assert spans == [[(0, 12), (12, 24)], [(24, 36)]]
    assert set(train.photographs) == {"a", "b", "p"} and set(held_out.photographs) == {"c"}


def test_a_corpus_goes_to_other_processes_without_its_pixels(folder: Path) -> None:
    source = open_source(folder, DataConfig())
    sent = pickle.dumps(source)
    assert len(sent) < 20_000
    a, b = (each.draw_clip(np.random.default_rng(1), 3, 64) for each in (source, pickle.loads(sent)))
    assert a.name == b.name and torch.equal(a.frames, b.frames)


def test_what_does_not_fit_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="prepare_bundled_data"):
        Corpus(tmp_path)
    with pytest.raises(InputError, match=r"frames of 448x448.*240 pixels"):
        batches_of(folder, stage={"lr_size": 112})
    with pytest.raises(ConfigError, match="train, heldout"):
        open_source(folder, DataConfig(), "validation")
    with pytest.raises(InputError, match="low-resolution"):
        open_source(folder, DataConfig(), targets=tmp_path)
    said = []
    source = open_source(folder, DataConfig(), report=said.append)
    source.check(3, 208)
    assert len(said) == 1 and "film.npy (200x192)" in said[0]


def test_held_out_list_fits_what_is_evaluated() -> None:
    listed = json.loads(HELD_OUT_FILE.read_text())
    for start in listed["evaluation"]["film"].values():
        last = start + listed["evaluation"]["num_frames"]
        assert any(low <= start and last <= high for low, high in listed["film"])
    known = {name for files in prepare_bundled_data.PHOTOGRAPHS.values() for name in files}
    assert set(listed["photographs"]) <= known and len(known) == 48


def test_shots_are_cut_where_the_picture_changes() -> None:
    thumbnails = np.concatenate([np.full((20, 4, 4, 3), level, np.float32) for level in (20, 120, 60)])
    thumbnails += np.linspace(0, 10, 60, dtype=np.float32)[:, None, None, None]
    assert prepare_bundled_data.find_shots(thumbnails) == [[0, 20], [20, 40], [40, 60]]


def test_another_file_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    package = prepare_bundled_data.FEATURES
    (tmp_path / package.file).write_bytes(b"something else")
    with pytest.raises(InputError, match="expected a412bf90"):
        prepare_bundled_data.fetch(package, tmp_path)


# The contact sheet


def test_the_sheet_shows_the_clips(folder: Path, tmp_path: Path) -> None:
    command = ["--recipe", "debug", "--data", str(folder), "--num", "2", "--out"]
    assert preview_data.main([*command, str(tmp_path / "clips.png"), "--stage", "1"]) == 0
    assert preview_data.main([*command, str(tmp_path / "adversary.png")]) == 0
    clips_sheet, adversary = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("clips", "adversary"))
    assert adversary.shape[0] > clips_sheet.shape[0] + 4 * 64, "no rows for the discriminators' clips"
    config = preview_data.get_recipe("debug")
    source = open_source(folder, config.data)
    first = Batches(source, config.stages[1], config.data, config.seed).sample(0, 0)["hr"][0]
    shown = (first.permute(1, 2, 0).numpy() * 127.5 + 127.5).round().astype(np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(clips_sheet, shown.shape)[:, :, 0]
    assert any((windows[y, x] == shown).all() for y, x in np.argwhere((windows[:, :, 0, 0] == shown[0, 0]).all(2)))
    assert preview_data.main([*command, str(tmp_path / "no.png"), "--stage", "9"]) == 1
    assert not (tmp_path / "no.png").exists()


def test_a_share_of_moving_photographs_has_a_front(folder: Path) -> None:
    source = open_source(folder, DataConfig(video_share=0.0))
    names = [source.draw_clip(np.random.default_rng(seed), 2, 32).name for seed in range(60)]
    assert abs(np.mean([" behind " in name for name in names]) - clips.FRONT_SHARE) < 0.2
