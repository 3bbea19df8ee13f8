"""Tables and sentences whose figures are read from the results that benchmarks have committed.

`generate.py` writes them between marks into pages that people write, so that no figure there can go stale.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
SCORES = "initbench/results/test-scores.json"
RACES = "initbench/results/test-race-scores.json"
REPAIRS = "repair/results/test-scores.json"

JUDGES = {
    "documented rule": "the documented rule, on all activations",
    "documented rule, defaults": "the documented rule, its defaults",
    "TheDeepChecker": "TheDeepChecker, step 0",
    "NeuroScope": "NeuroScope, step 0",
    "DeepDiagnosis, variance": "DeepDiagnosis, variance rule",
    "AutoTrainer, gradients": "AutoTrainer, gradients",
    "flag everything": "flag everything",
}
"""Peers of InitBench and what they are called in a table."""

METHODS = {
    "initialize": "`fanin.initialize`, whatever the start",
    "repair": "`fanin.repair` with its proof",
    "lsuv": "LSUV",
    "he_by_activation": "He by activation",
    "autoinit": "AutoInit-like scaling",
    "gradinit": "GradInit-like factors",
    "unproven": "`fanin.repair` without proof",
}

SUBJECTS = {"mlp": "MLP", "cnn": "CNN", "resnet18": "ResNet-18", "gpt": "GPT"}


def read(name: str) -> Any:
    """A committed result."""
    return json.loads((BENCHMARKS / name).read_text(encoding="utf-8"))


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], numeric: int = 1) -> str:
    """A table in Markdown; columns from `numeric` on are numbers."""
    rule = ["---" if place < numeric else "---:" for place in range(len(heads))]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (heads, rule, *rows))


def percent(share: float) -> str:
    """A share in words: one digit below ten percent."""
    return f"{100 * share:.1f} %" if 0 < share < 0.1 else f"{100 * share:.0f} %"


# -- verdicts


def verdicts() -> str:
    """Precision and recall of every judge on InitBench's test split."""
    scores, raced = read(SCORES), read(RACES)["stages"]["race"]["rates"]["all"]
    ours = {
        "fanin, one batch, before any step": scores["stages"]["step 0"]["rates"]["all"],
        "fanin, after five steps of Adam": scores["stages"]["five steps"]["rates"]["all"],
        f"fanin, with the race ({raced['cases']} of the starts)": raced,
    }
    judges = ours | {said: scores["peers"][name]["all"] for name, said in JUDGES.items()}
    heads = ("judge", "precision", "recall", "F1", "healthy starts called poor")
    return table(heads, [(name, *_rates(rates)) for name, rates in judges.items()])


def _rates(rates: dict[str, Any]) -> tuple[str, ...]:
    numbers = (f"{rates[key]:.3f}" for key in ("precision", "recall", "f1"))
    return (*numbers, percent(rates["false_alarm_rate"]))


def test_split() -> str:
    """What the table above counts."""
    scores = read(SCORES)
    rates, start = scores["stages"]["step 0"]["rates"], scores["stages"]["step 0"]
    layer, cause = start["layer_first"], start["cause_first"]
    every, sound = rates["all"], rates["sound initializations"]
    return (
        f"{every['cases']} starts of {len(start['by_architecture'])} networks that no threshold has seen, "
        f"{every['poor']} of them poor; {every['grey']} grey ones are left out. "
        f"{percent(every['undecided_share'])} are undecided. Of {sound['healthy']} healthy starts that are schemes of "
        f"the literature, {sound['false_alarms'] or 'none'} {'is' if sound['false_alarms'] < 2 else 'are'} called "
        f"poor. The layer named first is right for {layer['right']} of {layer['called_poor']} single-layer faults that "
        f"are called poor, the cause for {cause['right']} of {cause['called_poor']}."
    )


