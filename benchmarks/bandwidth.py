"""How fast summaries read: the fused kernel for CUDA, and the short way on a CPU, against copying the same memory.

A copy reads and writes every byte, so its bandwidth counts each twice; a summary reads each once. Tensors are those of
a ResNet-50's parameters (many small ones and some large), and one of 2^28 values, larger than any cache.

    ./dev bench bandwidth [--device cuda] [--repeats 50]

On CUDA the device's own clock is read (events), on a CPU the wall's; medians with quartiles.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from _own_models import ResNet50
from _record import circumstances, keep, quartiles, table, told
from torch import Tensor

from fanin.adapters.torch.statistics import measure_all, summarize


def seconds(call: Callable[[], object], device: str) -> float:
    """Of one call, on the clock of the device."""
    if device == "cpu":
        began = time.perf_counter()
        call()
        return time.perf_counter() - began
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def tensors(device: str) -> dict[str, list[Tensor]]:
    """What is read, by name."""
    parameters = [p.detach() for p in ResNet50().parameters()]
    large = torch.randn(2**28 if device == "cuda" else 2**24)
    return {
        f"{name}, {str(dtype)[6:]}": [t.to(device, dtype) for t in these]
        for name, these in (("ResNet-50's parameters", parameters), ("one large tensor", [large]))
        for dtype in (torch.float32, torch.bfloat16)
    }


def reading(these: Sequence[Tensor], device: str, histogram: bool) -> None:
    """Summarize all of them."""
    if device == "cuda":
        measure_all(these, histogram)
    else:
        for tensor in these:
            summarize(tensor, histogram=histogram)


def measured(these: list[Tensor], device: str, repeats: int) -> dict[str, Any]:
    """GB/s of each way, in turns."""
    size = sum(t.numel() * t.element_size() for t in these) / 1e9
    ways: dict[str, tuple[float, Callable[[], object]]] = {
        "copy": (2 * size, lambda: [t.clone() for t in these]),
        "moments": (size, lambda: reading(these, device, False)),
        "with histogram": (size, lambda: reading(these, device, True)),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 3):
        for name, (moved, call) in ways.items():
            rate = moved / seconds(call, device)
            if repeat >= 3:  # the first ones compile, and fill the allocator's memory
                rates[name].append(rate)
    return {name: quartiles(of) for name, of in rates.items()}


def main() -> None:
    """Measure, print a table, keep it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=50)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    record = circumstances("torch", "numpy", "triton") | {"device": asked.device}
    if asked.device == "cuda":
        record["device"] = torch.cuda.get_device_name()
    results = {n: measured(t, asked.device, asked.repeats) for n, t in tensors(asked.device).items()}
    record["gigabytes_per_second"] = results
    rows = (
        (name, *(told(of[w]) for w in ("copy", "moments", "with histogram"))) for name, of in results.items()
    )
    print(table(("GB/s", "copy", "moments", "with histogram"), rows))
    print(f"\n{record['device']}, load {record['load_average']}; {keep(f'bandwidth-{asked.device}', record)}")


if __name__ == "__main__":
    main()
