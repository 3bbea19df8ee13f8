"""Size and render time of the HTML report at 10, 100 and 500 layers by 10 steps.

    ./dev bench report_size

Networks are real ones in NumPy (`fanin.synthetic.mlp`, width 16), trained for 10 steps and judged. The first page of a
process also loads Altair and the compiler of its specs; it is timed by itself.
"""

from __future__ import annotations

from time import perf_counter

from fanin.examine import Report, judge
from fanin.synthetic import mlp

LAYERS = (10, 100, 500)


def trained(layers: int) -> Report:
    """A network of so many layers."""
    return judge(mlp(widths=(16,) * (layers - 1) + (10,), steps=10))


def timed(report: Report) -> tuple[int, float]:
    """Bytes of its page, and seconds that it took."""
    began = perf_counter()
    text = report.render("html")
    return len(text.encode()), perf_counter() - began


def main() -> None:
    """Print the table."""
    print(f"first page of a process: {timed(trained(LAYERS[0]))[1]:.2f} s\n")
    print("| layers | kB | s |\n|---:|---:|---:|")
    for layers in LAYERS:
        report = trained(layers)
        size, seconds = min((timed(report) for _ in range(3)), key=lambda pair: pair[1])
        print(f"| {layers} | {size / 1000:.0f} | {seconds:.2f} |")


if __name__ == "__main__":
    main()
