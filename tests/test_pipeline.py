"""Reading ahead and writing behind: the same pieces in the same order, errors in their place, nothing left running."""

import threading
import time
import weakref
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from adcvsr_core import engine, pipeline
from adcvsr_core.config import UpscaleConfig
from adcvsr_core.engine import upscale
from adcvsr_core.pipeline import Ahead, Behind, Landing, beside

NAPS = st.lists(st.sampled_from([0.0, 0.0, 0.001, 0.003]), min_size=12, max_size=12)


class Fault(Exception):
    """What a source or a writer may die of."""


class Piece:
    """Something that can be watched while it lives."""

    def __init__(self, index: int):
        self.index = index


class Source:
    """Pieces 0..count-1 at an uneven pace, an error in place of one of them; tells what happened and where."""

    def __init__(self, count: int, naps: list[float], fault_at: int | None = None):
        self.num_frames = count
        self.naps, self.fault_at = naps, fault_at
        self.num_made, self.num_live, self.most_live, self.closed_in = 0, 0, 0, None
        self.threads = set()

    def __iter__(self):
        try:
            for index in range(self.num_frames):
                self.threads.add(threading.get_ident())
                time.sleep(self.naps[index % len(self.naps)])
                if index == self.fault_at:
                    raise Fault(f"at {index}")
                yield self.make(index)
        finally:
            self.closed_in = threading.get_ident()

    def make(self, index: int) -> Piece:
        piece = Piece(index)
        self.num_made += 1
        self.num_live += 1
        self.most_live = max(self.most_live, self.num_live)
        weakref.finalize(piece, self.forget)
        return piece

    def forget(self) -> None:
        self.num_live -= 1


def ours() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith("adcvsr")]


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    yield
    assert not ours()


@given(count=st.integers(0, 12), depth=st.integers(1, 3), made=NAPS, used=NAPS)
def test_pieces_are_the_sources_and_no_more_live_than_promised(count, depth, made, used):
    source, seen, lead = Source(count, made), [], []
    with Ahead(source, depth) as pieces:
        assert pieces.num_frames == count and source.num_made == 0
        for piece in pieces:
            seen.append(piece.index)
            time.sleep(used[len(seen) % len(used)])
            lead.append(source.num_made - len(seen))
            del piece
    assert seen == list(range(count))
    assert max(lead, default=0) <= depth and source.most_live <= depth + 1
    assert source.num_live == 0
    assert threading.get_ident() not in source.threads and source.closed_in not in (None, threading.get_ident())


@given(fault_at=st.integers(0, 9), depth=st.integers(1, 3), made=NAPS, used=NAPS)
def test_an_error_comes_where_its_piece_would_have(fault_at, depth, made, used):
    source, seen = Source(10, made, fault_at), []
    with pytest.raises(Fault, match=f"at {fault_at}"), Ahead(source, depth) as pieces:
        for piece in pieces:
            seen.append(piece.index)
            time.sleep(used[len(seen) % len(used)])
    assert seen == list(range(fault_at)) and next(iter(pieces), None) is None
    assert source.closed_in in source.threads


@given(
    stop_at=st.integers(0, 9),
    depth=st.integers(1, 3),
    made=NAPS,
    kind=st.sampled_from([None, Fault, KeyboardInterrupt]),
)
def test_whoever_stops_early_leaves_nothing_behind(stop_at, depth, made, kind):
    source, seen = Source(100, made), []

    def use():
        with Ahead(source, depth) as pieces:
            for piece in pieces:
                if len(seen) == stop_at:
                    if kind is not None:
                        raise kind("enough")
                    return
                seen.append(piece.index)

    if kind is None:
        use()
    else:
        with pytest.raises(kind, match="enough"):
            use()
    assert seen == list(range(stop_at)) and not ours()
    assert source.num_made <= stop_at + 1 + depth and source.closed_in in source.threads
    assert source.num_live == 0


def test_a_generator_around_it_that_is_closed_stops_it():
    source = Source(100, [0.0])

    def passed_on():
        with Ahead(source) as pieces:
            yield from pieces

    pieces = passed_on()
    next(pieces)
    pieces.close()
    assert not ours() and source.closed_in in source.threads


def test_what_is_never_asked_for_is_never_made():
    source = Source(3, [0.0])
    with Ahead(source):
        pass
    assert source.num_made == 0 and source.closed_in is None


def test_the_source_works_while_its_pieces_are_used():
    source, both = Source(6, [0.0]), threading.Barrier(2, timeout=10)
    make = source.make

    def meet(index):
        if index:
            both.wait()  # neither side gets here unless the other does
        return make(index)

    source.make = meet
    with Ahead(source) as pieces:
        for piece in pieces:
            if piece.index < 5:
                both.wait()


@given(count=st.integers(0, 12), made=NAPS, used=NAPS)
def test_calls_are_made_once_in_order_and_one_at_a_time(count, made, used):
    done, threads = [], set()

    def work(index, nap):
        threads.add(threading.get_ident())
        time.sleep(nap)
        done.append(index)

    with Behind(work) as call:
        for index in range(count):
            time.sleep(made[index % len(made)])
            call(index, used[index % len(used)])
            assert index - 1 <= len(done)
    assert done == list(range(count)) and threading.get_ident() not in threads


