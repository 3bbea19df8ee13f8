"""Records of event files: what is read is what was written, and what is damaged is refused."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanin.stores.smdebug import records
from fanin.stores.smdebug.crc32c import crc32c, masked
from fanin.stores.smdebug.wire import fields

from . import smdebug_writer as writer
from .smdebug_writer import event, field, record

NUMERIC = sorted(writer.DTYPES)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (bytes(32), 0x8A9136AA),
        (bytes([0xFF] * 32), 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"123456789", 0xE3069283),
    ],
)
def test_the_checksum_is_that_of_rfc_3720(data: bytes, expected: int) -> None:
    """The vectors of its appendix B.4, and the check value of CRC-32C."""
    assert crc32c(data) == expected


@given(st.binary(max_size=64))
def test_the_mask_agrees_with_the_definition(data: bytes) -> None:
    assert masked(data) == writer.castagnoli(data)


def test_the_footer_of_smdebug_is_the_checksum_of_ten_letters() -> None:
    assert records.CONSTANT_FOOTER == masked(b"0x12345678") == struct.unpack("<I", writer.FOOTER)[0]


@pytest.mark.parametrize("dtype", NUMERIC)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (1, 2, 1, 4)])
def test_every_dtype_comes_back_to_the_bit(dtype: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, shape).astype(dtype)
    found = records.tensor(record(event("a", values, step=7)), "a")
    assert (found.dtype, found.shape, found.tobytes()) == (values.dtype, values.shape, values.tobytes())


def test_values_that_are_not_finite_come_back() -> None:
    values = np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324])
    assert records.tensor(record(event("a", values)), "a").tobytes() == values.tobytes()


def test_text_comes_back() -> None:
    assert records.tensor(record(event("a", ["zwölf", "b"])), "a").tolist() == ["zwölf", "b"]


def test_a_scalar_as_tensorboard_writes_it_comes_back() -> None:
    value = field(1, "a") + bytes([2 << 3 | 5]) + struct.pack("<f", 0.25)
    assert records.tensor(record(field(5, field(1, value))), "a") == np.float32(0.25)


def test_a_footer_that_is_the_checksum_of_the_payload_is_right_too() -> None:
    payload = event("a", [1.0])
    footer = struct.pack("<I", writer.castagnoli(payload))
    assert records.tensor(record(payload, footer), "a").tolist() == [1.0]


def test_what_is_read_may_be_written_to() -> None:
    records.tensor(record(event("a", [1.0])), "a")[0] = 2.0


def altered(at: int, by: int = 1) -> bytes:
    """A sound record with one byte that is not."""
    data = bytearray(record(event("a", np.arange(4.0))))
    data[at] ^= by
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "too few for a record"),
        (altered(0), "the checksum of its length is wrong"),
        (altered(9), "the checksum of its length is wrong"),
        (altered(-1), "its footer is neither"),
        (record(event("b", [1.0])), "it holds 'b'"),
        (record(b""), "it holds no tensor"),
        (record(event("a", [1.0]))[:-1], "claims"),
        (record(event("a", [1.0])) + b"x", "claims"),
        (record(field(5, field(1, field(1, "a")))), "it holds no tensor"),
        (record(field(5, field(1, field(1, "a") + field(8, field(1, 99))))), "dtype has the number 99"),
        (record(b"\xff" * 11), "does not end"),
        (record(b"\x0b"), "wire type 3"),
        (record(bytes([5 << 3 | 2]) + writer.varint(10**15)), "claims 1000000000000000 bytes"),
        (record(field(5, 1)), "a number where bytes belong"),
    ],
)
def test_what_is_damaged_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        records.tensor(data, "a")


@pytest.mark.parametrize("size", [2**62, 2**31, 5])
def test_a_shape_that_lies_allocates_nothing(size: int) -> None:
    proto = field(1, 1) + field(2, field(2, field(1, size))) + field(4, bytes(16))
    with pytest.raises(ValueError, match="shape"):
        records.tensor(record(field(5, field(1, field(1, "a") + field(8, proto)))), "a")


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_message_or_a_value_error(data: bytes) -> None:
    try:
        list(fields(memoryview(data)))
    except ValueError:
        return


@given(st.integers(0, 80), st.integers(1, 255))
def test_an_altered_record_is_refused_or_still_of_the_same_shape(at: int, by: int) -> None:
    """Its footer is no checksum, so values may change unseen; nothing else may."""
    sound = record(event("a", np.arange(4.0)))
    try:
        found: Any = records.tensor(altered(at % len(sound), by), "a")
    except (ValueError, OverflowError):
        return
    assert found.nbytes in (32, 4)


def test_the_writer_of_these_tests_writes_what_smdebug_wrote(smdebug_trials: Path) -> None:
    """Byte for byte, but for the time of the event."""
    file = smdebug_trials / "mlp_good/events/000000000003/000000000003_worker_0.tfevents"
    theirs = file.read_bytes()[:16555]
    found = records.tensor(theirs, "MLP_blocks.0.layer.weight")
    ours = record(event("MLP_blocks.0.layer.weight", found, 3, "GLOBAL", 3))
    assert (ours[:12], ours[21:]) == (theirs[:12], theirs[21:])
