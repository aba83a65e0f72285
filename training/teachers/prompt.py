"""The text that a teacher was told, as numbers in a file, so that no text encoder is ever loaded.

DOVE comes with such a file for the empty prompt; for Stable Diffusion this makes one, once:
`python -m training.teachers.prompt FOLDER [--prompt TEXT]` writes FOLDER/prompt_embedding.safetensors (it needs the
package transformers). The layout is DOVE's: one tensor named prompt_embedding.
"""

import argparse
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adcvsr_core.errors import AdcvsrError, CheckpointError

from ..packages import unavailable
from .base import one_line

FILE = "prompt_embedding.safetensors"
_KEY = "prompt_embedding"


def read_prompt_embedding(path: Path, shape: tuple[int | None, int]) -> Tensor:
    """Read an embedding.

    Args:
        path: the file.
        shape: of what the network takes, (tokens or None for any number, width).

    Returns:
        [tokens, width], in the file's dtype.

    Raises:
        CheckpointError: no such file, or another shape.
    """
    try:
        with safe_open(str(path), "pt") as file:
            embedding = file.get_tensor(_KEY)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} holds no prompt embedding: {one_line(error)}") from error
    if embedding.ndim == 3 and embedding.shape[0] == 1:
        embedding = embedding[0]
    tokens, width = shape
    if embedding.ndim != 2 or embedding.shape[1] != width or tokens not in (None, embedding.shape[0]):
        raise CheckpointError(
            f"{path} holds an embedding of {list(embedding.shape)}; this network takes [{tokens or 'tokens'}, {width}]"
        )
    return embedding


def write_prompt_embedding(path: Path, embedding: Tensor) -> None:
    """Write an embedding [tokens, width]."""
    save_file({_KEY: embedding.detach().cpu().contiguous()}, path)


@torch.no_grad()
def encode_prompt(folder: Path, prompt: str) -> Tensor:
    """Run the text encoder of a Stable Diffusion folder once: [tokens, width], float32.

    Raises:
        CheckpointError: the folder has no tokenizer or text encoder that can be read.
        ConfigError: transformers is missing.
    """
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except Exception as error:
        raise unavailable("transformers", "encoding a prompt", "use a file made elsewhere", error) from error
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        encoder = CLIPTextModel.from_pretrained(
            folder / "text_encoder", local_files_only=True, use_safetensors=True
        ).eval()
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} holds no tokenizer/ and text_encoder/ that can be read: {one_line(error)}"
        ) from error
    length = tokenizer.model_max_length
    tokens = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return encoder(tokens.input_ids)[0][0].float()


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.teachers.prompt", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="Stable Diffusion 2.1 in diffusers' layout")
    parser.add_argument("--prompt", default="", help="text; nothing by default")
    options = parser.parse_args(arguments)
    try:
        embedding = encode_prompt(options.folder, options.prompt)
    except AdcvsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    write_prompt_embedding(options.folder / FILE, embedding)
    print(f"{options.folder / FILE}: {list(embedding.shape)} for {options.prompt!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