@given(fault_at=st.integers(0, 9), used=NAPS)
def test_an_error_of_a_call_ends_the_calls(fault_at, used):
    done, called = [], []

    def work(index):
        time.sleep(used[index % len(used)])
        if index == fault_at:
            raise Fault(f"at {index}")
        done.append(index)

    with pytest.raises(Fault, match=f"at {fault_at}"), Behind(work) as call:
        for index in range(10):
            called.append(index)
            call(index)
    assert done == list(range(fault_at)) and called[-1] <= fault_at + 1


@pytest.mark.parametrize("kind", [Fault, KeyboardInterrupt])
def test_an_error_of_the_caller_lets_the_last_call_end_and_is_the_one_that_is_seen(kind):
    done = []

    def work(index):
        time.sleep(0.01)
        done.append(index)
        if index == 3:
            raise Fault("in vain")

    with pytest.raises(kind, match="mine"), Behind(work) as call:
        for index in range(4):
            call(index)
        raise kind("mine")
    assert done == [0, 1, 2, 3]


def test_frames_made_in_inference_mode_can_be_written_by_the_other_thread(tmp_path):
    """ComfyUI runs nodes in it, and it is each thread's own."""
    from adcvsr_core.video import VideoWriter, read_video

    writer = VideoWriter(tmp_path / "out.mp4", width=32, height=32, fps=24)
    with torch.inference_mode(), writer, Behind(writer.write) as write:
        for _ in range(3):
            write(torch.rand(2, 32, 32, 3))
    with torch.inference_mode(), read_video(tmp_path / "out.mp4") as reader, Ahead(reader) as pieces:
        assert sum(len(piece.mul_(2)) for piece in pieces) == 6


@settings(max_examples=3)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4), made=NAPS)
def test_the_engine_gives_the_same_frames(student, sizes, made):
    pieces = [torch.rand(size, 16, 16, 3) for size in sizes]

    def slow():
        for index, piece in enumerate(pieces):
            time.sleep(made[index % len(made)])
            yield piece

    config = UpscaleConfig(chunk=4, cuts=0.0)
    written = []
    with Ahead(slow()) as source, Behind(lambda frames: written.append(frames.clone())) as write:
        for frames in upscale(source, student, config):
            write(frames)
    assert torch.equal(torch.cat(written), torch.cat(list(upscale(pieces, student, config))))


def test_frames_that_land_late_come_out_in_order_one_step_later(monkeypatch, student):
    """What a GPU does, with a copy that is under way until it is asked for."""
    events = []

    class Late(Landing):
        def __init__(self, parts, device):
            super().__init__(parts, device)
            events.append("launched")

        is_under_way = True

    clip, config = torch.rand(30, 16, 16, 3), UpscaleConfig(chunk=2, cuts=0.0)
    expected = torch.cat(list(upscale([clip], student, config)))
    monkeypatch.setattr(engine, "Landing", Late)
    seen = []
    for frames in upscale([clip], student, config, on_progress=lambda done, *_: events.append(done)):
        seen.append(frames)
        events.append("given")
    assert torch.equal(torch.cat(seen), expected)
    launches = [index for index, each in enumerate(events) if each == "launched"]
    gifts = [index for index, each in enumerate(events) if each == "given"]
    assert len(launches) == len(gifts) and all(later < gift for later, gift in zip(launches[1:], gifts))


def test_memory_that_cannot_be_pinned_is_copied_all_the_same(monkeypatch):
    class Part:
        is_cuda = True

        def __init__(self, text: str):
            self.text = text

        def to(self, *_, **__):
            raise RuntimeError(self.text)

        def cpu(self):
            return torch.ones(2)

    part = Part("CUDA error: out of memory")
    assert torch.equal(Landing([part], torch.device("cpu")).frames(), torch.ones(2))
    with pytest.raises(RuntimeError, match="a bug"):
        Landing([Part("a bug")], torch.device("cpu"))


def test_a_copy_is_waited_for_before_its_frames_are_read(monkeypatch):
    order = []
    event = SimpleNamespace(
        record=lambda stream: order.append("recorded"),
        query=lambda: False,
        synchronize=lambda: order.append("waited"),
    )
    monkeypatch.setattr(pipeline.torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(pipeline.torch.cuda, "current_stream", lambda device: None)
    parts = (order.append("copied") or torch.ones(1) for _ in range(2))
    landing = Landing(parts, torch.device("cuda"))
    assert landing.is_under_way and order == ["copied", "copied", "recorded"]
    assert len(landing.frames()) == 2 and order[-1] == "waited"


@pytest.mark.parametrize(("device", "threads"), [("cpu", False), ("cuda", True), ("mps", True)])
def test_a_cpu_reads_and_writes_in_turns(device, threads):
    source, written = iter(range(5)), []
    with beside(torch.device(device), source, written.append) as (pieces, write):
        assert (pieces is source, isinstance(write, Behind)) == (not threads, threads)
        for piece in pieces:
            write(piece)
    assert written == list(range(5))
