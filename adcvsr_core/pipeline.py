"""Work on a clip that goes on beside the network: reading ahead, writing behind, copies that nobody waits for.

    thread 1   read 8..15     read 16..23    ...                 one piece ahead
    caller     network 0..7   network 8..15  network 16..23
    thread 2                  write 0..7     write 8..15         one piece behind

Decoding and encoding let go of Python's lock, so beside a GPU they cost the caller no time as long as they are faster
than it; a CPU that computes the network has no cores to spare, and works in turns (`beside`).
Pieces come and go in their order and are what they would be without threads; so are errors. Memory holds one piece more
on either side, whatever the clip's length. Knows nothing about files, networks or what the pieces are.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch
from torch import Tensor

from .memory import is_out_of_memory

Piece = TypeVar("Piece")
_END = object()
_PIECE_FRAMES = 8  # of a reader


def waiting_bytes(source_frame: int, finished_frame: int, chunk: int, device: torch.device) -> int:
    """Return the RAM of frames on their way in and out of a run from file to file.

    Args:
        source_frame, finished_frame: bytes of one.
        chunk: frames per step.
        device: where the network computes.
    """
    # In turns: a piece in use, and what a step gave. Beside a network: a piece ahead, and what is being written behind
    # it as well; from a CUDA device what is still being copied, too.
    pieces, steps = (1, 1) if device.type == "cpu" else (2, 3 if device.type == "cuda" else 2)
    return pieces * _PIECE_FRAMES * source_frame + steps * chunk * finished_frame


class Ahead(Generic[Piece]):
    """An iterator whose pieces another thread makes ahead of their use; use as a context manager.

    Nothing is made before the first piece is asked for; from then on at most `depth` pieces are made and not yet taken.
    An error of the source is raised where its piece would have come, and ends the iteration. However the block ends,
    the piece in the making is finished, the source is closed in the thread that iterated it, and the thread is gone.

    Args:
        source: iterated once; nobody else may iterate it meanwhile.
        depth: 1 or more.

    Attributes:
        num_frames: the source's, None where it has none.
    """

    def __init__(self, source: Iterable[Piece], depth: int = 1):
        self.num_frames: int | None = getattr(source, "num_frames", None)
        self._pieces = iter(source)
        self._depth = depth
        self._coming: deque[Future] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="adcvsr-ahead")
        self._ended = False

    def __enter__(self) -> "Ahead[Piece]":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        if self._ended:
            raise StopIteration
        self._ask(self._depth)
        try:
            piece = self._coming.popleft().result()
        except BaseException:
            self.close()
            raise
        if piece is _END:
            self.close()
            raise StopIteration
        self._ask(self._depth)
        return piece

    def close(self) -> None:
        """Stop; returns when the thread has ended. Twice is allowed."""
        if not self._ended:
            self._ended = True
            for each in self._coming:
                each.cancel()
            if hasattr(self._pieces, "close"):
                self._thread.submit(self._pieces.close)
        self._thread.shutdown()
        self._coming.clear()

    def _ask(self, depth: int) -> None:
        while len(self._coming) < depth:
            self._coming.append(self._thread.submit(next, self._pieces, _END))


class Behind:
    """A function that another thread runs behind the caller, call after call; use as a context manager.

    A call returns as soon as the one before it is done, so at most one is under way. Its error is raised by the next
    call, which is then not run, or at the block's end. However the block ends, what was called is done and the thread
    is gone; when it ends by an error, that is the error which people see.

    Args:
        work: the function; nobody else may call it meanwhile.
    """

    def __init__(self, work: Callable[..., object]):
        self._work = work
        self._going: Future | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="adcvsr-behind")

    def __call__(self, *arguments: object) -> None:
        self._settle()
        self._going = self._thread.submit(self._work, *arguments)

    def __enter__(self) -> "Behind":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is None:
                self._settle()
        finally:
            self._thread.shutdown()

    def _settle(self) -> None:
        going, self._going = self._going, None
        if going is not None:
            going.result()


@contextlib.contextmanager
def beside(
    device: torch.device, source: Iterable[Piece], work: Callable[..., object]
) -> Iterator[tuple[Iterable[Piece], Callable[..., object]]]:
    """Yield (pieces, call): `source` read ahead and `work` run behind, where the network computes elsewhere.

    On a CPU they are `source` and `work` themselves: threads of a codec and of a network that share its cores hold each
    other up (docs/speed.md).
    """
    if device.type == "cpu":
        yield source, work
        return
    with Ahead(source) as pieces, Behind(work) as call:
        yield pieces, call


class Landing:
    """Frames on their way to the CPU's memory; from a CUDA device the copies go on while the caller does.

    Args:
        parts: [t,...] tensors on a device, in order, each copied as it comes; nobody may write to them any more.
        device: where they come from.
    """

    def __init__(self, parts: Iterable[Tensor], device: torch.device):
        self._parts = [_leave(part) for part in parts]
        self._landed: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._landed = torch.cuda.Event()
            self._landed.record(torch.cuda.current_stream(device))

    @property
    def is_under_way(self) -> bool:
        """Whether asking for the frames would wait."""
        return self._landed is not None and not self._landed.query()

    def frames(self) -> Tensor:
        """Return all frames [t',...], once they are there."""
        if self._landed is not None:
            self._landed.synchronize()
        return self._parts[0] if len(self._parts) == 1 else torch.cat(self._parts)


def _leave(part: Tensor) -> Tensor:
    try:
        # From a CUDA device into pinned memory that nobody else has; until the copy is done its values mean nothing.
        return part.to("cpu", non_blocking=part.is_cuda)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return part.cpu()  # a system may have less memory to pin than it has: the copy is waited for then
