"""torchvision's animals.

torchvision comes without compiled operators (see README.md), so they are declared before it is imported, by name
only: models that call them (Faster, Mask and Keypoint R-CNN: nms and roi_align) cannot live here. Detectors that
train without them do. SSD300 is left out: it is made to start from VGG weights trained on pixels of 0 to 255.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from benchmarks._batches import images
from benchmarks.zoo import case
from benchmarks.zoo.case import CLASSES, Case
from torch import Tensor, nn
from torch.nn import functional

OPERATORS = (
    "nms",
    "qnms",
    "roi_align",
    "qroi_align",
    "_roi_align_backward",
    "roi_pool",
    "_roi_pool_backward",
    "ps_roi_align",
    "_ps_roi_align_backward",
    "ps_roi_pool",
    "_ps_roi_pool_backward",
    "deform_conv2d",
    "_deform_conv2d_backward",
)
"""What torchvision expects its compiled part to have declared."""

DECLARED: list[torch.library.Library] = []
"""Keeps the declaration alive."""

THOUSAND = {"num_classes": 1000}
"""For heads that are drawn by fan_out: with ten classes they would start larger than their makers have them."""

PICTURES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "resnet18": (8, 160, {}),
    "resnet50": (8, 128, {}),
    "resnext50_32x4d": (4, 128, {}),
    "wide_resnet50_2": (4, 96, {}),
    "vgg11": (8, 128, {}),
    "vgg11_bn": (8, 128, {}),
    "vgg16_bn": (4, 64, {}),
    "alexnet": (16, 224, {}),
    "squeezenet1_0": (8, 160, {}),
    "squeezenet1_1": (8, 160, {}),
    "densenet121": (4, 128, {}),
    "mobilenet_v2": (8, 128, {}),
    "mobilenet_v3_small": (16, 160, {}),
    "mobilenet_v3_large": (8, 160, {}),
    "shufflenet_v2_x1_0": (8, 160, {}),
    "mnasnet0_5": (8, 160, THOUSAND),
    "efficientnet_b0": (8, 128, THOUSAND),
    "efficientnet_v2_s": (4, 96, THOUSAND),
    "convnext_tiny": (4, 128, {}),
    "regnet_x_400mf": (8, 128, {}),
    "regnet_y_400mf": (8, 128, {}),
    "googlenet": (8, 128, {"aux_logits": False, "init_weights": True}),
    "inception_v3": (4, 155, {"aux_logits": False, "init_weights": True}),
    "vit_b_16": (8, 64, {"image_size": 64}),
    "swin_t": (4, 128, {}),
    "swin_v2_t": (2, 128, {}),
    "maxvit_t": (2, 224, {"input_size": (224, 224)}),
}
"""Classifiers: batch, resolution, arguments."""

VIDEOS: dict[str, tuple[int, int, int]] = {
    "r3d_18": (4, 8, 56),
    "mc3_18": (4, 8, 56),
    "r2plus1d_18": (2, 8, 56),
    "s3d": (1, 16, 224),
    "swin3d_t": (2, 8, 64),
}
"""Classifiers of videos: batch, frames, resolution."""

SEGMENTERS = (
    "fcn_resnet50",
    "deeplabv3_resnet50",
    "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large",
)

DETECTORS: dict[str, tuple[int, dict[str, Any]]] = {
    "retinanet_resnet50_fpn": (128, {"min_size": 128, "max_size": 128}),
    "retinanet_resnet50_fpn_v2": (128, {"min_size": 128, "max_size": 128}),
    "fcos_resnet50_fpn": (128, {"min_size": 128, "max_size": 128}),
    "ssdlite320_mobilenet_v3_large": (320, {}),
}
"""Detectors: resolution, arguments."""


def cases() -> Iterator[Case]:
    """All of them."""
    declare_operators()
    from torchvision import models

    for name, (count, side, arguments) in PICTURES.items():
        build = partial(getattr(models, name), weights=None, **{"num_classes": CLASSES, **arguments})
        yield Case(name, "torchvision", build, case.pictures(count, side))
    for name in SEGMENTERS:
        make = getattr(models.segmentation, name)
        build = partial(make, weights=None, weights_backbone=None, num_classes=5)
        yield Case(name, "torchvision", build, case.masks(2, 96), _segmentation_loss)
    for name, (count, frames, side) in VIDEOS.items():
        build = partial(getattr(models.video, name), weights=None, num_classes=CLASSES)
        yield Case(name, "torchvision", build, case.clips(count, frames, side))
    for name, (side, arguments) in DETECTORS.items():
        build = partial(Detector, getattr(models.detection, name), **arguments)
        yield Case(name, "torchvision", build, partial(_boxes, 2, side), case.its_own)
    flow = partial(models.optical_flow.raft_small, weights=None)
    yield Case("raft_small", "torchvision", partial(Flow, flow), partial(_moved, 2, 128), functional.l1_loss)


def declare_operators() -> None:
    """Make torchvision importable without its compiled operators."""
    if DECLARED:
        return
    DECLARED.append(torch.library.Library("torchvision", "DEF"))
    for name in OPERATORS:
        DECLARED[0].define(f"{name}(Tensor x) -> Tensor")


def _segmentation_loss(output: Any, target: Tensor) -> Tensor:
    return functional.cross_entropy(output["out"], target)


class Detector(nn.Module):
    """A detector that takes tensors and returns the sum of its losses."""

    def __init__(self, make: Callable[..., nn.Module], **arguments: Any) -> None:
        super().__init__()
        self.detector = make(weights=None, weights_backbone=None, num_classes=CLASSES, **arguments)

    def forward(self, pixels: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """Images [batch, 3, h, w], boxes [batch, 4] and labels [batch], an object each, to a scalar."""
        targets = [{"boxes": b[None], "labels": k[None]} for b, k in zip(boxes, labels, strict=True)]
        losses = self.detector(list(pixels), targets)
        return torch.stack(list(losses.values())).sum()


def _boxes(count: int, side: int, seed: int) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    pixels, labels = images(count, side, classes=CLASSES - 1, seed=seed)
    angle = 2 * torch.pi * labels / (CLASSES - 1)
    middle = side / 2 * (1 + 0.5 * torch.stack([angle.cos(), angle.sin()], 1))
    boxes = torch.cat([middle - side / 6, middle + side / 6], 1)
    return ((pixels - pixels.min()) / (pixels.max() - pixels.min()), boxes, labels + 1), labels


class Flow(nn.Module):
    """A model of optical flow that returns its last estimate."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.flow = make()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Two images [batch, 3, h, w] to a flow [batch, 2, h, w]."""
        return self.flow(first, second, num_flow_updates=4)[-1]


def _moved(count: int, side: int, seed: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    pixels, _ = images(count, side, seed=seed)
    pixels = pixels / pixels.abs().max()
    flow = torch.tensor([4.0, -2.0])[None, :, None, None].expand(count, 2, side, side)
    return (pixels, pixels.roll((4, -2), (3, 2))), flow
