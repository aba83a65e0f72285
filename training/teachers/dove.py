"""DOVE as a teacher: one step of a CogVideoX 1.5 video model from blurred to sharp latents.

Runs on diffusers' classes from a local folder; text is an embedding from a file, so the 4.8-billion text encoder is
never loaded. The steps are methods, in order: `prepare`, `encode`, `restore`, `decode`. Source: DOVE (arXiv
2505.16239); the timestep, the paddings and their order are those of its public inference script.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from adcvsr_core.errors import CheckpointError

from .base import SCALE, Teacher, compute_dtype, crop, generator_of, identify
from .fingerprint import fingerprint, fingerprints
from .parts import load_diffusers, load_part, load_scheduler, on_device
from .prompt import FILE, read_prompt_embedding

TIMESTEP = 399
_FRAMES, _PIXELS = 8, 16  # clips are 8k + 1 frames long, LR edges are multiples of 16
# DOVE's repository names the empty prompt's embedding after the SHA-256 of no text.
_EMPTY = "prompt_embeddings/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855.safetensors"
# From so much device memory on, both parts (11.6 GB in bfloat16) stay there; below they take turns.
_BYTES_RESIDENT = 40e9


class DoveTeacher(Teacher):
    """A CogVideoX1.5 folder with DOVE's transformer.

    Args:
        folder: transformer/, vae/ and scheduler/ in diffusers' layout.
        device: where to compute, in bfloat16; on a CPU in float32.
        prompt_embedding: file of the empty prompt's embedding; "" looks for it in the folder (prompt_embedding.
            safetensors, or prompt_embeddings/ as DOVE names it) and beside it.
        seed: of the noise with which the VAE's latents are drawn, as DOVE draws them; one draw per clip's key.

    Raises:
        CheckpointError: files are missing.
    """

    def __init__(self, folder: Path | str, device: torch.device, *, prompt_embedding: Path | str = "", seed: int = 0):
        self.folder, self.device, self.seed = Path(folder), device, seed
        self.dtype = compute_dtype(device, torch.bfloat16)
        self.prompt_file = Path(prompt_embedding) if prompt_embedding else _find_embedding(self.folder)
        self.transformer = None
        self.identity = identify(
            kind="dove",
            files=fingerprints(self.folder, ("transformer", "vae"))
            | {"prompt_embedding": fingerprint(self.prompt_file)},
            timestep=TIMESTEP,
            latents="sampled",
            vae="tiled",
            dtype=str(self.dtype),
            seed=seed,
        )

    def load(self) -> None:
        if self.transformer is not None:
            return
        self.scheduler = load_scheduler(self.folder, "CogVideoXDPMScheduler", "v_prediction")
        transformer = load_part(self.folder, "transformer", "CogVideoXTransformer3DModel", self.dtype)
        config = transformer.config
        if not config.patch_size_t or not config.use_rotary_positional_embeddings:
            raise CheckpointError(
                f"{self.folder / 'transformer'} has patch_size_t {config.patch_size_t} and rotary positions "
                f"{config.use_rotary_positional_embeddings}; expected CogVideoX 1.5, which has both"
            )
        embedding = read_prompt_embedding(self.prompt_file, (config.max_text_seq_length, config.text_embed_dim))
        self.vae = load_part(self.folder, "vae", "AutoencoderKLCogVideoX", self.dtype)
        self.vae.enable_tiling()
        self.vae.enable_slicing()
        self.prompt = embedding.to(self.device, self.dtype)[None]
        self.transformer = transformer
        if _stays(self.device):
            self.vae.to(self.device)
            self.transformer.to(self.device)

    def super_resolve(self, lr: Tensor, keys: Sequence[str]) -> Tensor:
        # Each part sees all clips before the next one comes, so that a small device loads it once a call.
        with on_device(self.vae, self.device):
            latents = [self.encode(self.prepare(clip[None]), [key]) for clip, key in zip(lr, keys, strict=True)]
        with on_device(self.transformer, self.device):
            latents = [self.restore(each) for each in latents]
        with on_device(self.vae, self.device):
            clips = [crop(self.decode(each), lr) for each in latents]
        return torch.cat(clips).float()

    def prepare(self, lr: Tensor) -> Tensor:
        """Pad and enlarge: [B,T,3,h,w] float32 -> [B,3,8k+1,H,W] in [-1, 1], H and W multiples of 64."""
        batch, num_frames, _, height, width = lr.shape
        lr = torch.cat([lr, lr[:, -1:].expand(-1, (1 - num_frames) % _FRAMES, -1, -1, -1)], dim=1)
        # Black at the right and the bottom, before enlarging: the order tells at the border.
        lr = F.pad(lr, (0, -width % _PIXELS, 0, -height % _PIXELS), value=-1.0)
        video = F.interpolate(lr.flatten(0, 1), scale_factor=SCALE, mode="bilinear", align_corners=False)
        return video.unflatten(0, (batch, -1)).transpose(1, 2).to(self.dtype)

    def encode(self, video: Tensor, keys: Sequence[str]) -> Tensor:
        """Draw latents [B,C,2k+1,H/8,W/8] of [B,3,8k+1,H,W], scaled as the transformer knows them."""
        latents = []
        for clip, key in zip(video.split(1), keys, strict=True):
            posterior = self.vae.encode(clip).latent_dist
            latents.append(posterior.sample(generator=generator_of(self.seed, key)))
        return torch.cat(latents) * self.vae.config.scaling_factor

    def restore(self, latents: Tensor) -> Tensor:
        """Sharpen latents: [B,C,F,h,w] -> [B,F,C,h,w], the velocity that the transformer predicts turned into x0."""
        config = self.transformer.config
        copies = -latents.shape[2] % config.patch_size_t
        padded = torch.cat([latents[:, :, :1].expand(-1, -1, copies, -1, -1), latents], dim=2).transpose(1, 2)
        timestep = torch.full((len(padded),), TIMESTEP, dtype=torch.long, device=padded.device)
        velocity = self.transformer(
            hidden_states=padded,
            encoder_hidden_states=self.prompt.expand(len(padded), -1, -1),
            timestep=timestep,
            image_rotary_emb=self.positions(padded),
            return_dict=False,
        )[0]
        # With the prediction as `sample`, the latents as `noise`: sqrt(a) latents - sqrt(1 - a) velocity, which is x0.
        return self.scheduler.get_velocity(velocity, padded, timestep)[:, copies:]

    def positions(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rotary embedding (cos, sin) of every token of latents [B,F,C,h,w]."""
        load_diffusers()
        from diffusers.models.embeddings import get_3d_rotary_pos_embed

        config = self.transformer.config
        grid = (latents.shape[3] // config.patch_size, latents.shape[4] // config.patch_size)
        return get_3d_rotary_pos_embed(
            embed_dim=config.attention_head_dim,
            crops_coords=None,
            grid_size=grid,
            temporal_size=latents.shape[1] // config.patch_size_t,
            grid_type="slice",
            max_size=grid,
            device=latents.device,
        )

    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents [B,F,C,h,w] into clips [B,T,3,8h,8w] in about [-1, 1]."""
        return self.vae.decode(1 / self.vae.config.scaling_factor * latents.transpose(1, 2)).sample.transpose(1, 2)


def _find_embedding(folder: Path) -> Path:
    places = [folder / FILE, folder / _EMPTY, folder.parent / _EMPTY]
    for path in places:
        if path.is_file():
            return path
    raise CheckpointError(
        f"{folder} comes without the embedding of the empty prompt; looked for {', '.join(map(str, places))}. It is in "
        "DOVE's repository under pretrained_models/prompt_embeddings: copy it there, or name it in teacher.extra"
    )


def _stays(device: torch.device) -> bool:
    if device.type == "cpu":
        return True
    return device.type == "cuda" and torch.cuda.mem_get_info(device)[1] >= _BYTES_RESIDENT
