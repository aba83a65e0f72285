"""Laws of reading foreign archives: tensors come out, nothing is imported, called, altered or believed."""

import os
import pathlib
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from adcvsr_core.errors import CheckpointError
from adcvsr_core.pickles import TorchArchive


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


def payloads(marker: Path) -> dict:
    """Return objects that write a marker file when something unpickles them carelessly."""
    write = f"open({str(marker)!r}, 'w').write('ran')"
    run = Call(os.system, f"echo ran > {marker}")
    return {
        "system": run,
        "eval": Call(eval, write),
        "exec": Call(exec, write),
        "getattr": Call(getattr, Call(__import__, "os"), "system"),
        "nested": {"a": [({"b": (run,)},)], run: "key"},
        "argument": Call(OrderedDict, [("a", run)]),
        "state": Call(OrderedDict, state={"x": run}),
        "path": Call(pathlib.Path, run),
        "partial": Call(map, Call(eval, "exec"), [write]),
        "import": Call(__import__, "this"),
    }


NAMES = list(payloads(Path("marker")))


def save(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def test_tensors_come_back(tmp_path: Path) -> None:
    base = torch.arange(24.0).view(2, 3, 4)
    tensors = {
        "plain": base,
        "view": base[:, 1:, ::2],
        "turned": base.transpose(0, 2),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 5),
        "parameter": nn.Parameter(base.clone()),
    }
    tensors |= {str(t): base.to(t) for t in (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.bool)}
    with TorchArchive(save(OrderedDict(tensors), tmp_path / "a.pt")) as archive:
        lazy = archive.state_dict()
        assert lazy.keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert lazy[key].shape == tensor.shape and torch.equal(lazy[key].read(), tensor), key
            assert lazy[key].read().dtype == tensor.dtype


