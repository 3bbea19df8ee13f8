"""Odd starts of gated, recurrent, generative and other networks: closed gates, prior biases, identities in time."""

from __future__ import annotations

import math

import torch
from benchmarks._batches import images, tokens
from torch import Tensor, nn
from torch.nn import functional


class Highway(nn.Module):
    """Ten highway layers, gates at -2: mostly carry (Srivastava et al. 2015)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(784, width), nn.Linear(width, 10)
        self.transform = nn.ModuleList(nn.Linear(width, width) for _ in range(10))
        self.gate = nn.ModuleList(nn.Linear(width, width) for _ in range(10))
        for layer in self.gate:
            nn.init.constant_(layer.bias, -2.0)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 1, 28, 28] to [batch, 10]."""
        x = torch.tanh(self.stem(x.flatten(1)))
        for transform, gate in zip(self.transform, self.gate, strict=True):
            t = torch.sigmoid(gate(x))
            x = t * torch.tanh(transform(x)) + (1 - t) * x
        return self.head(x)


class SparselyGated(nn.Module):
    """Features pass sigmoid gates whose bias is -3: five in a hundred are open at first."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.features, self.gates = nn.Linear(784, width), nn.Linear(784, width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)
        nn.init.normal_(self.gates.weight, std=0.02)
        nn.init.constant_(self.gates.bias, -3.0)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 1, 28, 28] to [batch, 10]."""
        x = x.flatten(1)
        return self.head(self.norm(torch.sigmoid(self.gates(x)) * functional.relu(self.features(x))))


class Mixture(nn.Module):
    """Experts under a router at zero: all weigh the same at first (Shazeer et al. 2017)."""

    def __init__(self, width: int = 64, experts: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU())
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)) for _ in range(experts)
        )
        nn.init.zeros_(self.router.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 1, 28, 28] to [batch, 10]."""
        h = self.stem(x)
        weight = self.router(h).softmax(1)
        said = torch.stack([expert(h) for expert in self.experts], 2)
        return (said @ weight[:, :, None]).squeeze(2)


class Detector(nn.Module):
    """A dense head that knows how rare objects are: bias -log(99), weights N(0, 0.01²) (Lin et al. 2017)."""

    def __init__(self, width: int = 32, classes: int = 5) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        tower = [nn.Conv2d(width, width, 3, padding=1) for _ in range(4)]
        self.tower = nn.Sequential(*(part for conv in tower for part in (conv, nn.ReLU())))
        self.head = nn.Conv2d(width, classes, 3, padding=1)
        for layer in (*tower, self.head):
            nn.init.normal_(layer.weight, std=0.01 * (256 / width) ** 0.5)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.head.bias, -math.log(99))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 3, h, w] to logits [batch, classes, h / 4, w / 4]."""
        return self.head(self.tower(self.backbone(x)))


def rare_objects(seed: int) -> tuple[Tensor, Tensor]:
    """Images [8, 3, 64, 64], and one cell of 256 with an object in each."""
    pixels, labels = images(8, 64, classes=5, seed=seed)
    target = torch.zeros(8, 5, 16, 16)
    angle = 2 * torch.pi * labels / 5
    x, y = (8 + 4 * angle.cos()).long(), (8 + 4 * angle.sin()).long()
    target[torch.arange(8), labels, y, x] = 1
    return pixels, target


