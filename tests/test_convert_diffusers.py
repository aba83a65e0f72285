"""Conversion and pruning against diffusers' own modules, which this repository's network never imports."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adcvsr_core.config import StudentConfig
from adcvsr_core.convert import convert_adcsr, student_from_sd
from adcvsr_core.errors import CheckpointError, ConfigError


def randomize(module: nn.Module) -> nn.Module:
    """Give norms and biases an effect, too."""
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim == 1:
                weight.add_(0.2 * torch.randn_like(weight))
    return module.eval()


def reference_unet(config: StudentConfig, channels_in: int, channels_out: int) -> nn.Module:
    from diffusers import UNet2DConditionModel

    settings = dict(
        in_channels=channels_in,
        out_channels=channels_out,
        block_out_channels=config.channels,
        attention_head_dim=[*config.heads[:3], config.mid_heads],  # which diffusers takes as numbers of heads
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        norm_num_groups=config.norm_groups,
        cross_attention_dim=16,
        use_linear_projection=True,
    )
    return randomize(UNet2DConditionModel(**settings))


def switch_off_time_and_text(unet: nn.Module) -> None:
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "time_emb_proj" in name or "attn2.to_out" in name:
                weight.zero_()


def reference_vae(config: StudentConfig) -> nn.Module:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=config.decoder_channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=config.decoder_layers,
        norm_num_groups=config.norm_groups,
    )
    return randomize(vae)


# Heads of 48 channels, as AdcSR's, and groups that straddle the borders of concatenated skips.
LIKE_ADCSR = StudentConfig(
    channels=(48, 48, 96, 96),
    heads=(1, 1, 2, 0),
    mid_heads=2,
    decoder_channels=(24, 24, 48, 48),
    temporal="none",
    norm_groups=24,
)


def test_converted_student_equals_diffusers(tmp_path: Path) -> None:
    config = LIKE_ADCSR
    unet = reference_unet(config, 12, config.decoder_channels[-1])
    decoder = reference_vae(config).decoder
    decoder.conv_in = nn.Conv2d(config.decoder_channels[-1], config.decoder_channels[-1], 3, padding=1)
    nn.init.dirac_(decoder.conv_in.weight)
    nn.init.zeros_(decoder.conv_in.bias)
    net = {f"module.body.1.{key}": tensor for key, tensor in unet.state_dict().items()}
    gone = re.compile(r".*(time_emb|attn2\.|transformer_blocks\.0\.norm2\.)")
    net = {key: tensor for key, tensor in net.items() if not gone.match(key)}
    net |= {f"module.body.2.{key}": tensor for key, tensor in decoder.mid_block.state_dict().items()}
    torch.save(net, tmp_path / "net_params_200.pkl")
    half = {f"decoder.{key}": tensor for key, tensor in decoder.state_dict().items()}
    torch.save({"state_dict": half}, tmp_path / "halfDecoder.ckpt")
    student = convert_adcsr(tmp_path / "net_params_200.pkl", tmp_path / "halfDecoder.ckpt", config)

    switch_off_time_and_text(unet)
    with torch.no_grad():
        for size in ((32, 32), (16, 48)):
            lr = torch.rand(2, 3, *size) * 2 - 1
            expected = decoder(unet(F.pixel_unshuffle(lr, 2), 7, torch.randn(2, 5, 16)).sample)
            assert (student(lr[:, None])[:, 0] - expected).abs().max() <= 1e-4 and expected.std() > 0.1


# Stable Diffusion, pruned

SD_SHAPED = StudentConfig(
    channels=(16, 32, 64, 64),
    heads=(1, 2, 4, 0),
    mid_heads=4,
    decoder_channels=(8, 16, 32, 32),
    temporal="none",
    norm_groups=4,
)
PRUNED = dataclasses.replace(SD_SHAPED, channels=(12, 24, 48, 48), decoder_channels=(4, 8, 16, 16), temporal="blocks")


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sd")
    reference_unet(SD_SHAPED, 4, 4).save_pretrained(folder / "unet")
    reference_vae(SD_SHAPED).save_pretrained(folder / "vae")
    return folder


def sd_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return tuple(load_file(folder / part / "diffusion_pytorch_model.safetensors") for part in ("unet", "vae"))


def sd_copy(folder: Path, unet: dict[str, Tensor], vae: dict[str, Tensor]) -> Path:
    for part, tensors in (("unet", unet), ("vae", vae)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / part / "diffusion_pytorch_model.safetensors")
    return folder


def test_pruned_student_runs_and_starts_without_time(sd_folder: Path) -> None:
    student = student_from_sd(sd_folder, PRUNED)
    assert student.config == PRUNED
    lr = torch.rand(1, 4, 3, 16, 32) * 2 - 1
    with torch.no_grad():
        sr = student(lr)
        assert sr.isfinite().all() and sr.std() > 0
        assert (student(lr, temporal_strength=0.0) - sr).abs().max() <= 1e-4


def test_pruning_takes_what_the_formulas_say(sd_folder: Path) -> None:
    unet, vae = sd_weights(sd_folder)
    ours = student_from_sd(sd_folder, PRUNED).state_dict()

    def check(key: str, expected: Tensor) -> None:
        assert torch.equal(ours[key], expected), key

    # The first layer sees three colours of 2x2 pixels as three times four latents; the last one repeats its four rows.
    check("unet.conv_in.weight", torch.cat([unet["conv_in.weight"][:12]] * 3, dim=1))
    check("unet.conv_out.weight", torch.cat([unet["conv_out.weight"][:, :12]] * 4))
    check("unet.conv_out.bias", torch.cat([unet["conv_out.bias"]] * 4))
    check("unet.down.1.layers.0.resnet.conv1.weight", unet["down_blocks.1.resnets.0.conv1.weight"][:24, :12])
    check("unet.down.1.layers.0.resnet.shortcut.bias", unet["down_blocks.1.resnets.0.conv_shortcut.bias"][:24])
    check("unet.norm_out.weight", unet["conv_norm_out.weight"][:12])
    # A skip: 64 channels from below and 32 of the skip become 48 and 24.
    both = [*range(48), *range(64, 64 + 24)]
    check("unet.up.1.layers.2.resnet.norm1.bias", unet["up_blocks.1.resnets.2.norm1.bias"][both])
    check("unet.up.1.layers.2.resnet.conv1.weight", unet["up_blocks.1.resnets.2.conv1.weight"][:48, both])
    check("unet.up.1.layers.2.resnet.shortcut.weight", unet["up_blocks.1.resnets.2.conv_shortcut.weight"][:48, both])
    both = [*range(24), *range(32, 32 + 12)]
    check("unet.up.3.layers.0.resnet.conv1.weight", unet["up_blocks.3.resnets.0.conv1.weight"][:12, both])
    # Four heads of 16 become four of 12.
    block = "up_blocks.1.attentions.0.transformer_blocks.0"
    heads = [16 * head + i for head in range(4) for i in range(12)]
    qkv = torch.cat([unet[f"{block}.attn1.to_{name}.weight"][heads, :48] for name in "qkv"])
    check("unet.up.1.layers.0.transformer.attention.qkv.weight", qkv)
    check("unet.up.1.layers.0.transformer.attention.out.weight", unet[f"{block}.attn1.to_out.0.weight"][:48][:, heads])
    block = "down_blocks.1.attentions.1.transformer_blocks.0"
    heads = [*range(12), *range(16, 28)]
    check(
        "unet.down.1.layers.1.transformer.attention.out.weight", unet[f"{block}.attn1.to_out.0.weight"][:24][:, heads]
    )
    # The feed-forward of 32 channels: value 0..127 and gate 128..255.
    halves = [*range(96), *range(128, 128 + 96)]
    check("unet.down.1.layers.1.transformer.ff_in.weight", unet[f"{block}.ff.net.0.proj.weight"][halves, :24])
    check("unet.down.1.layers.1.transformer.ff_in.bias", unet[f"{block}.ff.net.0.proj.bias"][halves])
    check("unet.down.1.layers.1.transformer.ff_out.weight", unet[f"{block}.ff.net.2.weight"][:24, :96])
    check("unet.down.1.layers.1.transformer.norm2.weight", unet[f"{block}.norm3.weight"][:24])
    # The decoder, by half.
    mid = "decoder.mid_block.attentions.0"
    check("decoder.mid.attention.attention.qkv.bias", torch.cat([vae[f"{mid}.to_{name}.bias"][:16] for name in "qkv"]))
    check("decoder.mid.resnet2.conv1.weight", vae["decoder.mid_block.resnets.1.conv1.weight"][:16, :16])
    check("decoder.up.3.resnets.0.shortcut.weight", vae["decoder.up_blocks.3.resnets.0.conv_shortcut.weight"][:4, :8])
    check("decoder.conv_out.weight", vae["decoder.conv_out.weight"][:, :4])
    check("decoder.conv_out.bias", vae["decoder.conv_out.bias"])


def test_unpruned_student_equals_diffusers(sd_folder: Path) -> None:
    """With Stable Diffusion's own widths only the first and the last layer differ, and those by repetition."""
    from diffusers import UNet2DConditionModel

    student = student_from_sd(sd_folder, SD_SHAPED)
    unet = UNet2DConditionModel.from_pretrained(sd_folder / "unet").eval()
    switch_off_time_and_text(unet)
    with torch.no_grad():
        lr = torch.rand(1, 3, 32, 32) * 2 - 1
        latents = F.pixel_unshuffle(lr, 2).unflatten(1, (3, 4)).sum(1)
        features = unet(latents, 7, torch.randn(1, 5, 16)).sample.repeat(1, 8, 1, 1)
        expected = student.decoder(features)
        assert (student(lr[:, None])[:, 0] - expected).abs().max() <= 1e-4


