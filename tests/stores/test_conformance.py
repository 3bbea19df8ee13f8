"""What every store owes its users: one table, each store a line."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from fanin.errors import StoreError, TrialExistsError, TrialNotFoundError
from fanin.stores.base import Store
from fanin.stores.memory import MemoryStore
from fanin.stores.parquet import ParquetStore
from fanin.trial import NETWORK_INPUT, RECHECK, ActivationSpec, Mode, ModelSpec, Role, Step

from .samples import EMPTY, SPEC, layer, observation, plain, step

STORES: dict[str, Callable[[pytest.FixtureRequest], Store]] = {
    "memory": lambda request: MemoryStore(),
    "parquet": lambda request: ParquetStore(request.getfixturevalue("tmp_path") / "trial"),
    "s3": lambda request: _in_a_bucket(request),
}
RUN = {"run_id": "r1"}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> Store:
    return STORES[request.param](request)


def _in_a_bucket(request: pytest.FixtureRequest) -> Store:
    request.getfixturevalue("endpoint")
    return ParquetStore(request.getfixturevalue("bucket_uri"))


def write(store: Store, *steps: Step, worker: int = 0, spec: ModelSpec = SPEC) -> None:
    """Write a worker's whole part."""
    writer = store.begin(worker, RUN)
    writer.describe(spec)
    for each in steps:
        writer.append(each)
    writer.close()


def keys(store: Store) -> list[tuple[str, int]]:
    """Mode and number of each step."""
    return [(each.mode.value, each.index) for each in store.load().steps]


# ── one worker ──────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_written_comes_back(store: Store) -> None:
    steps = (step(0), step(0, mode=Mode.EVAL), step(1))
    write(store, *steps)
    trial = store.load()
    assert plain(trial.steps) == plain(steps)
    assert trial.spec == SPEC
    assert trial.about.items() >= RUN.items()
    assert trial.uri == store.uri
    assert trial.complete


def test_a_reference_and_every_role_come_back(store: Store) -> None:
    everything = tuple(observation(0, role=role) for role in Role)
    alone = replace(observation(1, role=Role.UNINFORMED_LOSS), layer=NETWORK_INPUT, shape=(1,))
    steps = (
        Step(0, Mode.TRAIN, (*everything, alone), {0: 2.0}),
        Step(RECHECK, Mode.TRAIN, everything, {0: 1.0}),
        Step(0, Mode.REFERENCE, everything, {0: 1.5}),
    )
    write(store, *steps)
    trial = store.load()
    assert plain(trial.steps) == plain(steps)
    assert plain(trial.reference) == plain(steps[2])
    assert plain(trial.looks(Role.UPDATE)) == plain(steps[:2])


def test_gates_and_sums_come_back(store: Store) -> None:
    joined = (replace(layer("gated"), joins="product", inputs=("a", "b")), replace(layer("sum"), joins="sum"))
    write(store, step(0), spec=replace(SPEC, layers=joined))
    assert store.load().spec.layers == joined


def test_nan_infinite_and_absent_losses_come_back(store: Store) -> None:
    steps = (Step(0, losses={0: float("nan")}), Step(1, losses={0: float("inf")}), Step(2))
    write(store, *steps)
    assert plain(store.load().steps) == plain(steps)


def test_a_summary_of_nothing_comes_back(store: Store) -> None:
    steps = (Step(0, observations=(replace(observation(0), summary=EMPTY, shape=()),)),)
    write(store, *steps)
    assert plain(store.load().steps) == plain(steps)


def test_a_trial_without_steps_is_one(store: Store) -> None:
    write(store)
    assert store.load().steps == ()
    assert store.load().complete


def test_a_model_that_was_never_described_is_unknown(store: Store) -> None:
    store.begin().close()
    assert store.load().spec.name == "unknown"


def test_flushed_steps_are_readable_before_the_end(store: Store) -> None:
    writer = store.begin()
    writer.append(step(0))
    writer.flush()
    trial = store.load()
    assert plain(trial.steps) == plain((step(0),))
    assert not trial.complete
    writer.close()
    assert store.load().complete


def test_a_step_may_arrive_in_pieces(store: Store) -> None:
    whole = step(0)
    first, second = (replace(whole, observations=(seen,), losses={}) for seen in whole.observations)
    write(store, first, replace(second, losses=whole.losses))
    assert plain(store.load().steps) == plain((whole,))


def test_closing_twice_is_closing(store: Store) -> None:
    writer = store.begin()
    writer.close()
    writer.close()
    writer.flush()


def test_a_closed_writer_refuses_more(store: Store) -> None:
    writer = store.begin()
    writer.close()
    with pytest.raises(StoreError, match="this writer is closed"):
        writer.append(step(0))
    with pytest.raises(StoreError, match="this writer is closed"):
        writer.describe(SPEC)