def focal(output: Tensor, target: Tensor, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """The focal loss over the number of objects (Lin et al. 2017)."""
    crossed = functional.binary_cross_entropy_with_logits(output, target, reduction="none")
    missed = torch.where(target > 0, 1 - output.sigmoid(), output.sigmoid())
    weight = torch.where(target > 0, alpha, 1 - alpha)
    return (weight * missed**gamma * crossed).sum() / target.sum()


class IRNN(nn.Module):
    """A ReLU recurrence that starts at the identity, input weights N(0, 0.001²) (Le et al. 2015)."""

    def __init__(self, vocabulary: int = 500, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.cell = nn.RNN(width, width, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(width, 10)
        nn.init.eye_(self.cell.weight_hh_l0)
        nn.init.normal_(self.cell.weight_ih_l0, std=0.001)
        nn.init.zeros_(self.cell.bias_ih_l0)
        nn.init.zeros_(self.cell.bias_hh_l0)

    def forward(self, ids: Tensor) -> Tensor:
        """[batch, length] ids to [batch, 10] logits."""
        return self.head(self.cell(self.embedding(ids))[0][:, -1])


class Reader(nn.Module):
    """A classifier of token sequences by a recurrent cell."""

    def __init__(self, cell: type[nn.LSTM] | type[nn.GRU], vocabulary: int = 500, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.cell = cell(width, width, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, ids: Tensor) -> Tensor:
        """[batch, length] ids to [batch, 10] logits."""
        return self.head(self.cell(self.embedding(ids))[0][:, -1])


def forgetful() -> Reader:
    """Forget gates at one (Gers et al. 2000; Jozefowicz et al. 2015), orthogonal recurrence, as Keras draws it."""
    model = Reader(nn.LSTM)
    width = model.cell.hidden_size
    nn.init.xavier_uniform_(model.cell.weight_ih_l0)
    for part in model.cell.weight_hh_l0.data.chunk(4):
        nn.init.orthogonal_(part)
    nn.init.zeros_(model.cell.bias_ih_l0)
    nn.init.zeros_(model.cell.bias_hh_l0)
    nn.init.ones_(model.cell.bias_ih_l0.data[width : 2 * width])
    return model


def orthogonal_gru() -> Reader:
    """A GRU with orthogonal recurrence, glorot_uniform input weights and zero biases, as Keras draws it."""
    model = Reader(nn.GRU)
    nn.init.xavier_uniform_(model.cell.weight_ih_l0)
    for part in model.cell.weight_hh_l0.data.chunk(3):
        nn.init.orthogonal_(part)
    nn.init.zeros_(model.cell.bias_ih_l0)
    nn.init.zeros_(model.cell.bias_hh_l0)
    return model


class Dilated(nn.Module):
    """tanh times sigmoid of dilated causal convolutions (van den Oord et al. 2016)."""

    def __init__(self, width: int, dilation: int, is_last: bool) -> None:
        super().__init__()
        self.dilation = dilation
        self.both = nn.Conv1d(width, 2 * width, 2, dilation=dilation)
        self.onward = nn.Identity() if is_last else nn.Conv1d(width, width, 1)
        self.skip = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, width, length] to the same, and what skips to the end."""
        a, b = self.both(functional.pad(x, (self.dilation, 0))).chunk(2, 1)
        h = torch.tanh(a) * torch.sigmoid(b)
        return x + self.onward(h), self.skip(h)


class WaveNet(nn.Module):
    """Eight dilated layers over tokens, PyTorch's initialization."""

    def __init__(self, vocabulary: int = 500, width: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Dilated(width, 2 ** (k % 4), k == 7) for k in range(8))
        self.last, self.head = nn.Conv1d(width, width, 1), nn.Conv1d(width, vocabulary, 1)

    def forward(self, ids: Tensor) -> Tensor:
        """[batch, length] ids to [batch, length, vocabulary] logits."""
        x, skips = self.tokens(ids).transpose(1, 2), 0
        for layer in self.layers:
            x, skip = layer(x)
            skips = skips + skip
        return self.head(functional.relu(self.last(functional.relu(skips)))).transpose(1, 2)


class SkipGram(nn.Module):
    """word2vec's start: input vectors uniform in ±0.5 / width, output vectors zero (Mikolov et al. 2013, C code)."""

    def __init__(self, vocabulary: int = 500, width: int = 64) -> None:
        super().__init__()
        self.word, self.context = nn.Embedding(vocabulary, width), nn.Embedding(vocabulary, width)
        nn.init.uniform_(self.word.weight, -0.5 / width, 0.5 / width)
        nn.init.zeros_(self.context.weight)

    def forward(self, word: Tensor, context: Tensor) -> Tensor:
        """Words [pairs] and candidates [pairs, candidates] to logits of the latter."""
        return (self.context(context) @ self.word(word)[:, :, None]).squeeze(-1)


def neighbours(seed: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """A word, its neighbour and five others; which of them is the neighbour."""
    ids = tokens(32, 17, 500, seed=seed)
    word, near = ids[:, :-1].flatten(), ids[:, 1:].flatten()
    far = tokens(len(word), 5, 500, seed=seed + 1)
    real = torch.zeros(len(word), 6)
    real[:, 0] = 1
    return (word, torch.cat([near[:, None], far], 1)), real


def sampled(output: Tensor, target: Tensor) -> Tensor:
    """Negative sampling: the sum over candidates, mean over words."""
    return functional.binary_cross_entropy_with_logits(output, target, reduction="sum") / len(output)


class Generator(nn.Module):
    """DCGAN's generator: weights N(0, 0.02²), gains N(1, 0.02²) (Radford et al. 2016)."""

    def __init__(self, taken: int = 64, width: int = 32) -> None:
        super().__init__()
        plan = ((taken, 4 * width, 4, 1, 0), (4 * width, 2 * width, 4, 2, 1), (2 * width, width, 4, 2, 1))
        self.layers = nn.Sequential()
        for a, b, kernel, stride, padding in plan:
            up = nn.ConvTranspose2d(a, b, kernel, stride, padding, bias=False)
            self.layers.extend((up, nn.BatchNorm2d(b), nn.ReLU()))
        self.head = nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False)
        for module in self.modules():
            if isinstance(module, nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, z: Tensor) -> Tensor:
        """[batch, taken] to [batch, 3, 32, 32] in ±1."""
        return torch.tanh(self.head(self.layers(z[:, :, None, None])))


def noise_to_images(seed: int) -> tuple[Tensor, Tensor]:
    """Noise, and the images that it shall become."""
    pixels, _ = images(32, 32, seed=seed)
    noise = torch.randn(32, 64, generator=torch.Generator().manual_seed(seed))
    return noise, torch.tanh(pixels)


class VAE(nn.Module):
    """784-256-16-256-784 as in PyTorch's examples; returns its loss."""

    def __init__(self, code: int = 16) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(256, code), nn.Linear(256, code)
        self.decoder = nn.Sequential(nn.Linear(code, 256), nn.ReLU(), nn.Linear(256, 784))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 1, 28, 28] to the negative evidence bound."""
        h = self.encoder(x)
        mean, log_variance = self.mean(h), self.log_variance(h)
        drawn = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        wanted = torch.sigmoid(x).flatten(1)
        crossed = functional.binary_cross_entropy_with_logits(self.decoder(drawn), wanted, reduction="sum")
        divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()
        return (crossed + divergence) / len(x)


class Localizer(nn.Module):
    """A spatial transformer that begins with the identity: zero weights, bias 1 0 0 0 1 0 (Jaderberg et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.where = nn.Sequential(
            nn.Conv2d(1, 8, 7), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(8, 10, 5), nn.MaxPool2d(2), nn.ReLU()
        )
        self.fc1, self.fc2 = nn.Linear(90, 32), nn.Linear(32, 6)
        nn.init.zeros_(self.fc2.weight)
        self.fc2.bias.data = torch.tensor([1.0, 0, 0, 0, 1, 0])
        self.conv1, self.conv2 = nn.Conv2d(1, 10, 5), nn.Conv2d(10, 20, 5)
        self.fc3, self.fc4 = nn.Linear(320, 50), nn.Linear(50, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 1, 28, 28] to [batch, 10]."""
        theta = self.fc2(functional.relu(self.fc1(self.where(x).flatten(1)))).view(-1, 2, 3)
        x = functional.grid_sample(x, functional.affine_grid(theta, x.shape, False), align_corners=False)
        x = functional.relu(functional.max_pool2d(self.conv1(x), 2))
        x = functional.relu(functional.max_pool2d(self.conv2(x), 2))
        return self.fc4(functional.relu(self.fc3(x.flatten(1))))


class GCN(nn.Module):
    """Two graph convolutions by glorot_uniform (Kipf and Welling 2017)."""

    def __init__(self, taken: int = 32, width: int = 32, classes: int = 4) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(taken, width, bias=False), nn.Linear(width, classes, bias=False)
        nn.init.xavier_uniform_(self.first.weight)
        nn.init.xavier_uniform_(self.second.weight)

    def forward(self, x: Tensor, spread: Tensor) -> Tensor:
        """Features [nodes, taken] and normalized adjacency [nodes, nodes] to logits [nodes, classes]."""
        return spread @ self.second(functional.relu(spread @ self.first(x)))


def graph(seed: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Four communities of 64 nodes each, with features that hint at them."""
    random = torch.Generator().manual_seed(seed)
    group = torch.arange(256) % 4
    near = torch.where(group[:, None] == group[None], 0.1, 0.01)
    linked = (torch.rand(256, 256, generator=random) < near).float().triu(1)
    linked = linked + linked.T + torch.eye(256)
    degree = linked.sum(1).rsqrt()
    x = torch.randn(256, 32, generator=random) + functional.one_hot(group, 32)
    return (x, degree[:, None] * linked * degree[None]), group


class PostNorm(nn.Module):
    """nn.TransformerEncoder as it comes, post-norm, with glorot_uniform matrices as nn.Transformer draws them."""

    def __init__(self, vocabulary: int = 500, width: int = 64) -> None:
        super().__init__()
        self.width = width
        self.tokens, self.places = (
            nn.Embedding(vocabulary, width),
            nn.Parameter(0.02 * torch.randn(64, width)),
        )
        layer = nn.TransformerEncoderLayer(width, 4, 128, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)
        for parameter in self.encoder.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, ids: Tensor) -> Tensor:
        """[batch, length] ids to [batch, 10] logits."""
        return self.head(self.encoder(self.tokens(ids) + self.places[: ids.shape[1]]).mean(1))


class StateSpace(nn.Module):
    """S4D-Lin's kernel (Gu et al. 2022): states decay by 1/2 and turn by π n; steps log-uniform in 0.001 to 0.1."""

    def __init__(self, width: int, states: int = 16) -> None:
        super().__init__()
        self.log_step = nn.Parameter(torch.rand(width) * math.log(100) + math.log(0.001))
        self.log_decay = nn.Parameter(torch.full((width, states), math.log(0.5)))
        self.turn = nn.Parameter(math.pi * torch.arange(states).float().expand(width, states).clone())
        self.read = nn.Parameter(torch.randn(width, states, 2) / 2**0.5)
        self.through = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, width, length] to the same."""
        length = x.shape[-1]
        step = self.log_step.exp()[:, None]
        rate = torch.complex(-self.log_decay.exp(), self.turn) * step
        read = torch.view_as_complex(self.read) * (rate.exp() - 1) * step / rate
        kernel = 2 * torch.einsum("wn,wnl->wl", read, (rate[..., None] * torch.arange(length)).exp()).real
        spectrum = torch.fft.rfft(x, 2 * length) * torch.fft.rfft(kernel, 2 * length)
        return torch.fft.irfft(spectrum, 2 * length)[..., :length] + self.through[:, None] * x


class Diagonal(nn.Module):
    """Four residual layers of S4D over tokens."""

    def __init__(self, vocabulary: int = 500, width: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.spaces = nn.ModuleList(StateSpace(width) for _ in range(4))
        self.mixes = nn.ModuleList(nn.Conv1d(width, 2 * width, 1) for _ in range(4))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.head = nn.Linear(width, 10)

    def forward(self, ids: Tensor) -> Tensor:
        """[batch, length] ids to [batch, 10] logits."""
        x = self.tokens(ids)
        for space, mix, norm in zip(self.spaces, self.mixes, self.norms, strict=True):
            h = functional.gelu(space(norm(x).transpose(1, 2)))
            x = x + functional.glu(mix(h), 1).transpose(1, 2)
        return self.head(x.mean(1))
