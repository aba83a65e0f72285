"""Laws of the discriminators: labels, what moves, what stays frozen, what each head can see."""

import copy
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import awaken
from safetensors.torch import save_file
from torch import Tensor, nn

from adcvsr_core.errors import CheckpointError, ConfigError, InputError
from adcvsr_core.student import Student
from training.adversary import Adversary, adaptive_weight, real_clip
from training.config import AdversaryConfig
from training.discriminators import make_discriminator
from training.discriminators.frozen import held
from training.discriminators.labels import TABLE, Labels, Verdict, labelled_loss, lessons, realness_loss
from training.feature_space import LearnedFeatures, base_of
from training.generator import Generator

SMALL = {"pixel_backbone": "st-alex", "channels": 16, "detail_channels": 12}
KINDS = ("student", "real", "shuffled", "still", "stacked")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def small_student() -> Student:
    """A student of the bundled family: no norms, a residual over bicubic, blocks that do something."""
    from training.recipes import debug

    torch.manual_seed(0)
    return awaken(Student(debug().student)).eval().requires_grad_(True)


@pytest.fixture
def batch() -> dict:
    order = torch.tensor([[2, 0, 1], [1, 2, 0]])
    return {"real": noise(2, 3, 3, 64, 64, seed=1), "order": order, "crops": noise(2, 3, 3, 64, 64, seed=2)}


def make(student: Student, folder: Path, **settings) -> Adversary:
    config = AdversaryConfig(**{**SMALL, **settings})
    return Adversary(config, student, features=folder / "features", stable_diffusion="")


# Labels


def test_the_table_is_the_papers() -> None:
    expected = {"student": (-1, -1), "real": (0, 1), "shuffled": (0, -1), "still": (1, 1), "stacked": (1, -1)}
    assert {kind: tuple(labels) for kind, (labels, _) in TABLE.items()} == expected
    assert {kind: tuple(labels) for kind, (_, labels) in lessons(AdversaryConfig()).items()} == expected


def test_the_other_reading_calls_stacked_crops_bad() -> None:
    assert lessons(AdversaryConfig(stacked_detail=-1))["stacked"][1] == Labels(-1, -1)


def test_a_single_head_is_told_of_three_kinds() -> None:
    told = {kind: labels.detail for kind, (_, labels) in lessons(AdversaryConfig(heads="single")).items()}
    assert told == {"student": -1, "real": 1, "still": 1}


@pytest.mark.parametrize("kind", KINDS[1:])
def test_every_kind_can_be_switched_off(kind: str) -> None:
    assert set(lessons(AdversaryConfig(**{kind: 0.0}))) == set(KINDS) - {kind}


@pytest.mark.parametrize("kind", KINDS)
def test_labels_pull_their_head_their_way_and_0_not_at_all(kind: str) -> None:
    labels = lessons(AdversaryConfig())[kind][1]
    logits = [noise(1, 2, 1, 4, 4, seed=i).requires_grad_() for i in range(2)]
    labelled_loss(Verdict(*logits), labels).backward()
    for logit, label in zip(logits, labels, strict=True):
        if label == 0:
            assert logit.grad is None, "a silent label has a gradient"
        else:
            assert (logit.grad * label < 0).all(), "a step down the gradient must raise what is real"


def test_the_student_wants_both_heads_convinced_as_weighted() -> None:
    verdict = Verdict(torch.full((1, 1, 1, 2, 2), 2.0), torch.full((1, 1, 1, 2, 2), -1.0))
    config = AdversaryConfig(detail_weight=0.5, consistency_weight=3.0)
    expected = 0.5 * F.softplus(torch.tensor(-2.0)) + 3.0 * F.softplus(torch.tensor(1.0))
    assert realness_loss(verdict, config) == pytest.approx(expected.item())


def test_real_clips_are_what_they_are_called(batch: dict) -> None:
    assert torch.equal(real_clip("shuffled", batch)[1, 0], batch["real"][1, 1])
    still = real_clip("still", batch)
    assert all(torch.equal(still[:, t], batch["crops"][:, 0]) for t in range(3))
    assert torch.equal(real_clip("stacked", batch), batch["crops"])


# What moves


