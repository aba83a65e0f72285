"""How a fresh student without norms begins: near the identity of its residual, with activations of constant size.

`Student` starts its residual blocks as the identity. What is left is a chain of convolutions with nothing non-linear
between them, through which He's gain of sqrt(2) grows the signal a hundredfold, so that the first output is far from
any picture. Here those have gain 1 and the last one is small.
"""

import torch
from torch import nn

from adcvsr_core.layers import ResBlock
from adcvsr_core.student import Student


@torch.no_grad()
def start_quiet(student: Student) -> None:
    """Rescale a freshly made student in place; nothing to do with norms, which fix the size by themselves."""
    if student.config.norm != "none":
        return
    inside = {
        id(conv) for block in student.modules() if isinstance(block, ResBlock) for conv in (block.conv1, block.conv2)
    }
    for module in student.modules():
        if isinstance(module, nn.Conv2d) and id(module) not in inside:
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    student.decoder.conv_out.weight.mul_(0.1)
