"""When is one layer of the wrong size fatal? Trained answers, which set what FAN101 and FAN102 call a fault.

ReLU and tanh networks on digits, he_normal (lecun_normal for tanh) but for k layers multiplied by a factor. Each is
trained for 300 steps of batch 64 with SGD (momentum 0.9; three learning rates) and Adam (three); its progress is
(L_const - best mean loss of the last 20 steps) / (the same of the sound network), L_const = log 10.

    ./dev bench cliffs        # 18 minutes on a shared core; writes benchmarks/results/cliffs.csv
"""

import csv
import sys
from math import isfinite, log
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import fanin
from fanin.propagation import stretch

STEPS, BATCH, WIDTH, LAST = 300, 64, 64, 20
OPTIMIZERS = [("sgd", lr) for lr in (1e-3, 1e-2, 1e-1)] + [("adam", lr) for lr in (1e-4, 1e-3, 1e-2)]
FACTORS = (1.0, 0.1, 1e-2, 1e-3, 1e-4, 10.0, 1e2, 1e3, 1e4)
COLUMNS = ("depth", "activation", "spoiled_layers", "factor", "seed", "decades", "progress")
RESULTS = Path(__file__).parent / "results" / "cliffs.csv"


def network(depth: int, activation: str, factor: float, spoiled: list[int], seed: int) -> nn.Sequential:
    """Sound but for the spoiled layers, whose weights are multiplied by the factor."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i in range(depth):
        linear = nn.Linear(64 if i == 0 else WIDTH, WIDTH)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu" if activation == "relu" else "linear")
        nn.init.zeros_(linear.bias)
        if i in spoiled:
            with torch.no_grad():
                linear.weight *= factor
        layers += [linear, nn.ReLU() if activation == "relu" else nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


def decades(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Decades of variance that the signal gains from the input to the head, as FAN101 and FAN102 see it."""
    path = stretch(fanin.check(model, (x[:512], y[:512]), nn.functional.cross_entropy).trial)
    return round(path.decades, 2) if path else float("nan")


def final_loss(model: nn.Module, optimizer: str, lr: float, x: torch.Tensor, y: torch.Tensor) -> float:
    """Mean loss of the last steps; infinite when it diverged."""
    generator = torch.Generator().manual_seed(1)
    step = {
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
        "adam": lambda: torch.optim.Adam(model.parameters(), lr=lr),
    }[optimizer]()
    losses = []
    for _ in range(STEPS):
        picked = torch.randint(len(x), (BATCH,), generator=generator)
        loss = nn.functional.cross_entropy(model(x[picked]), y[picked])
        losses.append(loss.item())
        if not isfinite(losses[-1]):
            return float("inf")
        step.zero_grad()
        loss.backward()
        step.step()
    return sum(losses[-LAST:]) / LAST


def main() -> None:
    """Train everything and write the table."""
    torch.set_num_threads(1)
    data = load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)
    x = (x - x.mean()) / x.std()
    rows = []
    for depth, activation in ((8, "relu"), (20, "relu"), (20, "tanh")):
        sound: dict[int, float] = {}
        for layers, factor in cases(depth):
            for seed in (0, 1):
                loss = min(
                    final_loss(network(depth, activation, factor, layers, seed), name, lr, x, y)
                    for name, lr in OPTIMIZERS
                )
                sound.setdefault(seed, loss)  # the first case is the sound one
                progress = (log(10) - loss) / (log(10) - sound[seed])
                lost = decades(network(depth, activation, factor, layers, seed), x, y)
                rows.append((depth, activation, len(layers), factor, seed, lost, round(progress, 3)))
                print(*rows[-1], flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def cases(depth: int) -> list[tuple[list[int], float]]:
    """Which layers are spoiled, and by what factor: none, one, two, all."""
    one, two, every = [depth // 2], [depth // 4, 3 * depth // 4], list(range(depth))
    return [
        ([], 1.0),
        *((one, f) for f in FACTORS[1:]),
        *((two, f) for f in (0.1, 1e-2, 1e-3)),
        *((every, f) for f in (0.7, 0.577 / 1.414, 0.25, 1.4, 2.0)),
    ]


if __name__ == "__main__":
    sys.exit(main())
