"""Writes trials as SageMaker Debugger does, byte for byte, from the description of its format alone."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

FOOTER = bytes.fromhex("b3c02d06")
"""What smdebug writes behind every record."""

DTYPES = {
    "float32": 1,
    "float64": 2,
    "int32": 3,
    "uint8": 4,
    "int16": 5,
    "int8": 6,
    "complex64": 8,
    "int64": 9,
    "bool": 10,
    "uint16": 17,
    "complex128": 18,
    "float16": 19,
    "uint32": 22,
    "uint64": 23,
}
MODE_NUMBERS = {"TRAIN": "1", "EVAL": "2", "PREDICT": "3", "GLOBAL": "4"}


def castagnoli(data: bytes) -> int:
    """CRC-32C bit by bit, as the definition has it: an implementation of its own."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ 0x82F63B78 if crc & 1 else crc >> 1
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def varint(value: int) -> bytes:
    """A number of variable length."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | float | bytes | str) -> bytes:
    """One field of a message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 1) + struct.pack("<d", value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor_proto(name: str, values: ArrayLike) -> bytes:
    """A TensorProto; strings have no dtype."""
    array = np.asarray(values)
    dims = b"".join(field(2, field(1, size) + field(2, f"{name}_{size}")) for size in array.shape)
    if array.dtype.kind == "U":
        return b"".join(field(8, str(text)) for text in array.reshape(-1))
    return (
        field(1, DTYPES[array.dtype.name]) + field(2, dims) + field(4, np.ascontiguousarray(array).tobytes())
    )


def event(name: str, values: ArrayLike, step: int = 0, mode: str = "GLOBAL", mode_step: int = 0) -> bytes:
    """An Event with one tensor."""
    plugins = {"mode_step": str(mode_step), "mode": MODE_NUMBERS[mode]}
    metadata = b"".join(field(1, field(1, key) + field(2, text)) for key, text in plugins.items())
    value = field(1, name) + field(8, tensor_proto(name, values)) + field(9, metadata)
    return field(1, 1.7e9) + (field(2, step) if step else b"") + field(5, field(1, value))


def record(payload: bytes, footer: bytes = FOOTER) -> bytes:
    """A payload with its frame."""
    length = struct.pack("<Q", len(payload))
    return length + struct.pack("<I", castagnoli(length)) + payload + footer


def collection(name: str, regexes: Sequence[str] = (), tensors: Sequence[str] = ()) -> dict[str, Any]:
    """A collection that saves raw tensors at every step."""
    saving = {"save_interval": 1, "save_steps": [], "start_step": 0, "end_step": None}
    return {
        "name": name,
        "include_regex": list(regexes),
        "tensor_names": sorted(tensors),
        "reduction_config": {"save_raw_tensor": True, "reductions": "", "save_shape": False},
        "save_config": dict.fromkeys(MODE_NUMBERS, saving),
        "save_histogram": True,
    }


COLLECTIONS = (
    collection("weights", ["^(?!gradient).*weight"]),
    collection("biases", ["^(?!gradient).*bias"]),
    collection("gradients", ["^gradient"]),
    collection("losses", ["[Ll]oss_(?!input).*output"]),
    collection("relu_input", [".*relu_input"]),
)


class TrialWriter:
    """What one worker writes into `out_dir`.

    Args:
        folder: The trial.
        worker: Its name, as it is in file names.
        workers: How many there are.
    """

    def __init__(self, folder: Path, worker: str = "worker_0", workers: int = 1) -> None:
        self.folder, self.worker, self.workers = folder, worker, workers

    def collections(self, *more: dict[str, Any], names: Sequence[str] | None = None) -> TrialWriter:
        """Write the collections file."""
        every = {entry["name"]: entry for entry in (*COLLECTIONS, *more)}
        chosen = every if names is None else {name: collection(name) for name in names}
        content = {"collections": chosen, "_meta": {"num_workers": self.workers}}
        self.put(f"collections/000000000/{self.worker}_collections.json", json.dumps(content).encode())
        return self

    def step(
        self,
        step: int,
        tensors: Mapping[str, ArrayLike],
        mode: str = "GLOBAL",
        mode_step: int | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
        *,
        finished: bool = True,
    ) -> TrialWriter:
        """Write a step: its event file and then its index file, or what a killed process leaves of them."""
        counted = step if mode_step is None else mode_step
        event_file = f"events/{step:012d}/{step:012d}_{self.worker}.tfevents"
        index_file = f"index/{step // 1000:09d}/{step:012d}_{self.worker}.json"
        data, rows = bytearray(), []
        for name, values in tensors.items():
            one = record(event(name, values, step, mode, counted))
            rows.append({"tensorname": name, "start_idx": len(data), "length": len(one)})
            data += one
        meta = {"mode": mode, "mode_step": counted, "event_file_name": event_file}
        shaped = [{"tensorname": n, "originalname": n, "shape": list(s)} for n, s in (shapes or {}).items()]
        index = {"meta": meta, "tensor_payload": rows, "shape_payload": shaped}
        tail = "" if finished else ".tmp"
        self.put(event_file + tail, bytes(data))
        self.put(index_file + tail, json.dumps(index).encode() if finished else b"")
        return self

    def end(self) -> TrialWriter:
        """Mark the end of the job."""
        return self.put("training_job_end.ts", b"")

    def put(self, name: str, data: bytes) -> TrialWriter:
        """Write a file whole, as smdebug does: whoever reads beside it sees all of it or none."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.writing")
        unfinished.write_bytes(data)
        unfinished.replace(path)
        return self
