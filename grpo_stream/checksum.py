"""The one checksum of payloads, by the fastest code that is installed."""

try:  # the same CRC-32 at twenty times zlib's speed; an extra
    from isal.isal_zlib import crc32
except ImportError:  # pragma: no cover
    from zlib import crc32

__all__ = ["crc32"]
