"""AdcSR's discriminator: Stable Diffusion's UNet, adapted by LoRA, whose output is the verdict on features.

Each frame alone, at one timestep. AdcSR gives it the text tags of the picture; here it gets the embedding in
`prompt_embedding.safetensors` beside unet/ (the empty prompt's, say), or zeros. Source: AdcSR (arXiv 2411.13383).
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from adcvsr_core.errors import CheckpointError, ConfigError, InputError
from adcvsr_core.layers import per_frame

from ..config import AdversaryConfig
from .feature import widened
from .frozen import freeze
from .labels import Verdict

_PROMPT = "prompt_embedding.safetensors"


class StableDiffusionDiscriminator(nn.Module):
    """Judge features [B,T,C,h,w] frame by frame; the first convolution and the adapters train.

    Args:
        folder: Stable Diffusion in diffusers' layout; its unet/ is read.
        channels_in: the features' width.
        config: rank of the adapters of all other convolutions and linear layers, timestep, noise.

    Attributes:
        step: of the training; the noise follows from it, so that a resumed run hears the same.

    Raises:
        ConfigError: no folder is set, or diffusers or peft is missing.
        InputError: the folder holds no unet/.
        CheckpointError: the files are broken.
    """

    def __init__(self, folder: str, channels_in: int, config: AdversaryConfig):
        super().__init__()
        self.timestep, self.noise, self.step = config.timestep, config.noise, 0
        self.unet = freeze(load_unet(folder))
        _add_adapters(self.unet, config.lora_rank)
        self.unet.conv_in = widened(self.unet.conv_in, channels_in)
        self.unet.eval()
        self.register_buffer("prompt", _read_prompt(Path(folder), self.unet.config.cross_attention_dim))

    def forward(self, features: Tensor) -> Verdict:
        if self.noise:
            generator = torch.Generator().manual_seed(self.step)
            noise = torch.randn(features.shape, generator=generator).to(features)
            features = features + self.noise * features.detach().std() * noise
        return Verdict(per_frame(self._judge, features).float(), None)

    def train(self, mode: bool = True) -> "StableDiffusionDiscriminator":
        """Do nothing but note the mode: the UNet and its adapters stay in eval mode."""
        self.training = mode
        return self

    def _judge(self, frames: Tensor) -> Tensor:
        prompt = self.prompt.expand(len(frames), -1, -1).to(frames.dtype)
        return self.unet(frames, self.timestep, encoder_hidden_states=prompt, return_dict=False)[0]


def load_unet(folder: str) -> nn.Module:
    """Load Stable Diffusion's UNet in float32. Raises what `StableDiffusionDiscriminator` does."""
    if not folder:
        raise ConfigError('the feature backbone "sd-unet" needs Stable Diffusion: set stable_diffusion=FOLDER')
    if not (Path(folder) / "unet").is_dir():
        raise InputError(f"{folder} holds no unet/; expected Stable Diffusion 2.1 in diffusers' layout")
    try:
        from diffusers import UNet2DConditionModel
    except ImportError as error:
        raise ConfigError("the feature backbone needs diffusers: pip install diffusers") from error
    try:
        return UNet2DConditionModel.from_pretrained(
            Path(folder) / "unet", local_files_only=True, use_safetensors=True, torch_dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}/unet cannot be read: {' '.join(str(error).split())[:300]}") from error


def _add_adapters(unet: nn.Module, rank: int) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError("the feature backbone needs peft: pip install peft") from error
    targets = [
        name
        for name, module in unet.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and name != "conv_in" and "time_emb" not in name
    ]
    # AdcSR leaves peft's alpha of 8 at rank 4.
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, init_lora_weights="gaussian", target_modules=targets)
    inject_adapter_in_model(settings, unet)


def _read_prompt(folder: Path, width: int) -> Tensor:
    path = folder / _PROMPT
    if not path.is_file():
        return torch.zeros(1, 1, width)
    try:
        prompt = load_file(path)["prompt_embedding"].float()
    except (SafetensorError, KeyError, OSError) as error:
        raise CheckpointError(f"{path} holds no readable tensor prompt_embedding ({error})") from error
    if prompt.shape[-1] != width or prompt.numel() != prompt.shape[-2] * width:
        raise CheckpointError(f"{path}: {list(prompt.shape)}; expected [tokens,{width}], one prompt")
    return prompt.view(1, -1, width)