@pytest.mark.parametrize("domains", [("pixel",), ("feature",), ("pixel", "feature")])
@pytest.mark.parametrize("heads", ["dual", "single"])
def test_each_side_moves_itself_alone(
    small_student: Student, folder: Path, batch: dict, domains: tuple[str, ...], heads: str
) -> None:
    adversary = make(small_student, folder, domains=domains, heads=heads)
    space = LearnedFeatures(small_student.config)
    made = Generator(small_student.train())(noise(2, 3, 3, 16, 16, seed=3), 1.0)
    terms = adversary.student_loss(made.sr, made.features)
    assert terms.keys() == {f"adversarial_{domain}" for domain in domains}
    sum(terms.values()).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in small_student.parameters())
    assert all(p.grad is None for p in adversary.parameters())

    small_student.zero_grad(set_to_none=True)
    loss, logits = adversary.discriminator_loss(
        batch, made.sr, made.features, lambda x: encode(space, x, small_student)
    )
    loss.backward()
    assert all(p.grad is None for p in small_student.parameters()) and all(p.grad is None for p in space.parameters())
    with_gradient = {n for n, p in adversary.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert with_gradient and with_gradient <= {n for n, p in adversary.named_parameters() if p.requires_grad}
    assert all(any(name.startswith(f"discriminators.{d}.") for name in with_gradient) for d in domains)
    assert any(name.startswith(f"logit_{domains[0]}_student") for name in logits)


def encode(space: LearnedFeatures, clip: Tensor, student: Student) -> Tensor:
    lr = F.interpolate(clip.flatten(0, 1), scale_factor=0.25, mode="bicubic", antialias=True).unflatten(0, (2, 3))
    return space.encode(clip, base_of(lr, student))


def test_a_discriminator_step_moves_only_what_trains(small_student: Student, folder: Path, batch: dict) -> None:
    adversary = make(small_student, folder)
    before = copy.deepcopy(adversary.state_dict())
    made = Generator(small_student)(noise(2, 3, 3, 16, 16, seed=3), 1.0)
    space = LearnedFeatures(small_student.config)
    optimizer = torch.optim.Adam(adversary.trainable_parameters(), lr=0.1)
    adversary.discriminator_loss(batch, made.sr, made.features, lambda x: encode(space, x, small_student))[0].backward()
    optimizer.step()
    moved = {key for key, value in adversary.state_dict().items() if not torch.equal(before[key], value)}
    assert {key.split(".")[2] for key in moved} == {"conv_in", "tail"}
    assert moved == {key for key in before if key.split(".")[2] in ("conv_in", "tail")}, "something does not learn"


def test_weights_of_kinds_weigh(small_student: Student, folder: Path, batch: dict) -> None:
    torch.manual_seed(0)
    adversary = make(small_student, folder, domains=("pixel",))
    losses = []
    for weight in (0.0, 1.0, 3.0):
        adversary.config = AdversaryConfig(**{**SMALL, "domains": ("pixel",)}, shuffled=weight)
        loss, logits = adversary.discriminator_loss(batch, batch["crops"], None, None)
        assert ("logit_pixel_shuffled_detail" in logits) == (weight > 0)
        losses.append(loss.item())
    assert losses[2] - losses[1] == pytest.approx(2 * (losses[1] - losses[0]), rel=1e-4)


def test_a_held_network_trains_again_even_after_a_fault() -> None:
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(InputError), held(layers):
        assert not any(p.requires_grad for p in layers.parameters())
        raise InputError("anything")
    assert [p.requires_grad for p in layers.parameters()] == [True, True, False, False]


def test_backbones_stay_frozen_and_in_eval_mode(small_student: Student, folder: Path) -> None:
    adversary = make(small_student, folder).train()
    for discriminator in adversary.discriminators.values():
        assert not discriminator.backbone.training
        assert not any(p.requires_grad for p in discriminator.backbone.parameters())
        assert discriminator.conv_in.weight.requires_grad and discriminator.tail.training


def test_the_backbone_is_the_student_as_the_stage_began(small_student: Student, folder: Path) -> None:
    adversary = make(small_student, folder, domains=("feature",))
    before = copy.deepcopy(adversary.state_dict())
    with torch.no_grad():
        for parameter in small_student.parameters():
            parameter.add_(1)
    assert all(torch.equal(before[key], value) for key, value in adversary.state_dict().items())
    again = make(small_student, folder, domains=("feature",))  # from other weights, as after a restart
    again.load_state_dict(before)
    clip = noise(1, 3, small_student.config.decoder_channels[-1], 8, 8)
    with torch.no_grad():
        a, b = (each.discriminators["feature"](clip) for each in (adversary, again))
    assert torch.equal(a.detail, b.detail) and torch.equal(a.consistency, b.consistency)


# What they see


@pytest.mark.parametrize("domain", ["pixel", "feature"])
def test_verdicts_are_maps_and_see_time(small_student: Student, folder: Path, domain: str) -> None:
    torch.manual_seed(1)
    discriminator = make(small_student, folder).discriminators[domain]
    shape = (3, 64, 64) if domain == "pixel" else (small_student.config.decoder_channels[-1], 16, 16)
    clip = noise(1, 5, *shape)
    with torch.no_grad():
        verdict, shuffled = discriminator(clip), discriminator(clip[:, [2, 0, 4, 1, 3]])
    for logits in verdict:
        assert logits.shape[:3] == (1, 5, 1) and min(logits.shape[3:]) > 1 and logits.dtype == torch.float32
        assert logits.flatten(3).std(-1).min() > 0, "the same verdict everywhere"
    assert not torch.allclose(verdict.consistency[:, 2], shuffled.consistency[:, 0], atol=1e-7), "blind to neighbours"


def test_the_detail_head_is_blind_to_order(small_student: Student, folder: Path) -> None:
    discriminator = make(small_student, folder).discriminators["pixel"]
    clip, order = noise(1, 5, 3, 64, 64), [2, 0, 4, 1, 3]
    with torch.no_grad():
        verdict, shuffled = discriminator(clip), discriminator(clip[:, order])
    assert torch.allclose(verdict.detail[:, order], shuffled.detail, atol=1e-5)


def test_a_fresh_consistency_head_hears_changes_alone(small_student: Student, folder: Path) -> None:
    torch.manual_seed(1)
    discriminator = make(small_student, folder, domains=("pixel",)).discriminators["pixel"]
    with torch.no_grad():
        still = [discriminator(noise(1, 1, 3, 64, 64, seed=i).expand(-1, 3, -1, -1, -1)) for i in range(2)]
        moving = discriminator(noise(1, 3, 3, 64, 64))
    assert torch.allclose(still[0].consistency, still[1].consistency, atol=1e-5)
    assert not torch.allclose(still[0].detail, still[1].detail, atol=1e-3)
    assert not torch.allclose(still[0].consistency, moving.consistency, atol=1e-3)


def test_a_single_head_sees_detail_and_time(small_student: Student, folder: Path) -> None:
    discriminator = make(small_student, folder, domains=("pixel",), heads="single").discriminators["pixel"]
    clip = noise(1, 3, 3, 64, 64)
    with torch.no_grad():
        verdict, shuffled = discriminator(clip), discriminator(clip[:, [1, 0, 2]])
        still = [discriminator(clip[:, [t]]).detail for t in range(2)]
    assert verdict.consistency is None and not torch.allclose(verdict.detail[:, 2], shuffled.detail[:, 2], atol=1e-5)
    assert not torch.allclose(*still, atol=1e-3)


def test_a_still_clip_gets_one_verdict(small_student: Student, folder: Path) -> None:
    torch.manual_seed(1)
    discriminator = make(small_student, folder, domains=("pixel",)).discriminators["pixel"]
    with torch.no_grad():
        verdict = discriminator(noise(1, 1, 3, 64, 64).expand(-1, 4, -1, -1, -1))
    assert all(torch.allclose(logits[:, 0], logits[:, t], atol=1e-5) for logits in verdict for t in range(4))


def test_the_patch_discriminator_judges_frames_alone(small_student: Student, folder: Path) -> None:
    adversary = make(small_student, folder, domains=("pixel",), heads="single", pixel_backbone="patch", channels=32)
    clip = noise(1, 3, 3, 64, 64)
    with torch.no_grad():
        verdict, reversed_ = (adversary.discriminators["pixel"](each) for each in (clip, clip.flip(1)))
    assert verdict.consistency is None and torch.allclose(verdict.detail, reversed_.detail.flip(1), atol=1e-5)


def test_backbones_with_one_verdict_have_no_two_heads(small_student: Student, folder: Path) -> None:
    for domain, name in (("pixel", "patch"), ("feature", "sd-unet")):
        config = AdversaryConfig(**{f"{domain}_backbone": name})
        with pytest.raises(ConfigError, match='adversary.heads to "single"'):
            make_discriminator(domain, config, student=small_student, features=folder, stable_diffusion="")


def test_the_papers_backbone_names_the_offline_one_when_it_is_missing(small_student: Student, folder: Path) -> None:
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError):
        with pytest.raises(ConfigError, match="pip install timm.*st-vgg"):
            make(small_student, folder, pixel_backbone="convnext", domains=("pixel",))
    else:
        pytest.skip("timm is installed here")


