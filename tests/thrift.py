"""Numbers as Thrift's compact protocol, and Parquet's runs, write them."""

from __future__ import annotations


def varint(number: int) -> bytes:
    """An unsigned integer, seven bits a byte."""
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])
