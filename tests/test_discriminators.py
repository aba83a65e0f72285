"""Laws of the discriminators: labels, what moves, what stays frozen, what each head can see, and the feature space."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import awaken
from torch import Tensor

from adcvsr_core.errors import ConfigError
from adcvsr_core.student import Student
from training.adversary import Adversary, adaptive_weight, real_clip
from training.config import AdversaryConfig
from training.discriminators import make_discriminator
from training.discriminators.labels import TABLE, Labels, Verdict, labelled_loss, lessons, realness_loss
from training.feature_space import LearnedFeatures, base_of, features_loss
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


# Weights and features


def test_the_adaptive_weight_makes_both_pull_alike() -> None:
    layer = torch.tensor([1.0, -2.0], requires_grad=True)
    regression, adversarial = (6 * layer).sum(), (2 * layer).sum()
    assert adaptive_weight(regression, adversarial, layer) == pytest.approx(3, rel=1e-3)
    assert adaptive_weight(regression, (layer * 0).sum(), layer) == pytest.approx(1e4)


def test_the_feature_space_learns_what_the_decoder_reads(small_student: Student) -> None:
    torch.manual_seed(0)
    space = LearnedFeatures(small_student.config)
    lr = noise(2, 1, 3, 16, 16, seed=4)
    hr = (base_of(lr, small_student) + 0.1 * noise(2, 1, 3, 64, 64, seed=5)).clamp(-1, 1)
    features = space.encode(hr, base_of(lr, small_student))
    assert features.shape == Generator(small_student)(lr, 1.0).features.shape
    optimizer = torch.optim.Adam(space.parameters(), lr=3e-3)
    values = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = features_loss(space, small_student, hr, lr)
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.95 * values[0]
    assert all(p.grad is None for p in small_student.parameters())
