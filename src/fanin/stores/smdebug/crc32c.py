"""CRC-32C (Castagnoli; RFC 3720, appendix B.4), as the framing of TFRecord uses it."""

from __future__ import annotations

POLYNOMIAL = 0x82F63B78
"""Castagnoli's, bits reversed."""

MASK_DELTA = 0xA282EAD8
"""What TFRecord adds, so that the sum of data that holds sums is none of its own."""


def _table() -> tuple[int, ...]:
    entries = []
    for entry in range(256):
        for _ in range(8):
            entry = entry >> 1 ^ (POLYNOMIAL if entry & 1 else 0)
        entries.append(entry)
    return tuple(entries)


TABLE = _table()


def crc32c(data: bytes | memoryview) -> int:
    """The sum of some bytes.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    crc = 0xFFFFFFFF
    for byte in bytes(data):
        crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def masked(data: bytes | memoryview) -> int:
    """The sum as TFRecord stores it: rotated right by 15 bits, plus a constant."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF
