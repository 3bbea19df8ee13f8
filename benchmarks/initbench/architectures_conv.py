"""Networks of InitBench made of convolutions: plain, normalized, residual, dense, depthwise, U-Net."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Callable[[int], nn.Module]


def group_norm(channels: int) -> nn.Module:
    """GroupNorm of four groups."""
    return nn.GroupNorm(4, channels)


def conv3(fan_in: int, fan_out: int, *, bias: bool = True, groups: int = 1) -> nn.Conv2d:
    """A 3×3 convolution that keeps the size."""
    return nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=bias, groups=groups)


class PlainCNN(nn.Module):
    """Convolutions and ReLU, one max-pool, mean over pixels, head."""

    def __init__(self, channels: int, convs: int, pool_after: int, classes: int = 10) -> None:
        super().__init__()
        self.stem = conv3(1, channels)
        self.convs = nn.ModuleList(conv3(channels, channels) for _ in range(convs - 1))
        self.head = nn.Linear(channels, classes)
        self.pool_after = pool_after

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for done, conv in enumerate(self.convs, start=1):
            if done == self.pool_after:
                x = F.max_pool2d(x, 2)
            x = F.relu(conv(x))
        return self.head(x.mean((2, 3)))


class NormCNN(nn.Module):
    """Convolution, norm, activation; the second one strided; mean over pixels, head."""

    def __init__(
        self, channels: int, convs: int, norm: Norm, activation: Callable[[], nn.Module], classes: int = 10
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(convs):
            stride = 2 if i == 1 else 1
            layers += [
                nn.Conv2d(channels if i else 1, channels, 3, stride, 1, bias=False),
                norm(channels),
                activation(),
            ]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.features(x)).flatten(1))


class BasicBlock(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x))))))."""

    def __init__(self, fan_in: int, fan_out: int, norm: Norm) -> None:
        """Halves the size where it changes the number of channels."""
        super().__init__()
        stride = 1 if fan_in == fan_out else 2
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=False)
        self.norm1 = norm(fan_out)
        self.conv2 = conv3(fan_out, fan_out, bias=False)
        self.norm2 = norm(fan_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2:
            self.shortcut = nn.Sequential(nn.Conv2d(fan_in, fan_out, 1, stride, bias=False), norm(fan_out))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


class ResNet(nn.Module):
    """A strided stem and basic blocks of the given channels."""

    def __init__(self, stem: int, channels: tuple[int, ...], norm: Norm, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, stem, 3, stride=2, padding=1, bias=False)
        self.norm = norm(stem)
        widths = (stem, *channels)
        self.blocks = nn.Sequential(*(BasicBlock(a, b, norm) for a, b in zip(widths, channels, strict=False)))
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.head(x.mean((2, 3)))


class PlainResidual(nn.Module):
    """x + conv2(relu(conv1(x)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv3(channels, channels)
        self.conv2 = conv3(channels, channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.relu(self.conv1(x)))


class NormFreeResNet(nn.Module):
    """Residual blocks without any norm, behind a strided stem."""

    def __init__(self, channels: int, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(PlainResidual(channels) for _ in range(blocks)))
        self.relu = nn.ReLU()
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.blocks(self.stem(x)))
        return self.head(x.mean((2, 3)))


class DenseLayer(nn.Module):
    """Appends `growth` channels to those that came in."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = conv3(channels, growth, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class DenseNet(nn.Module):
    """A strided stem and two dense blocks of three layers, a transition between them."""

    def __init__(self, stem: int = 8, growth: int = 6, classes: int = 10) -> None:
        super().__init__()
        grown = stem + 3 * growth
        self.stem = nn.Conv2d(1, stem, 3, stride=2, padding=1, bias=False)
        self.block1 = nn.Sequential(*(DenseLayer(stem + i * growth, growth) for i in range(3)))
        self.transition = nn.Sequential(
            nn.BatchNorm2d(grown), nn.ReLU(), nn.Conv2d(grown, stem, 1, bias=False), nn.AvgPool2d(2)
        )
        self.block2 = nn.Sequential(*(DenseLayer(stem + i * growth, growth) for i in range(3)))
        self.norm = nn.BatchNorm2d(grown)
        self.head = nn.Linear(grown, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.transition(self.block1(self.stem(x))))
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


class SeparableBlock(nn.Module):
    """x + project(depthwise(expand(x))), each with BatchNorm, as in MobileNetV2."""

    def __init__(self, channels: int, expansion: int = 2) -> None:
        super().__init__()
        hidden = expansion * channels
        self.expand = nn.Conv2d(channels, hidden, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.depthwise = conv3(hidden, hidden, bias=False, groups=hidden)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.project = nn.Conv2d(hidden, channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self.norm1(self.expand(x)))
        h = F.relu6(self.norm2(self.depthwise(h)))
        return x + self.norm3(self.project(h))


class MobileNet(nn.Module):
    """A strided stem and separable blocks."""

    def __init__(self, channels: int, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.blocks = nn.Sequential(*(SeparableBlock(channels) for _ in range(blocks)))
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu6(self.norm(self.stem(x))))
        return self.head(x.mean((2, 3)))


class ConvMixerBlock(nn.Module):
    """A residual depthwise convolution, then a pointwise one."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding="same", groups=channels)
        self.norm1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm1(F.gelu(self.depthwise(x)))
        return self.norm2(F.gelu(self.pointwise(x)))


class ConvMixer(nn.Module):
    """Patches of 2×2, mixed over space and over channels in turn."""

    def __init__(self, channels: int, blocks: int, kernel: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 2, stride=2)
        self.norm = nn.BatchNorm2d(channels)
        self.blocks = nn.Sequential(*(ConvMixerBlock(channels, kernel) for _ in range(blocks)))
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.norm(F.gelu(self.stem(x))))
        return self.head(x.mean((2, 3)))


class UNet(nn.Module):
    """Down from 8×8 to 2×2 and up again, with concatenated skips and no norms."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        c = channels
        self.stem = conv3(1, c)
        self.down1 = nn.Conv2d(c, 2 * c, 3, stride=2, padding=1)
        self.down2 = nn.Conv2d(2 * c, 4 * c, 3, stride=2, padding=1)
        self.middle = conv3(4 * c, 4 * c)
        self.up2 = nn.ConvTranspose2d(4 * c, 2 * c, 2, stride=2)
        self.fuse2 = conv3(4 * c, 2 * c)
        self.up1 = nn.ConvTranspose2d(2 * c, c, 2, stride=2)
        self.fuse1 = conv3(2 * c, c)
        self.head = nn.Conv2d(c, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = F.relu(self.stem(x))
        half = F.relu(self.down1(fine))
        x = F.relu(self.middle(F.relu(self.down2(half))))
        x = F.relu(self.fuse2(torch.cat([self.up2(x), half], 1)))
        x = F.relu(self.fuse1(torch.cat([self.up1(x), fine], 1)))
        return self.head(x)
