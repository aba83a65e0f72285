"""What every test shares: fixed randomness, the smallest student that still has every part, the bundled clip."""

import copy
import random
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

from adcvsr_core.config import StudentConfig
from adcvsr_core.streaming import TemporalConv
from adcvsr_core.student import Student
from tests.training_material import make_prepared_folder

# The tensors are tiny: threads that wait for each other only slow a busy machine down.
torch.set_num_threads(1)

# The same examples on every machine and no time limits: a busy machine must not fail a test.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=25, print_blob=True)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root folder."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def sample(root: Path) -> Path:
    """The bundled clip: 56 frames of 320x180 with sound, one cut before frame 31."""
    return root / "adcvsr_core" / "samples" / "demo.mp4"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `training.prepare_bundled_data` writes, in small. Not to be written to."""
    return make_prepared_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def tiny_config() -> StudentConfig:
    """The smallest network that has group norms, attention everywhere it may be, and nine temporal blocks."""
    return StudentConfig(
        channels=(8, 8, 12, 12),
        layers=1,
        heads=(1, 1, 2, 0),
        mid_heads=2,
        decoder_channels=(4, 4, 8, 8),
        decoder_layers=0,
        norm_groups=4,
    )


def awaken(student: Student) -> Student:
    """Give every weight that starts at zero, and every temporal one, a strong random value.

    At initialisation the temporal branch is the identity, and a test of streaming would pass for nothing.
    """
    for module in student.modules():
        if isinstance(module, TemporalConv):
            fan_in = module.in_channels * module.kernel_size[0]
            torch.nn.init.normal_(module.weight, std=1.5 / fan_in**0.5)
            torch.nn.init.normal_(module.bias, std=0.1)
    for parameter in student.parameters():
        if parameter.ndim == 1 or not parameter.any():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return student.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def student(tiny_config: StudentConfig) -> Student:
    """A tiny float32 student with strong random weights everywhere."""
    torch.manual_seed(1)
    return awaken(Student(tiny_config))


@pytest.fixture(scope="session")
def exact_student(student: Student) -> Student:
    """The same student in float64, for laws that hold to the last digits."""
    return copy.deepcopy(student).double()
