"""Self-attention over the pixels of one frame: over all of them, or in windows as large as in training.

Whole-frame attention costs the square of the pixels. In windows, a block of queries looks at a window twice its edge
with the block in the middle, moved inside the frame at the frame's own edges, so that every pixel sees as much as in
training and windows of neighbouring blocks share half: the cost is linear, and no pixel lies at the edge of what it
sees but at the frame's. A window that covers the frame gives exactly whole-frame attention. Knows nothing about time.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Span = tuple[int, int]


class Attention(nn.Module):
    """Self-attention over a frame's pixels, given as tokens [N,H*W,C], with scale 1 / sqrt(C / heads).

    AdcSR keeps Stable Diffusion's number of heads while it prunes the width, so its heads are 48 wide, not 64,
    and the scale follows the width. Nothing is masked, and a head is a multiple of 8 wide (48, the decoder's 256), its
    numbers side by side: all that PyTorch's flash kernel asks in half precision, on a GPU that has it.
    """

    def __init__(self, channels: int, heads: int, qkv_bias: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, size: tuple[int, int], window: int = 0) -> Tensor:
        """Map [N,H*W,C] to the same shape; `size` is (H, W), `window` an even edge in pixels or 0 = the whole frame."""
        q, k, v = rearrange(self.qkv(x), "n l (three heads c) -> three n heads l c", three=3, heads=self.heads)
        return self.out(rearrange(attend(q, k, v, size, window), "n heads l c -> n l (heads c)"))


def attend(q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int], window: int) -> Tensor:
    """Attend over pixels.

    Args:
        q, k, v: [N,heads,H*W,C].
        size: (H, W).
        window: edge in pixels of what a pixel sees, even; 0 = the whole frame.
    """
    if window == 0 or max(size) <= window:
        return F.scaled_dot_product_attention(q, k, v)
    q, k, v = (tokens.unflatten(2, size) for tokens in (q, k, v))
    out = torch.empty_like(q)
    for query_rows, key_rows in plan_windows(size[0], window):
        for query_columns, key_columns in plan_windows(size[1], window):
            part = F.scaled_dot_product_attention(
                q[:, :, slice(*query_rows), slice(*query_columns)].flatten(2, 3),
                k[:, :, slice(*key_rows), slice(*key_columns)].flatten(2, 3),
                v[:, :, slice(*key_rows), slice(*key_columns)].flatten(2, 3),
            )
            block = (query_rows[1] - query_rows[0], query_columns[1] - query_columns[0])
            out[:, :, slice(*query_rows), slice(*query_columns)] = part.unflatten(2, block)
    return out.flatten(2, 3)


def plan_windows(size: int, window: int) -> list[tuple[Span, Span]]:
    """Return blocks of queries and what each sees, as half-open spans along one edge of `size` pixels."""
    if size <= window:
        return [((0, size), (0, size))]
    block = window // 2
    plan = []
    for start in range(0, size, block):
        first = min(max(0, start - block // 2), size - window)
        plan.append(((start, min(size, start + block)), (first, first + window)))
    return plan
