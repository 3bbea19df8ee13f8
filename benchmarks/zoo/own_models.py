"""Our own animals: usual networks, each in its usual form."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks._own_models import MiniGPT, Recurrent, ResNet, UNet, autoencoder, dense_autoencoder, mlp
from benchmarks.zoo import case
from benchmarks.zoo.case import Case
from torch import nn
from torch.nn import functional


def cases() -> Iterator[Case]:
    """All of them."""
    yield Case("mlp-he", "own", lambda: mlp(784, 256, 256, 256, 256, 10), case.pictures(64, 28, 1))
    yield Case("resnet6-bn", "own", ResNet, case.pictures(32, 32))
    yield Case("minigpt", "own", lambda: MiniGPT(500, 128, 6), case.next_token(), case.token_loss)
    yield Case("lstm", "own", lambda: Recurrent(nn.LSTM), case.text_classes())
    yield Case("gru", "own", lambda: Recurrent(nn.GRU), case.text_classes())
    yield Case("autoencoder", "own", autoencoder, case.itself(16, 64), functional.mse_loss)
    yield Case("autoencoder-dense", "own", dense_autoencoder, case.itself(64, 28, 1), case.flat_mse)
    yield Case("unet-bn", "own", UNet, case.masks(8, 64))
    yield Case("unet-plain", "own", lambda: UNet(normed=False), case.masks(8, 64))
