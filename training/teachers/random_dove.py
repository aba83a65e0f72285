"""A DOVE-shaped teacher with random weights, as a real folder, for tests and comparisons of speed and memory.

Also a command: `python -m training.teachers.random_dove FOLDER [--tiny]`. At true size the folder takes 11.6 GB.
Sources of the true size: the configuration of CogVideoX1.5-5B, as DOVE uses it.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adcvsr_core.errors import AdcvsrError, OutputError

from .parts import load_diffusers
from .prompt import FILE, write_prompt_embedding

TRANSFORMER = {
    "num_attention_heads": 48,
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 42,
    "time_embed_dim": 512,
    "text_embed_dim": 4096,
    "max_text_seq_length": 226,
    "patch_size": 2,
    "patch_size_t": 2,
    "patch_bias": False,
    "sample_height": 300,
    "sample_width": 300,
    "sample_frames": 81,
    "use_rotary_positional_embeddings": True,
    "use_learned_positional_embeddings": False,
}
VAE = {
    "down_block_types": ("CogVideoXDownBlock3D",) * 4,
    "up_block_types": ("CogVideoXUpBlock3D",) * 4,
    "block_out_channels": (128, 256, 256, 512),
    "latent_channels": 16,
    "layers_per_block": 3,
    "temporal_compression_ratio": 4,
    "sample_height": 480,
    "sample_width": 720,
    "scaling_factor": 0.7,
}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 1.0,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
}
# The same in small: every mechanism is there, and the VAE tiles what is higher than 48 or wider than 40 pixels.
TINY_TRANSFORMER = TRANSFORMER | {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "time_embed_dim": 8,
    "text_embed_dim": 12,
    "max_text_seq_length": 6,
}
TINY_VAE = VAE | {
    "block_out_channels": (8, 8, 8, 8),
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "sample_height": 96,
    "sample_width": 80,
}


def build_transformer(config: dict[str, Any]) -> nn.Module:
    """Return the transformer with fresh weights, on the default device and in the default dtype."""
    return load_diffusers().CogVideoXTransformer3DModel(**config)


def build_vae(config: dict[str, Any]) -> nn.Module:
    """Return the VAE with fresh weights, on the default device and in the default dtype."""
    return load_diffusers().AutoencoderKLCogVideoX(**config)


def write_random_dove(folder: Path, *, tiny: bool = False, seed: int = 0) -> None:
    """Write a folder that `DoveTeacher` reads, prompt embedding included; bfloat16, or float32 when tiny.

    Args:
        folder: must not exist, or be empty.
        tiny: 101 thousand parameters instead of 5.8 billion.
        seed: of the weights.

    Raises:
        OutputError: the folder is not empty or cannot be written.
        ConfigError: diffusers is missing.
    """
    if folder.exists() and any(folder.iterdir()):
        raise OutputError(f"{folder} is not empty; give a new folder")
    transformer, vae = (TINY_TRANSFORMER, TINY_VAE) if tiny else (TRANSFORMER, VAE)
    dtype, usual = torch.float32 if tiny else torch.bfloat16, torch.get_default_dtype()
    # Random numbers for billions of weights come much faster from a GPU.
    device = "cuda" if torch.cuda.is_available() and not tiny else "cpu"
    try:
        torch.set_default_dtype(dtype)
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(seed)
            build_transformer(transformer).to("cpu").save_pretrained(folder / "transformer")
            build_vae(vae).to("cpu").save_pretrained(folder / "vae")
            text = torch.randn(transformer["max_text_seq_length"], transformer["text_embed_dim"])
        load_diffusers().CogVideoXDPMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
        write_prompt_embedding(folder / FILE, text)
        (folder / "model_index.json").write_text(json.dumps(_MODEL_INDEX, indent=1))
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        torch.set_default_dtype(usual)


_MODEL_INDEX = {
    "_class_name": "CogVideoXPipeline",
    "scheduler": ["diffusers", "CogVideoXDPMScheduler"],
    "text_encoder": [None, None],
    "tokenizer": [None, None],
    "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLCogVideoX"],
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.teachers.random_dove", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="to write; must be new or empty")
    parser.add_argument("--tiny", action="store_true", help="the shape of tests")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    options = parser.parse_args(arguments)
    try:
        write_random_dove(options.folder, tiny=options.tiny, seed=options.seed)
    except AdcvsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.folder}: random weights in the shape of DOVE; it super-resolves nothing")
    return 0


if __name__ == "__main__":
    sys.exit(main())
