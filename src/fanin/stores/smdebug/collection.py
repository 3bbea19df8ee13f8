"""Collections files: which tensors a worker was told to save, under which names, how often and in what form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fanin.stores.smdebug.index import plain, typed

XGBOOST = frozenset({"feature_importance", "average_shap", "full_shap", "trees"})
"""Collections that only smdebug's hook for XGBoost has."""


@dataclass(frozen=True, slots=True)
class Collection:
    """A named set of tensors.

    Attributes:
        name: E.g. `gradients`.
        include_regex: Tensors whose name one of these finds belong to it.
        tensor_names: Further tensors that belong to it.
        reduction_config, save_config: As the trial has them: which reductions are saved, and at which steps per mode.
        save_histogram: Whether histograms are written for TensorBoard.
    """

    name: str
    include_regex: list[str] = field(default_factory=list)
    tensor_names: set[str] = field(default_factory=set)
    reduction_config: Mapping[str, Any] | None = None
    save_config: Mapping[str, Any] | None = None
    save_histogram: bool = True


@dataclass(frozen=True, slots=True)
class Collections:
    """All collections of a trial.

    Attributes:
        by_name: The collections.
        workers: How many write the trial.
    """

    by_name: Mapping[str, Collection] = field(default_factory=dict)
    workers: int = 1

    def merge(self, other: Collections) -> Collections:
        """Those of two workers: a tensor belongs where either of them put it."""
        merged = dict(self.by_name)
        for name, theirs in other.by_name.items():
            ours = merged.get(name, theirs)
            regexes = list(dict.fromkeys([*ours.include_regex, *theirs.include_regex]))
            names = ours.tensor_names | theirs.tensor_names
            merged[name] = replace(ours, include_regex=regexes, tensor_names=names)
        return Collections(merged, max(self.workers, other.workers))

    @property
    def is_xgboost(self) -> bool:
        """Whether the trial comes from a training of trees."""
        return self.by_name.keys() >= XGBOOST


def parse(text: bytes) -> Collections:
    """A collections file's content.

    Raises:
        ValueError: It is none.
    """
    content = plain(text)
    entries = typed(dict, content.get("collections"), "collections")
    meta = typed(dict, content.get("_meta") or {}, "_meta")
    workers = typed(int, meta.get("num_workers", 1), "num_workers")
    if not 1 <= workers <= 10**6:
        raise ValueError(f"num_workers is {workers!r:.40}")
    return Collections({name: _collection(name, entry) for name, entry in entries.items()}, workers)


def _collection(name: str, entry: object) -> Collection:
    found = typed(dict, entry, f"collection {name[:80]!r}")
    reductions, saving = found.get("reduction_config"), found.get("save_config")
    return Collection(
        name=name,
        include_regex=list(_texts(found.get("include_regex"), "include_regex")),
        tensor_names=set(_texts(found.get("tensor_names"), "tensor_names")),
        reduction_config=reductions if isinstance(reductions, dict) else None,
        save_config=saving if isinstance(saving, dict) else None,
        save_histogram=found.get("save_histogram") is not False,
    )


def _texts(values: object, name: str) -> Iterable[str]:
    return (typed(str, value, f"an entry of {name}") for value in typed(list, values or [], name))