def test_bin_files_half_precision_and_old_names_give_the_same(sd_folder: Path, tmp_path: Path) -> None:
    unet, vae = sd_weights(sd_folder)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        for part in ("encoder", "decoder"):
            for kind in ("weight", "bias"):
                mid = f"{part}.mid_block.attentions.0"
                vae[f"{mid}.{name}.{kind}"] = vae.pop(f"{mid}.{new}.{kind}")
    for part, tensors in (("unet", unet), ("vae", vae)):
        (tmp_path / part).mkdir()
        torch.save(tensors, tmp_path / part / "diffusion_pytorch_model.bin")
    expected, student = student_from_sd(sd_folder, PRUNED), student_from_sd(tmp_path, PRUNED)
    assert all(torch.equal(student.state_dict()[k], v) for k, v in expected.state_dict().items() if "temporal" not in k)
    half = sd_copy(tmp_path / "half", {k: v.half() for k, v in unet.items()}, {k: v.half() for k, v in vae.items()})
    bias = student_from_sd(half, PRUNED).unet.conv_in.bias
    assert torch.equal(bias, expected.unet.conv_in.bias.half().float())


def test_other_folders_are_refused(sd_folder: Path, tmp_path: Path) -> None:
    unet, vae = sd_weights(sd_folder)

    def check(message: str, unet: dict = unet, vae: dict = vae, config: StudentConfig = PRUNED) -> None:
        with pytest.raises(CheckpointError, match=message):
            student_from_sd(sd_copy(tmp_path / "sd", unet, vae), config)

    def without(tensors: dict, beginning: str) -> dict:
        return {key: tensor for key, tensor in tensors.items() if not key.startswith(beginning)}

    convolutional = {key: t[..., None, None] if "proj_in.weight" in key else t for key, t in unet.items()}
    check("as in SD 1.x", unet=convolutional)
    check("SDXL has three", unet=without(unet, "down_blocks.3."))
    check(
        r"unknown keys: unet\.add_embedding\.linear_1\.weight",
        unet=unet | {"add_embedding.linear_1.weight": vae["encoder.conv_in.bias"]},
    )
    check(r"conv_in\.weight is .* expected 4 latent", unet=unet | {"conv_in.weight": torch.zeros(16, 9, 3, 3)})
    check(r"missing keys: unet\.conv_in\.bias", unet=without(unet, "conv_in.bias"))
    check(r"missing keys: .*attn1\.to_v", unet=without(unet, "mid_block.attentions.0.transformer_blocks.0.attn1.to_v"))
    check(r"unknown keys: vae\.surprise", vae=vae | {"surprise": torch.zeros(1)})
    check("wrongly shaped", unet=unet | {"conv_norm_out.bias": torch.zeros(15)})
    check("student wants", config=dataclasses.replace(PRUNED, channels=(20, 24, 48, 48)))
    check("heads do not divide", config=dataclasses.replace(PRUNED, heads=(1, 3, 4, 0)))
    check("unknown keys", config=dataclasses.replace(PRUNED, layers=1))
    check("unknown keys", config=dataclasses.replace(PRUNED, decoder_attention=False))
    with pytest.raises(CheckpointError, match="expected a Stable Diffusion"):
        student_from_sd(tmp_path, PRUNED)
    with pytest.raises(ConfigError, match="norm"):
        student_from_sd(sd_folder, dataclasses.replace(PRUNED, norm="none"))
    path = tmp_path / "sd" / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="damaged"):
        student_from_sd(tmp_path / "sd", PRUNED)
