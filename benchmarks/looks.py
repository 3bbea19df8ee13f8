"""What sets two constants of looking at tensors on a CPU: how short runs of a unit may be to be read by themselves, and
whether a look amid matrix products takes longer than one after another look.

    ./dev bench looks [--repeats 40]

Runs: [32, units, run] activations of 2^19 values by units of axis 1, read one run after the other (`fanin_rows`) and
side by side (`fanin_columns`); microseconds for 2^17 values. Looks: a gradient of 2^18 values, with a histogram, looked
at right after matrix products that fill the cache, and once more right after that; microseconds. Medians, quartiles.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from _record import circumstances, keep, quartiles, table, told

from fanin import onepass
from fanin.adapters.torch.statistics import summarize

VALUES, BEFORE = 2**19, 32
RUNS = (4, 16, 64, 128, 256, 1024)


def seconds(call: Callable[[], object]) -> float:
    """Of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def of_runs(repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    """By length, each way in turns."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for run in RUNS:
        x = torch.randn(BEFORE, VALUES // BEFORE // run, run)
        times: dict[str, list[float]] = {"by themselves": [], "side by side": []}
        for _ in range(repeats):
            for way, short in (("by themselves", 0), ("side by side", run)):
                onepass.SHORT = short  # type: ignore[misc]
                call = lambda: onepass.by_units(x.data_ptr(), "float32", tuple(x.shape), None)  # noqa: B023, E731
                if run <= 256 or not short:  # wider runs do not fit side by side
                    times[way].append(seconds(call) * 1e6 * 2**17 / VALUES)
        found[str(run)] = {way: quartiles(values) for way, values in times.items() if values}
    return found


def of_looks(repeats: int) -> dict[str, dict[str, float]]:
    """Amid matrix products, and again."""
    gradient, batch = torch.randn(2**18) * 1e-3, torch.randn(128, 512)
    weights = [torch.randn(512, 512) for _ in range(6)]
    times: dict[str, list[float]] = {"amid products": [], "after another": []}
    for _ in range(repeats):
        for weight in weights:
            batch @ weight
        for way in times.values():
            way.append(1e6 * seconds(lambda: summarize(gradient, histogram=True)))
    return {way: quartiles(values) for way, values in times.items()}


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=40)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    if not onepass.is_here():
        raise SystemExit("the library in C is not built; `./dev setup` says why")
    record = circumstances("torch", "numpy")
    record |= {"runs_us": of_runs(repeats), "looks_us": of_looks(repeats)}
    rows = ((run, *(told(s, 0) for s in ways.values())) for run, ways in record["runs_us"].items())
    print(table(("run", "by themselves", "side by side"), ((*row, "")[:3] for row in rows)))
    print(table(("a look", "us"), ((way, told(s, 0)) for way, s in record["looks_us"].items())))
    print(keep("looks", record))


if __name__ == "__main__":
    main()