def test_a_module_state_dict_comes_back(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    for content in (module.state_dict(), {"state_dict": module.state_dict(), "epoch": 3}):
        with TorchArchive(save(content, tmp_path / "a.pt")) as archive:
            state = {key: lazy.read() for key, lazy in archive.state_dict().items()}
        assert state.keys() == module.state_dict().keys()
        assert all(torch.equal(state[key], tensor) for key, tensor in module.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_hostile_pickle_beside_tensors_stays_inert(tmp_path: Path, name: str) -> None:
    sys.modules.pop("this", None)
    path = save({"state_dict": {"a": torch.ones(2)}, "other": payloads(tmp_path / "ran")[name]}, tmp_path / "a.pt")
    with TorchArchive(path) as archive:
        assert archive.state_dict()["a"].read().tolist() == [1, 1]
    assert not (tmp_path / "ran").exists() and "this" not in sys.modules


@pytest.mark.parametrize("name", NAMES)
def test_hostile_pickle_in_place_of_a_tensor_is_refused(tmp_path: Path, name: str) -> None:
    path = save({"a": torch.ones(2), "b": payloads(tmp_path / "ran")[name]}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt: b is .*; expected a tensor"), TorchArchive(path) as archive:
        archive.state_dict()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("nested", "argument", "state")])
def test_hostile_pickle_in_place_of_everything_is_refused(tmp_path: Path, name: str) -> None:
    path = save(payloads(tmp_path / "ran")[name], tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="instead of a dictionary"), TorchArchive(path) as archive:
        archive.state_dict()
    assert not (tmp_path / "ran").exists()


def raw_archive(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", struct.pack("<4f", 1, 2, 3, 4))
    return path


def rebuild(storage: str = "FloatStorage", key: str = "0", num: int = 4, offset=0, shape=(4,), stride=(1,)) -> bytes:
    """Return the opcodes of one tensor, without protocol and stop."""

    def plain(value: object) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    pid = b"(" + plain("storage") + f"ctorch\n{storage}\n".encode() + plain(key) + plain("cpu") + plain(num) + b"tQ"
    arguments = pid + plain(offset) + plain(shape) + plain(stride) + b"\x89" + b"N"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def test_raw_tensor_is_read(tmp_path: Path) -> None:
    path = raw_archive(tmp_path / "a.pt", b"\x80\x02}X\x01\x00\x00\x00a" + rebuild(shape=(2, 2), stride=(1, 2)) + b"s.")
    with TorchArchive(path) as archive:
        assert archive.state_dict()["a"].read().tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize(
    "tensor",
    [
        rebuild(num=5),
        rebuild(num=2**62),
        rebuild(storage="DoubleStorage"),
        rebuild(key="1"),
        rebuild(key="../data.pkl"),
        rebuild(shape=(5,)),
        rebuild(offset=1),
        rebuild(offset=-1),
        rebuild(stride=(-1,)),
        rebuild(stride=(2,)),
        rebuild(shape=(1 << 40, 1 << 40), stride=(0, 0)),
        rebuild(shape=(4, 1)),
        rebuild(shape=4),
        rebuild(storage="UnknownStorage"),
        rebuild() + b"}X\x06\x00\x00\x00offsetK\x03sb}X\x05\x00\x00\x00shape(K\x09tsb" + b"N\x85R",
    ],
)
def test_absurd_tensor_is_an_error(tmp_path: Path, tensor: bytes) -> None:
    path = raw_archive(tmp_path / "a.pt", b"\x80\x02}X\x01\x00\x00\x00a" + tensor + b"s.")
    with pytest.raises(CheckpointError, match=r"a\.pt"):
        with TorchArchive(path) as archive:
            archive.state_dict()["a"].read()


def test_a_pickle_cannot_alter_a_tensor_or_the_reader(tmp_path: Path) -> None:
    state = b"}X\x06\x00\x00\x00offsetK\x03sb"  # BUILD with {"offset": 3}
    functions = (
        b"ctorch._utils\n_rebuild_tensor_v2\n" + state + b"0" + b"ctorch._utils\n_rebuild_parameter\n" + state + b"0"
    )
    text = b"\x80\x02" + functions + b"}X\x01\x00\x00\x00a" + rebuild() + state + b"s."
    with TorchArchive(raw_archive(tmp_path / "a.pt", text)) as archive:
        assert archive.state_dict()["a"].read().tolist() == [1, 2, 3, 4]
    slots = b"N}X\x07\x00\x00\x00find_ncN\x86b"
    for target in (b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n", b"cos\nsystem\n"):
        with pytest.raises(CheckpointError, match="damaged"):
            TorchArchive(raw_archive(tmp_path / "b.pt", b"\x80\x02" + target + slots + b"."))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b".",
        b"\x80\x02",
        b"\x80\x09N.",
        b"hello",
        b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.",  # a byte array of a terabyte
        b"\x80\x02(" * 50_000,
        b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
        b"\x80\x02\x82\x01.",  # an extension code
        b"\x80\x02X\x01\x00\x00\x00aQ.",
        b"\x80\x02N.",
    ],
)
def test_broken_pickle_is_an_error(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"a\.pt"):
        with TorchArchive(raw_archive(tmp_path / "a.pt", text)) as archive:
            archive.state_dict()


@pytest.mark.parametrize("text", [b"\x80\x02Nr\xff\xff\xff\x7f.", b"\x80\x02Np999999999\n."])
def test_a_memo_of_gigabytes_is_refused_before_it_is_made(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(CheckpointError, match="memo number"):
        TorchArchive(raw_archive(tmp_path / "a.pt", text))


@pytest.mark.parametrize("value", [b"K\x01", b"X\x03\x00\x00\x00a\nbX\x01\x00\x00\x00\x1b\x93)R"])
def test_messages_stay_one_printable_line(tmp_path: Path, value: bytes) -> None:
    path = raw_archive(tmp_path / "a.pt", b"\x80\x04}X\x03\x00\x00\x00a\n\x1b" + value + b"s.")
    with pytest.raises(CheckpointError) as caught, TorchArchive(path) as archive:
        archive.state_dict()
    assert str(caught.value).isprintable()


def test_compressed_archive_is_refused(tmp_path: Path) -> None:
    text = b"\x80\x02" + b"N0" * 1_000_000 + b"N."
    with pytest.raises(CheckpointError, match="compressed"):
        TorchArchive(raw_archive(tmp_path / "bomb.pt", text, zipfile.ZIP_DEFLATED))
