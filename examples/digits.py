"""An 8-layer ReLU network on scikit-learn's handwritten digits, drawn in three ways.

fanin check examples/digits.py:default_weights      # PyTorch's default: does not learn
fanin check examples/digits.py:he_normal            # learns
fanin check examples/digits.py:one_bad_layer        # one layer spoils it
fanin check examples/digits.py:one_bad_layer --diff # and how to mend it, proven
fanin run -- python examples/digits.py he_normal    # watch it train
"""

import sys
from functools import cache
from itertools import pairwise

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]

DEPTH, WIDTH, CLASSES = 8, 128, 10
EPOCHS, BATCH_SIZE, LEARNING_RATE = 10, 64, 0.1


class DigitNet(nn.Module):
    """Eight blocks of Linear and ReLU, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        widths = [64] + [WIDTH] * DEPTH
        self.blocks = nn.ModuleList(nn.Linear(fan_in, fan_out) for fan_in, fan_out in pairwise(widths))
        self.head = nn.Linear(WIDTH, CLASSES)
        for layer in [*self.blocks, self.head]:
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, 10] of images [batch, 64]."""
        for block in self.blocks:
            x = torch.relu(block(x))
        return self.head(x)


Build = tuple[nn.Module, Batch, nn.Module, torch.optim.Optimizer]


def default_weights() -> Build:
    """As PyTorch draws it: uniform with gain 1/sqrt(3), where ReLU needs sqrt(2). Plain SGD does not get over that."""
    torch.manual_seed(0)
    model = DigitNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    return model, digits(train=True), nn.CrossEntropyLoss(), optimizer


def he_normal() -> Build:
    """As He et al. (2015) draw it for ReLU."""
    model, *rest = default_weights()
    for block in model.blocks:
        nn.init.kaiming_normal_(block.weight, nonlinearity="relu")
    return model, *rest


def one_bad_layer() -> Build:
    """As he_normal, but for one layer that somebody set to zero, as one does with the last one of a branch."""
    model, *rest = he_normal()
    nn.init.zeros_(model.blocks[4].weight)
    return model, *rest


@cache
def digits(train: bool) -> Batch:
    """Images [n, 64], standardized over the training set, and labels [n]; 1,500 to train on, 297 to test."""
    data = load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)
    x = (x - x[:1500].mean()) / x[:1500].std()
    return (x[:1500], y[:1500]) if train else (x[1500:], y[1500:])


def train(
    model: nn.Module, loss_fn: nn.Module, optimizer: torch.optim.Optimizer, epochs: int = EPOCHS
) -> float:
    """Train; the accuracy on the test set, between 0 and 1."""
    x, y = digits(train=True)
    for _ in range(epochs):
        for picked in torch.randperm(len(x)).split(BATCH_SIZE):
            optimizer.zero_grad()
            loss_fn(model(x[picked]), y[picked]).backward()
            optimizer.step()
    x, y = digits(train=False)
    with torch.no_grad():
        return float((model(x).argmax(dim=1) == y).float().mean())


def paste(code: str, model: nn.Module) -> None:
    """Run the code that a repair prints, as if it stood after the line that builds the model."""
    exec(code, {"model": model, "torch": torch, "nn": nn})


if __name__ == "__main__":
    builders = {build.__name__: build for build in (default_weights, he_normal, one_bad_layer)}
    model, _, loss_fn, optimizer = builders[sys.argv[1] if len(sys.argv) > 1 else "he_normal"]()
    print(f"accuracy {train(model, loss_fn, optimizer):.1%}")