def false_alarms() -> str:
    """How often a healthy start is called poor, and which those are."""
    start, raced = read(SCORES)["stages"]["step 0"], read(RACES)["stages"]["race"]["rates"]["all"]
    every = start["rates"]["all"]
    said = (
        f"On InitBench's test split {every['false_alarms']} of {every['healthy']} healthy starts are called poor "
        f"before any step: {percent(every['false_alarm_rate'])} ({_span(every)}). With a race "
        f"{raced['false_alarms'] or 'none'} of {raced['healthy']} ({_span(raced)}). The {every['false_alarms']}:"
    )
    rows = [
        (one["arch"], one["init"], one["said"][0].removeprefix("poor "), _learned(one))
        for one in start["false_alarms"]
    ]
    return f"{said}\n\n{table(('network', 'start', 'what fanin says', 'progress in training'), rows, 3)}"


def misses() -> str:
    """How many poor starts pass, and on which networks."""
    start, raced = read(SCORES)["stages"]["step 0"], read(RACES)["stages"]["race"]["rates"]["all"]
    every = start["rates"]["all"]
    by_network = sorted(start["by_architecture"].items(), key=lambda item: -item[1]["misses"])
    worst = ", ".join(f"{name} {one['misses']} of {one['poor']}" for name, one in by_network[:5])
    return (
        f"{every['misses']} of {every['poor']} poor starts are not called poor before any step "
        f"({every['undecided_poor']} of them undecided), and {raced['misses']} of {raced['poor']} with a race. Most "
        f"are on {worst}."
    )


def _span(rates: dict[str, Any]) -> str:
    return f"{100 * rates['false_alarm_low']:.1f} to {100 * rates['false_alarm_high']:.1f} %, at 95 %"


def _learned(one: dict[str, Any]) -> str:
    return ", ".join(f"{value:.2f}" for value in one["progress"])


def calibration() -> str:
    """What a stated confidence is worth."""
    found = read(SCORES)["stages"]["step 0"]["calibration"]
    rows = [
        (
            f"{one['from']:.1f} to {one['to']:.1f}",
            one["count"],
            f"{one['mean_confidence']:.3f}",
            f"{one['share_right']:.3f}",
        )
        for one in found["bins"]
    ]
    return table(("stated", "verdicts", "stated, mean", "right"), rows)


def zoo() -> str:
    """What is said of healthy models in their makers' initialization."""
    with (BENCHMARKS / "results/zoo.csv").open(encoding="utf-8") as file:
        models = [row for row in csv.DictReader(file) if row["verdict"]]
    counts = Counter((row["origin"], row["verdict"]) for row in models)
    theirs = Counter((row["origin"], row["documented"]) for row in models)
    origins = dict.fromkeys(row["origin"] for row in models)
    rows = [
        (
            origin,
            *(counts[origin, verdict] for verdict in ("healthy", "poor", "undecided")),
            theirs[origin, "poor"],
        )
        for origin in origins
    ]
    total = ("**all**", *(sum(column) for column in list(zip(*rows, strict=True))[1:]))
    return table(("models", "healthy", "poor", "undecided", "documented rule: poor"), [*rows, total])


def invariance() -> str:
    """Whether a verdict stays where only units change."""
    found = read("results/invariance.json")["results"]
    rows = [
        (name, one["cases"], percent(one["share"]), percent(one["documented_rule_share"]))
        for name, one in found.items()
    ]
    return table(("what changes", "starts", "fanin's verdict stays", "the documented rule's stays"), rows)


def race_limits() -> str:
    """What a race decides by, from its constants."""
    from fanin import race

    rates = ", ".join(f"{rate:g}" for rate in race.RATES)
    factors = ", ".join(f"{factor:.2g}" for factor in race.FACTORS)
    rows = [
        (
            "steps of each twin",
            f"{race.STEPS}; up to {race.MOST} while the network as given is behind, or neither moves",
        ),
        ("learning rates", f"{factors} times that of your optimizer; without one {rates} of Adam"),
        (
            "healthy, and the race may end",
            f"ratio above {race.LEVEL:g}; after {race.STEPS} steps {race.CLEAR:g}",
        ),
        ("poor", f"ratio below {race.POOR:g}, beyond {race.SIGMAS:g} standard errors of the difference"),
        ("poor only where the re-draw learns", f"its progress is at least {race.LEAST:g}"),
    ]
    return table(("what", "limit"), rows, 2)


# -- repairs and costs


