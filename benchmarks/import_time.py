"""What `import fanin` costs beside `import numpy`: wall time of fresh interpreters.

Interpreters are started in turns, each timed from start to exit: one that does nothing, one that imports numpy, one
that imports fanin, and one that also looks up `fanin.check` and `fanin.watch`. The last is the honest figure:
fanin loads its parts, numpy among them, when a name is first used, so the import alone does little. Nothing is
subtracted; ratios to numpy are taken round by round. A first round warms the disk cache and writes bytecode.

    ./dev bench import_time [--rounds 31]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import defaultdict
from functools import partial

from _pairs import seconds
from _record import circumstances, keep, quartiles, table, told

STATEMENTS = {
    "start": "pass",
    "numpy": "import numpy",
    "fanin": "import fanin",
    "fanin used": "import fanin; fanin.check, fanin.watch",
}

LOADED = (
    "import sys, fanin; fanin.check, fanin.watch; "
    "print(*sorted({m.partition('.')[0] for m in sys.modules} - set(sys.stdlib_module_names)))"
)


def one_round() -> dict[str, float]:
    """Milliseconds of each interpreter."""
    return {
        name: 1e3 * seconds(partial(subprocess.run, [sys.executable, "-c", statement], check=True))
        for name, statement in STATEMENTS.items()
    }


def measured(rounds: int) -> dict[str, dict[str, float]]:
    """Quartiles over rounds, and of the ratio to numpy."""
    times: dict[str, list[float]] = defaultdict(list)
    one_round()
    for _ in range(rounds):
        taken = one_round()
        for name, milliseconds in taken.items():
            times[f"{name}_ms"].append(milliseconds)
        for name in ("fanin", "fanin used"):
            times[f"{name} / numpy"].append(taken[name] / taken["numpy"])
    return {name: quartiles(values) for name, values in times.items()}


def main() -> None:
    """Measure, print a table, keep it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=31)
    options = parser.parse_args()
    record = circumstances("numpy")
    results = measured(options.rounds)
    loaded = subprocess.run(
        [sys.executable, "-c", LOADED], check=True, capture_output=True, text=True
    ).stdout.split()
    record |= {"load_average_after": circumstances()["load_average"], "results": results, "loaded": loaded}
    print(table(("what", "median (quartiles)"), ((name, told(spread)) for name, spread in results.items())))
    print(f"\nloaded by `fanin.check, fanin.watch`: {' '.join(loaded)}")
    print(f"load {record['load_average']}; {keep('import_time', record)}")


if __name__ == "__main__":
    main()