def test_nothing_written_is_not_a_trial(store: Store) -> None:
    with pytest.raises(TrialNotFoundError):
        store.load()


def test_a_worker_begins_once(store: Store) -> None:
    store.begin(0, RUN).close()
    with pytest.raises(TrialExistsError) as caught:
        store.begin(0, RUN)
    assert caught.value.what == "there is a trial here already"
    assert "worker 0" in caught.value.got
    assert caught.value.next_step


# ── what the model is ───────────────────────────────────────────────────────────────────────────────────────


def test_a_statement_that_covers_the_last_replaces_it(store: Store) -> None:
    writer = store.begin()
    writer.describe(ModelSpec("Net", "torch", layers=(layer("a"), layer("c", calls=0), layer("b", calls=0))))
    writer.append(step(0))
    writer.flush()
    later = ModelSpec("Net", "torch", layers=(layer("a"), layer("b", calls=2), layer("c", calls=0)))
    writer.describe(later)
    writer.close()
    assert store.load().spec == later


def test_a_statement_of_what_is_new_adds_to_the_last(store: Store) -> None:
    writer = store.begin()
    writer.describe(ModelSpec("Net", "torch", layers=(layer("a"), layer("b"))))
    writer.describe(ModelSpec("Net", "torch", layers=(layer("c"),), notes=("c ran late.",)))
    writer.close()
    spec = store.load().spec
    assert [each.path for each in spec.layers] == ["a", "b", "c"]
    assert spec.notes == ("c ran late.",)


def test_layers_that_only_another_worker_saw_run_are_merged_in(store: Store) -> None:
    relu, gelu = ActivationSpec("relu_input_0", "relu"), ActivationSpec("gelu_input_0", "gelu")
    here = ModelSpec("Net", "torch", (layer("a"), layer("d"), layer("e", calls=0)), (relu,), ("d",))
    there = ModelSpec("Other", "torch", (layer("a", 9), layer("b"), layer("d"), layer("e")), (relu, gelu))
    write(store, step(0, worker=1), worker=1, spec=there)
    write(store, step(0), worker=0, spec=here)
    spec = store.load().spec
    assert spec.layers == (layer("a"), layer("b"), layer("d"), layer("e"))
    assert spec.activations == (relu, gelu)
    assert (spec.name, spec.outputs) == ("Net", ("d",))


# ── several workers ─────────────────────────────────────────────────────────────────────────────────────────


def test_steps_of_two_workers_are_one_step(store: Store) -> None:
    write(store, step(0, worker=1), step(1, worker=1), worker=1)
    write(store, step(0), step(1), worker=0)
    trial = store.load()
    assert keys(store) == [("train", 0), ("train", 1)]
    assert trial.workers == (0, 1)
    assert plain(trial.of_worker(0).steps) == plain((step(0), step(1)))
    assert plain(trial.of_worker(1).steps) == plain((step(0, worker=1), step(1, worker=1)))
    assert [seen.worker for seen in trial.steps[0].observations] == [0, 0, 1, 1]
    assert trial.steps[1].loss == pytest.approx(1.05)


def test_steps_that_only_another_worker_made_stand_where_it_made_them(store: Store) -> None:
    write(store, step(0), step(1), worker=0)
    others = (step(0, 1), step(0, 1, Mode.EVAL), step(1, 1), step(2, 1))
    write(store, *others, worker=1)
    assert keys(store) == [("train", 0), ("eval", 0), ("train", 1), ("train", 2)]


def test_workers_without_a_step_in_common_follow_one_another(store: Store) -> None:
    write(store, step(0), worker=0)
    write(store, step(1, worker=1), worker=1)
    assert keys(store) == [("train", 0), ("train", 1)]


def test_a_trial_is_complete_when_all_workers_are(store: Store) -> None:
    first, second = store.begin(0, RUN), store.begin(1, RUN)
    first.close()
    assert not store.load().complete
    second.close()
    assert store.load().complete


def test_threads_write_as_workers_of_one_trial(store: Store) -> None:
    def work(worker: int) -> None:
        write(store, *(step(index, worker) for index in range(5)), worker=worker)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trial = store.load()
    assert trial.complete
    assert trial.workers == (0, 1, 2)
    for worker in range(3):
        assert plain(trial.of_worker(worker).steps) == plain(tuple(step(i, worker) for i in range(5)))


def test_a_place_that_is_given_back_is_as_if_nobody_had_begun(store: Store) -> None:
    store.begin(0, {"run_id": "late"}).withdraw()
    with pytest.raises(TrialNotFoundError):
        store.load()
    write(store, step(0))
    assert keys(store) == [("train", 0)]
    assert store.load().about["run_id"] == RUN["run_id"]