def repairs() -> str:
    """Whether a repair repairs, and whom it harms."""
    methods = read(REPAIRS)["methods"]
    rows = [(said, *_method(methods[name])) for name, said in METHODS.items()]
    return table(("method", "poor starts recovered", "healthy starts harmed", "seconds, median"), rows)


def _method(one: dict[str, Any]) -> tuple[str, str, str]:
    cured, harmed = one["poor recovered"], one["healthy harmed"]
    share = f"{cured['count']} of {cured['of']} ({percent(cured['share'])})"
    return (
        share,
        f"{harmed['count']} of {harmed['of']}" if harmed["of"] else "not tried",
        f"{one['seconds_median']:.2g}",
    )


def pasted() -> str:
    """Whether the code that is printed does what the repair did."""
    same = read("repair/results/test-pasted.json")["same verdict"]
    safe = read(REPAIRS)["methods"]["repair"]["safe and better"]
    return (
        f"Of {safe['of']} repairs that were proposed as safe, {safe['count']} did better in full training than the "
        f"start. The code to paste gives the repair's verdict in {same['count']} of {same['of']} cases."
    )


def watching() -> str:
    """A captured step in plain ones."""
    runs = {"": "", "-resnet18": "", "-gpt": "", "-smdebug": ", with smdebug", "-wandb": ", with wandb"}
    rows = [row for name, run in runs.items() for row in _watched(read(f"results/overhead{name}.json"), run)]
    return table(("network", "what watches", "a captured step", "ten steps", "a step after"), rows, 2)


def _watched(found: dict[str, Any], run: str) -> Iterable[tuple[str, ...]]:
    beside = run + f", load {found['load_average'][0]:.0f}" * (found["load_average"][0] > 2)
    for model, peers in found["captured_step_over_plain_step"].items():
        for name, one in peers.items():
            ratios = (f"{one[key]['median']:.2f}" for key in ("captured", "mean of 10", "after"))
            yield (SUBJECTS.get(model, model) + beside, name, *ratios)


def checking() -> str:
    """A check in passes of the same model."""
    found = read("results/check_cost.json")["results"]
    rows = [
        (SUBJECTS.get(name, name), f"{one['plain_ms']['median']:.0f}", f"{one['ratio']['median']:.1f}")
        for name, one in found.items()
    ]
    return table(("network", "a pass, ms", "a check, in passes"), rows)


def pages() -> str:
    """Size and time of the HTML report."""
    found = read("results/report_size.json")["results"]
    rows = [
        (
            one["layers"],
            one["steps"],
            f"{one['bytes'] / 1000:.0f}",
            f"{one['seconds']['median']:.2f}",
            f"{one['drawn_seconds']['median']:.2f}",
        )
        for one in found
    ]
    return table(
        ("layers", "steps", "kB", "seconds to write", "seconds until a browser has drawn it"), rows, 0
    )


# -- the schema


def schema() -> str:
    """The fields of the JSON report, from its schema."""
    found = json.loads((ROOT / "src/fanin/reports/report.schema.json").read_text(encoding="utf-8"))
    required = set(found["required"])
    rows = [
        (
            f"`{name}`",
            _type(one),
            "always" if name in required else "where there is one",
            one.get("description", ""),
        )
        for name, one in found["properties"].items()
    ]
    return table(("field", "type", "present", "meaning"), rows, 4)


def _type(one: dict[str, Any]) -> str:
    """A schema in a word or two."""
    if "$ref" in one:
        return "`" + one["$ref"].rpartition("/")[2] + "`"
    if "const" in one:
        return f"`{json.dumps(one['const'])}`"
    if "enum" in one:
        return " or ".join(f"`{value}`" for value in one["enum"])
    if "anyOf" in one:
        return " or ".join(_type(part) for part in one["anyOf"])
    if one.get("type") == "array":
        return f"list of {_type(one['items'])}" if "items" in one else "list"
    return str(one.get("type", "any"))


REGIONS = {
    one.__name__.replace("_", "-"): one
    for one in (
        verdicts, race_limits, test_split, false_alarms, misses, calibration, zoo, invariance, repairs, pasted,
        watching, checking, pages, schema,
    )
}  # fmt: skip
"""Name between marks -> what writes it."""
