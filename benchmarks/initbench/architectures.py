"""The small networks of InitBench, of many families, each with the task it is trained on.

They are built with PyTorch's default initialization, but for those whose makers have a well-known one of their own:
GPT (N(0, 0.02), ends of branches scaled down by depth) and SIREN (uniform, by ω). Thresholds are chosen on the `tune`
split only; the `test` split holds other depths, other activations and other families.

`python -m benchmarks.initbench.architectures` times a training step of each (or of those named after it); `--learn`
also trains each for 300 steps from its own initialization and from He's.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from benchmarks.initbench import architectures_conv as conv
from benchmarks.initbench import architectures_dense as dense
from benchmarks.initbench import architectures_sequence as sequence
from benchmarks.initbench import tasks
from benchmarks.initbench.tasks import Task
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to build a network, what to train it on, and which of its layers play which part.

    `branch_ends` are the last mixing layers of residual branches (module paths); `query_key` the weights (parameter
    paths) of query and key projections, where they are parameters of their own.
    """

    name: str
    family: str
    split: str
    build: Callable[[], nn.Module]
    task: Callable[[], Task]
    head: str
    branch_ends: tuple[str, ...] = ()
    activation: str = "relu"
    query_key: tuple[str, ...] = ()
    learning_rates: tuple[float, float, float] = (3e-4, 2e-3, 1e-2)
    batch_size: int = 64


def architecture(name: str) -> Architecture:
    """The architecture of this name."""
    return next(known for known in ARCHITECTURES if known.name == name)


def _paths(blocks: int, *ends: str) -> tuple[str, ...]:
    return tuple(f"blocks.{i}.{end}" for i in range(blocks) for end in ends)


_QUERY_KEY = ("attention.query.weight", "attention.key.weight")
_TRANSFORMER_ENDS = ("attention.out", "mlp.fc2")


def _gcn() -> nn.Module:
    return dense.GCN(tasks.graph_adjacency(), 64, 48, 10, depth=4)


def _lstm() -> nn.Module:
    return sequence.Recurrent(nn.LSTM(8, 40, num_layers=2, batch_first=True))


def _gru() -> nn.Module:
    return sequence.Recurrent(nn.GRU(8, 32, num_layers=2, batch_first=True))


def _rnn() -> nn.Module:
    return sequence.Recurrent(nn.RNN(4, 64, batch_first=True))


def _mlp(
    name: str, build: Callable[[], nn.Module], split: str, activation: str = "relu", family: str = "plain mlp"
) -> Architecture:
    """A network over flat digits."""
    return Architecture(name, family, split, build, tasks.digits_flat, "head", activation=activation)


def _cnn(
    name: str,
    build: Callable[[], nn.Module],
    split: str,
    family: str,
    branch_ends: tuple[str, ...] = (),
    activation: str = "relu",
) -> Architecture:
    """A network over images of digits."""
    return Architecture(
        name, family, split, build, tasks.digits_images, "head", branch_ends, activation, batch_size=16
    )


