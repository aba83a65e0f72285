"""A 2D student's computation by diffusers' own modules, with the same weights: how AdcSR's public program is built.

diffusers' blocks of Stable Diffusion 2.1 without time, text and their layers, run as diffusers runs them. Knows nothing
about our modules but their weights' names.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcvsr_core.config import StudentConfig
from adcvsr_core.convert import key_table
from adcvsr_core.student import Student
from training.teachers.parts import load_diffusers

_GROUPS = 8  # divides every width; the student's own numbers come with its weights


class DiffusersTwin(nn.Module):
    """A 2D student, built of diffusers' modules.

    Args:
        student: whose shape, weights, dtype and device it takes over; with group norms, without temporal blocks.

    Raises:
        ConfigError: diffusers is missing.
    """

    def __init__(self, student: Student):
        super().__init__()
        config = student.config
        with torch.device("meta"):  # drawing weights that nobody needs takes longer than all the rest
            self.unet, self.decoder = _unet(config), _decoder(config)
        self.load_state_dict(_their_weights(student), assign=True)
        self._copy_groups(student)
        self.eval().requires_grad_(False).to(student.device, student.dtype)

    def forward(self, lr: Tensor) -> Tensor:
        """Enlarge [N,3,H,W] in [-1, 1] to [N,3,4H,4W]; H and W are multiples of 16."""
        unet = self.unet
        x = unet.conv_in(F.pixel_unshuffle(lr, 2))
        skips = (x,)
        for block in unet.down_blocks:
            x, made = block(x, None)
            skips += made
        x = unet.mid_block(x, None)
        for block in unet.up_blocks:
            used = len(block.resnets)
            x = block(x, skips[-used:], None)
            skips = skips[:-used]
        x = unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
        x = self.decoder.mid_block(x)
        for block in self.decoder.up_blocks:
            x = block(x)
        return self.decoder.conv_out(self.decoder.conv_act(self.decoder.conv_norm_out(x)))

    def _copy_groups(self, student: Student) -> None:
        names = key_table(student.config)
        for name, module in student.named_modules():
            if hasattr(module, "num_groups"):
                their_name = names[f"{name}.weight"][0].removesuffix(".weight")
                self.get_submodule(their_name).num_groups = module.num_groups


def _unet(config: StudentConfig) -> nn.Module:
    unet = load_diffusers().UNet2DConditionModel(
        in_channels=12,
        out_channels=config.decoder_channels[-1],
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        attention_head_dim=[*config.heads[:3], config.mid_heads],  # which diffusers takes as numbers of heads
        norm_num_groups=_GROUPS,
        cross_attention_dim=8,
        use_linear_projection=True,
    )
    unet.time_embedding = unet.time_proj = None
    for module in unet.modules():
        if hasattr(module, "time_emb_proj"):
            module.time_emb_proj = None
        if hasattr(module, "attn2"):
            module.attn2 = module.norm2 = None
    return unet


def _decoder(config: StudentConfig) -> nn.Module:
    vae = load_diffusers().AutoencoderKL(
        block_out_channels=config.decoder_channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=config.decoder_layers,
        norm_num_groups=_GROUPS,
    )
    vae.decoder.conv_in = None  # the UNet's last layer is as wide as the middle block
    return vae.decoder


def _their_weights(student: Student) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    state = student.state_dict()
    for ours, theirs in key_table(student.config).items():
        own = (part.clone(memory_format=torch.contiguous_format) for part in state[ours].chunk(len(theirs)))
        weights |= dict(zip(theirs, own, strict=True))
    return weights
