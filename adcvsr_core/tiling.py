"""Spatial tiles with one-sided ramps: where they lie, how their results are joined.

Tiling is not exact, since attention sees only its tile, and GroupNorm at best a sample of the whole (norms.py);
the engine tiles only when told to or when a frame does not fit the memory. A ramp runs only towards a neighbour, so the
weight at the picture's own border is never 0. Knows nothing about networks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import ConfigError

Span = tuple[int, int]


@dataclass(frozen=True)
class Tile:
    """One tile: half-open spans in LR pixels."""

    rows: Span
    columns: Span

    def of(self, frames: Tensor) -> Tensor:
        """Return this tile's part of LR frames [...,H,W]."""
        return frames[..., slice(*self.rows), slice(*self.columns)]


@dataclass(frozen=True)
class TileGrid:
    """All tiles of one picture, fixed for a shot because a stream's tile never moves."""

    row_spans: tuple[Span, ...]
    column_spans: tuple[Span, ...]

    @property
    def tiles(self) -> list[Tile]:
        return [Tile(rows, columns) for rows in self.row_spans for columns in self.column_spans]

    @property
    def tile_size(self) -> Span:
        """Height and width of every tile, in LR pixels."""
        return tuple(span[0][1] - span[0][0] for span in (self.row_spans, self.column_spans))

    def sample(self, frames: Tensor, multiple: int) -> Tensor:
        """Put a picture as large as a tile together from pieces of the whole one, at its own scale.

        Args:
            frames: [...,H,W].
            multiple: what pieces' positions and edges are a multiple of, in LR pixels.

        Returns:
            [...,h,w]: one piece from the middle of each cell, where cells divide the picture as tiles do.
        """
        for dim, spans in ((-2, self.row_spans), (-1, self.column_spans)):
            pieces = [frames.narrow(dim, start, stop - start) for start, stop in _pieces(spans, multiple)]
            frames = torch.cat(pieces, dim)
        return frames

    def weight(self, tile: Tile, scale: int) -> Tensor:
        """Return a tile's share of the output, [h*scale, w*scale]; over all tiles the shares add up to 1."""
        rows = _share(self.row_spans, tile.rows, scale)
        columns = _share(self.column_spans, tile.columns, scale)
        return rows[:, None] * columns[None, :]

    def add(self, canvas: Tensor, tile: Tile, part: Tensor, scale: int) -> None:
        """Add a tile's result [...,h*scale,w*scale] to the canvas [...,H*scale,W*scale] in place."""
        rows, columns = (slice(a * scale, b * scale) for a, b in (tile.rows, tile.columns))
        canvas[..., rows, columns] += part * self.weight(tile, scale).to(part)


def plan_tiles(height: int, width: int, tile: int, overlap: int, multiple: int) -> TileGrid:
    """Lay tiles over a padded LR picture.

    Args:
        height, width: LR pixels, multiples of `multiple`.
        tile: edge in LR pixels, 0 = one tile for the whole picture.
        overlap: LR pixels that neighbours share at least, 0 = automatic (an eighth of the tile, 16 or more).
        multiple: what a tile's edge must be a multiple of.

    Raises:
        ConfigError: a tile that is no multiple, or an overlap above half a tile.
    """
    if tile % multiple:
        below = tile // multiple * multiple
        options = f"{below} or {below + multiple}" if below else f"{multiple}"
        raise ConfigError(f"tile {tile} is not a multiple of {multiple} LR pixels; use {options}")
    if tile == 0:
        return TileGrid(((0, height),), ((0, width),))
    overlap = overlap or min(max(16, tile // 8), tile // 2)
    if overlap > tile // 2:
        raise ConfigError(f"overlap {overlap} is more than half of tile {tile}; use {tile // 2} or less")
    return TileGrid(_spans(height, tile, overlap), _spans(width, tile, overlap))


def _spans(size: int, tile: int, overlap: int) -> tuple[Span, ...]:
    if size <= tile:
        return ((0, size),)
    count = -(-(size - overlap) // (tile - overlap))
    # Spread evenly, so that the last tile does not overlap more than the others.
    starts = [round(i * (size - tile) / (count - 1)) for i in range(count)]
    return tuple((start, start + tile) for start in starts)


def _pieces(spans: tuple[Span, ...], multiple: int) -> list[Span]:
    size, tile, count = spans[-1][1], spans[0][1], len(spans)
    edges = [round(i * tile / count / multiple) * multiple for i in range(count + 1)]
    pieces = []
    for index in range(count):
        length, middle = edges[index + 1] - edges[index], (index + 0.5) * size / count
        start = round((middle - length / 2) / multiple) * multiple
        start = min(max(0, start), size - length)
        pieces.append((start, start + length))
    return pieces


def _share(spans: tuple[Span, ...], span: Span, scale: int) -> Tensor:
    size = spans[-1][1] * scale
    total, own = torch.zeros(size, dtype=torch.float64), None
    for index, (start, stop) in enumerate(spans):
        before = spans[index - 1][1] - start if index else 0
        after = stop - spans[index + 1][0] if index + 1 < len(spans) else 0
        position = torch.arange((stop - start) * scale, dtype=torch.float64) + 0.5
        ramp = torch.ones_like(position)
        if before > 0:
            ramp = torch.minimum(ramp, position / (before * scale))
        if after > 0:
            ramp = torch.minimum(ramp, position.flip(0) / (after * scale))
        total[start * scale : stop * scale] += ramp
        if (start, stop) == span:
            own = ramp
    return own / total[span[0] * scale : span[1] * scale]