_TUNE = (
    _mlp("mlp8-relu", partial(dense.MLP, 64, 64, 10, 8), "tune"),
    _mlp("mlp20-tanh", partial(dense.FunctionalMLP, 64, 48, 10, 20, torch.tanh), "tune", "tanh"),
    _mlp("mlp5-sigmoid", partial(dense.MLP, 64, 64, 10, 5, nn.Sigmoid), "tune", "sigmoid"),
    _mlp(
        "mlp6-gelu-bn",
        partial(dense.MLP, 64, 64, 10, 6, nn.GELU, nn.BatchNorm1d),
        "tune",
        "gelu",
        "normalized mlp",
    ),
    _cnn("cnn6-relu", partial(conv.PlainCNN, 8, 6, pool_after=1), "tune", "plain cnn"),
    _cnn("cnn6-bn-relu", partial(conv.NormCNN, 8, 6, nn.BatchNorm2d, nn.ReLU), "tune", "normalized cnn"),
    Architecture(
        "resmlp8-nonorm",
        "residual mlp",
        "tune",
        partial(dense.ResidualMLP, 64, 48, 10, 8),
        tasks.digits_flat,
        "head",
        branch_ends=_paths(8, "fc2"),
    ),
    _cnn(
        "resnet6-bn",
        partial(conv.ResNet, 8, (8, 8, 16), nn.BatchNorm2d),
        "tune",
        "normalized resnet",
        _paths(3, "conv2"),
    ),
    _cnn("densenet-bn", conv.DenseNet, "tune", "densenet"),
    Architecture(
        "gpt2-preln",
        "gpt",
        "tune",
        partial(sequence.GPT, tasks.VOCABULARY, tasks.LENGTH, 24, 2, 2),
        tasks.markov_tokens,
        "head",
        branch_ends=_paths(2, *_TRANSFORMER_ENDS),
        activation="gelu",
        query_key=_paths(2, *_QUERY_KEY),
        batch_size=16,
    ),
    Architecture(
        "vit2-preln",
        "vit",
        "tune",
        partial(sequence.ViT, 24, 2, 2),
        tasks.digits_images,
        "head",
        branch_ends=_paths(2, *_TRANSFORMER_ENDS),
        activation="gelu",
        query_key=_paths(2, *_QUERY_KEY),
        batch_size=16,
    ),
    Architecture("lstm2", "lstm", "tune", _lstm, tasks.digits_rows, "head", activation="tanh"),
    Architecture(
        "autoencoder-relu",
        "autoencoder",
        "tune",
        partial(dense.Autoencoder, (64, 48, 32, 8), nn.ReLU),
        tasks.digits_reconstruction,
        "head",
    ),
    Architecture(
        "tabular-embedding",
        "tabular",
        "tune",
        partial(dense.TabularNet, tasks.NUMERIC, tasks.CATEGORICAL, 64, 2),
        tasks.tabular,
        "head",
    ),
    Architecture("gcn4", "graph network", "tune", _gcn, tasks.graph, "head.linear"),
    Architecture(
        "gated-mlp4",
        "gated mlp",
        "tune",
        partial(dense.GatedMLP, 64, 48, 10, 4),
        tasks.digits_flat,
        "head",
        branch_ends=_paths(4, "down"),
        activation="silu",
    ),
)