def test_the_papers_backbone_sees_clips_normalisation(
    small_student: Student, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Trunk(nn.Conv2d):  # stands for timm's network of feature maps
        feature_info = types.SimpleNamespace(channels=lambda: [6])

        def forward(self, frames: Tensor) -> list[Tensor]:
            seen.append(frames)
            return [super().forward(frames)]

    timm = types.ModuleType("timm")
    timm.create_model = lambda name, **settings: Trunk(3, 6, 32, stride=32)
    monkeypatch.setitem(sys.modules, "timm", timm)
    discriminator = make(small_student, folder, pixel_backbone="convnext", domains=("pixel",)).discriminators["pixel"]
    verdict = discriminator(torch.full((1, 2, 3, 64, 96), -1.0))
    assert verdict.consistency.shape == (1, 2, 1, 2, 3)
    black = torch.tensor([-1.7923, -1.7521, -1.4802])  # CLIP's (0 - mean) / deviation
    assert torch.allclose(seen[0][0, :, 8, 8], black, atol=1e-3)

    def unreachable(name: str, **settings) -> nn.Module:
        raise OSError("no network")

    timm.create_model = unreachable
    with pytest.raises(InputError, match="no network"):
        make(small_student, folder, pixel_backbone="convnext", domains=("pixel",))


# Stable Diffusion


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The UNet of a random, tiny Stable Diffusion."""
    diffusers = pytest.importorskip("diffusers", reason="Stable Diffusion's networks are its")
    folder = tmp_path_factory.mktemp("sd")
    torch.manual_seed(0)
    diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=[1, 2],
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        cross_attention_dim=12,
        use_linear_projection=True,
    ).save_pretrained(folder / "unet")
    return folder


def judge_by_sd(student: Student, folder: Path, **settings: float) -> Adversary:
    pytest.importorskip("peft", reason="the adapters are its")
    config = AdversaryConfig(domains=("feature",), heads="single", feature_backbone="sd-unet", **settings)
    return Adversary(config, student, features=folder, stable_diffusion=str(folder))


def test_adcsrs_discriminator_begins_as_stable_diffusion(small_student: Student, sd: Path) -> None:
    from diffusers import UNet2DConditionModel

    discriminator = judge_by_sd(small_student, sd).discriminators["feature"]
    unet = UNet2DConditionModel.from_pretrained(sd / "unet")
    latents = noise(2, 4, 16, 16)
    # Every latent channel stands on the features that repeat its weights: the mean of these is the channel itself.
    features = latents.repeat(1, small_student.config.decoder_channels[-1] // 4, 1, 1)[:, None]
    with torch.no_grad():
        verdict = discriminator(features)
        expected = unet(latents, 999, torch.zeros(2, 77, 12)).sample
    assert verdict.consistency is None and torch.allclose(verdict.detail[:, 0], expected, atol=1e-4)


def test_adcsrs_discriminator_looks_at_a_timestep_through_noise(small_student: Student, sd: Path) -> None:
    """Its noise follows from the step alone and is as strong as asked, whatever the features' scale."""
    made = noise(1, 2, small_student.config.decoder_channels[-1], 8, 8)
    plain, early, noisy = (judge_by_sd(small_student, sd, **s) for s in ({}, {"timestep": 20}, {"noise": 0.5}))
    early.load_state_dict(plain.state_dict())
    noisy.load_state_dict(plain.state_dict())

    def verdict(adversary: Adversary, step: int, scale: float = 1.0) -> torch.Tensor:
        adversary.set_step(step)
        with torch.no_grad():
            return adversary.discriminators["feature"](scale * made).detail

    assert torch.equal(verdict(plain, 1), verdict(plain, 2))
    assert not torch.allclose(verdict(plain, 1), verdict(early, 1), atol=1e-4)
    assert torch.equal(verdict(noisy, 1), verdict(noisy, 1)) and not torch.equal(verdict(noisy, 1), verdict(noisy, 2))
    seen = []
    noisy.discriminators["feature"].unet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for scale in (1.0, 10.0):
        verdict(noisy, 3, scale)
        share = (seen[-1].unflatten(0, (1, 2)) - scale * made).std() / (scale * made.std())
        assert share == pytest.approx(0.5, rel=0.05)


def test_adcsrs_discriminator_trains_adapters_and_its_first_layer(small_student: Student, sd: Path) -> None:
    adversary = judge_by_sd(small_student, sd).train()
    trainable = {name for name, p in adversary.named_parameters() if p.requires_grad}
    assert all("lora_" in name or ".conv_in." in name for name in trainable)
    assert any("lora_A" in name and "conv1" in name for name in trainable)
    assert not any("time_emb" in name for name in trainable)
    assert not any(module.training for module in adversary.discriminators["feature"].unet.modules())
    before = copy.deepcopy(adversary.state_dict())
    optimizer = torch.optim.Adam(adversary.trainable_parameters(), lr=0.1)
    batch = {"real": noise(1, 2, 3, 64, 64), "crops": noise(1, 2, 3, 64, 64)}
    made = noise(1, 2, small_student.config.decoder_channels[-1], 8, 8).requires_grad_()
    for _ in range(2):  # an adapter's first half moves once its second half is no longer zero
        optimizer.zero_grad()
        adversary.discriminator_loss(batch, made, made, lambda clip: noise(*made.shape, seed=9))[0].backward()
        optimizer.step()
    moved = {key for key, value in adversary.state_dict().items() if not torch.equal(before[key], value)}
    assert moved <= trainable and made.grad is None
    assert all(".attn2.to_" in name for name in trainable - moved), "a prompt of zeros gives these alone nothing to do"
    adversary.student_loss(made, made)["adversarial_feature"].backward()
    assert made.grad.abs().sum() > 0


def test_the_prompt_is_read_and_checked(small_student: Student, sd: Path) -> None:
    path = sd / "prompt_embedding.safetensors"
    try:
        save_file({"prompt_embedding": noise(5, 12)}, path)
        assert judge_by_sd(small_student, sd).discriminators["feature"].prompt.shape == (1, 5, 12)
        save_file({"prompt_embedding": noise(5, 7)}, path)
        with pytest.raises(CheckpointError, match=r"expected \[tokens,12\]"):
            judge_by_sd(small_student, sd)
        save_file({"something": noise(5, 12)}, path)
        with pytest.raises(CheckpointError, match="prompt_embedding"):
            judge_by_sd(small_student, sd)
    finally:
        path.unlink()


def test_adcsrs_discriminator_says_what_is_missing(small_student: Student, tmp_path: Path) -> None:
    config = AdversaryConfig(heads="single", feature_backbone="sd-unet")
    for folder, fault, text in (("", ConfigError, "stable_diffusion=FOLDER"), (str(tmp_path), InputError, "unet/")):
        with pytest.raises(fault, match=text):
            make_discriminator("feature", config, student=small_student, features=tmp_path, stable_diffusion=folder)
    (tmp_path / "unet").mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        judge_by_sd(small_student, tmp_path)


# The student's side


def test_the_adaptive_weight_makes_both_pull_alike() -> None:
    layer = torch.tensor([1.0, -2.0], requires_grad=True)
    regression, adversarial = (6 * layer).sum(), (2 * layer).sum()
    assert adaptive_weight(regression, adversarial, layer) == pytest.approx(3, rel=1e-3)
    assert adaptive_weight(regression, (layer * 0).sum(), layer) == pytest.approx(1e4)
