"""Reads zip archives whose members are not compressed, as PyTorch, Keras and NumPy write them."""

import mmap
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path


class Archive:
    """An archive, whose members are parts of the file in memory that is mapped.

    Attributes:
        size: of the file in bytes.
    """

    def __init__(self, path: Path) -> None:
        """Raises `zipfile.BadZipFile` for a damaged directory of members."""
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            self._members = {info.filename: info for info in archive.infolist()}
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.size = len(self._data)

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def __getitem__(self, name: str) -> memoryview:
        """Returns the bytes of a member (PKWARE's APPNOTE, section 4.3.7).

        Raises:
            ValueError: it is missing, damaged, compressed or encrypted.
        """
        shown = name[:100]
        if name not in self._members:
            raise ValueError(f"its part {shown} is missing")
        info = self._members[name]
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise ValueError(
                f"its part {shown} is compressed, which PyTorch, Keras and numpy.savez never do"
            )
        if info.flag_bits & 1:
            raise ValueError(f"its part {shown} is encrypted")
        start = info.header_offset
        header = self._data[start : start + 30] if start >= 0 else b""
        if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
            raise ValueError(f"its part {shown} is missing")
        start += 30 + sum(struct.unpack("<HH", header[26:30]))
        if start + info.file_size > self.size:
            raise ValueError(f"its part {shown} is truncated")
        content = memoryview(self._data)[start : start + info.file_size]
        if zlib.crc32(content) != info.CRC:
            raise ValueError(
                f"its part {shown} is damaged: its checksum is another (PyTorch writes none after "
                "torch.serialization.set_crc32_options(False): then save it again without)"
            )
        return content