_TEST = (
    _mlp("mlp12-silu", partial(dense.FunctionalMLP, 64, 48, 10, 12, F.silu), "test", "silu"),
    _mlp("mlp24-relu", partial(dense.FunctionalMLP, 64, 48, 10, 24), "test"),
    _mlp("mlp6-selu", partial(dense.MLP, 64, 64, 10, 6, nn.SELU), "test", "selu"),
    _mlp("mlp9-elu", partial(dense.MLP, 64, 48, 10, 9, nn.ELU), "test", "elu"),
    _mlp(
        "mlp10-ln-relu",
        partial(dense.MLP, 64, 64, 10, 10, nn.ReLU, nn.LayerNorm),
        "test",
        family="normalized mlp",
    ),
    _cnn("cnn10-relu", partial(conv.PlainCNN, 8, 10, pool_after=1), "test", "plain cnn"),
    _cnn(
        "cnn6-gn-silu",
        partial(conv.NormCNN, 8, 6, conv.group_norm, nn.SiLU),
        "test",
        "normalized cnn",
        activation="silu",
    ),
    _cnn(
        "resnet6-gn",
        partial(conv.ResNet, 8, (8, 8, 16), conv.group_norm),
        "test",
        "normalized resnet",
        _paths(3, "conv2"),
    ),
    _cnn(
        "resnet6-nonorm", partial(conv.NormFreeResNet, 8, 3), "test", "norm-free resnet", _paths(3, "conv2")
    ),
    _cnn("mobilenet2-bn", partial(conv.MobileNet, 8, 2), "test", "mobilenet", _paths(2, "project")),
    Architecture(
        "unet-plain", "unet", "test", partial(conv.UNet, 6), tasks.digits_denoising, "head", batch_size=16
    ),
    Architecture(
        "postln-encoder3",
        "post-norm encoder",
        "test",
        partial(sequence.PostNormEncoder, 8, 8, 24, 2, 3),
        tasks.digits_rows,
        "head",
        branch_ends=_paths(3, "attention.out_proj", "fc2"),
        batch_size=16,
    ),
    Architecture(
        "mixer2",
        "mixer",
        "test",
        partial(sequence.Mixer, 4, 16, 24, 2),
        tasks.digits_patches,
        "head",
        branch_ends=_paths(2, "token_mlp.fc2", "channel_mlp.fc2"),
        activation="gelu",
        batch_size=16,
    ),
    Architecture("gru2", "gru", "test", _gru, tasks.digits_rows, "head", activation="tanh"),
    Architecture("rnn-tanh", "rnn", "test", _rnn, tasks.digits_half_rows, "head", activation="tanh"),
    Architecture(
        "autoencoder-tanh",
        "autoencoder",
        "test",
        partial(dense.Autoencoder, (64, 40, 24, 12), nn.Tanh),
        tasks.digits_reconstruction,
        "head",
        activation="tanh",
    ),
    Architecture(
        "siren4",
        "siren",
        "test",
        partial(dense.Siren, 2, 64, 1, 4),
        tasks.image_fitting,
        "head",
        activation="sin",
        batch_size=256,
    ),
    Architecture(
        "regression-mlp6", "regression mlp", "test", partial(dense.MLP, 10, 64, 1, 6), tasks.diabetes, "head"
    ),
    Architecture(
        "gpt2-tied",
        "gpt",
        "test",
        partial(sequence.GPT, tasks.VOCABULARY, tasks.LENGTH, 24, 2, 2, tied=True),
        tasks.markov_tokens,
        "head",
        branch_ends=_paths(2, *_TRANSFORMER_ENDS),
        activation="gelu",
        query_key=_paths(2, *_QUERY_KEY),
        batch_size=16,
    ),
)

ARCHITECTURES: tuple[Architecture, ...] = _TUNE + _TEST


def _he(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def _train(known: Architecture, model: nn.Module, steps: int, rate: float = 2e-3) -> tuple[float, float]:
    """Milliseconds of CPU time per step (median), and progress: the share of the constant loss removed."""
    task = known.task()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, fused=True)
    random = torch.Generator().manual_seed(0)
    times: list[float] = []
    for _ in range(steps):
        inputs, targets = task.batch(torch.randint(len(task), (known.batch_size,), generator=random))
        start = time.process_time()
        optimizer.zero_grad()
        task.loss_fn(model(*inputs), targets).backward()
        optimizer.step()
        times.append(time.process_time() - start)
    inputs, targets = task.evaluation()
    with torch.no_grad():
        loss = task.loss_fn(model(*inputs), targets).item()
    return 1e3 * sorted(times)[steps // 2], 1 - loss / task.constant_loss


def _main(*, learn: bool, names: list[str]) -> None:
    torch.set_num_threads(1)
    print(f"{'name':<18}{'family':<19}{'split':<6}{'parameters':>10}{'ms/step':>9}", end="")
    print(f"{'default':>9}{'he':>7}" if learn else "")
    for known in [architecture(name) for name in names] or ARCHITECTURES:
        torch.manual_seed(0)
        model = known.build()
        size = sum(weight.numel() for weight in model.parameters())
        speed, progress = _train(known, model, 300 if learn else 40)
        print(f"{known.name:<18}{known.family:<19}{known.split:<6}{size:>10}{speed:>9.2f}", end="")
        print(
            f"{progress:>9.2f}{_train(known, _he(known.build()), 300)[1]:>7.2f}" if learn else "", flush=True
        )


if __name__ == "__main__":
    _main(learn="--learn" in sys.argv[1:], names=[name for name in sys.argv[1:] if name != "--learn"])
