"""Files inside files: members of zip and tar archives and compressed files, read as streams and never unpacked to disk."""

import bz2
import gzip
import io
import lzma
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from lora_select.errors import InputError

SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
MAGIC = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zst"}
MOST_MEMBERS = 200
"""Of a compressed tar: each member is found by reading from the start."""

DAMAGE = (
    EOFError,
    OSError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    tarfile.TarError,
    RuntimeError,
    NotImplementedError,
)
"""What the decompressors raise on a file that is cut or damaged, encrypted or of an unknown method."""


def is_archive(name: str) -> bool:
    """Whether a name is a zip or tar archive's."""
    return name.lower().endswith(SUFFIXES)


def members(path: Path) -> list[str]:
    """The regular files of an archive, in the order in which they are stored.

    Raises:
        InputError: the archive is damaged or encrypted, or a member's path leaves it.
    """
    with reading(path):
        if path.name.lower().endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                found = [info for info in archive.infolist() if not info.is_dir()]
                if any(info.flag_bits & 1 for info in found):
                    raise InputError(f"{path} is encrypted; unpack it first")
                names = [info.filename for info in found]
        else:
            with _tar(path) as archive:
                names = [info.name for info in archive if info.isreg()]
            if len(names) > MOST_MEMBERS and not path.name.lower().endswith(".tar"):
                raise InputError(
                    f"{path} holds {len(names)} files in one compressed stream; unpack it and name the folder"
                )
    for name in names:
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts:
            raise InputError(
                f"{path} holds {name!r}, a path that leaves the archive; it is not read, make a clean archive"
            )
    return names


@contextmanager
def opened(path: Path, member: str | None, name: str) -> Iterator[IO[bytes]]:
    """The plain bytes of a file or member: what is compressed (by its first bytes, whatever its name) is decompressed.

    Raises:
        InputError: it cannot be opened, or turns out to be damaged while it is read.
    """
    with reading(name):
        if member is None:
            with path.open("rb") as raw:
                yield _plain(raw)
        elif path.name.lower().endswith(".zip"):
            with zipfile.ZipFile(path) as archive, archive.open(member) as raw:
                yield _plain(io.BufferedReader(cast(Any, raw)))
        else:
            with _tar(path) as archive:
                for info in archive:
                    if info.name == member and info.isreg():
                        inner = archive.extractfile(info)
                        assert inner is not None
                        yield _plain(inner)
                        break


@contextmanager
def reading(name: Path | str) -> Iterator[None]:
    """Damage that shows while reading becomes one sentence.

    Raises:
        InputError: names the file.
    """
    try:
        yield
    except InputError:
        raise
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"{name} is damaged or cannot be read: {reason}; fetch or write it again") from error


def _plain(raw: Any) -> IO[bytes]:
    head = raw.peek(8)[:8] if hasattr(raw, "peek") else b""
    packing = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)
    if packing == "gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if packing == "bz2":
        return cast(IO[bytes], bz2.BZ2File(raw))
    if packing == "xz":
        return cast(IO[bytes], lzma.LZMAFile(raw))
    if packing == "zst":
        return cast(IO[bytes], io.BufferedReader(cast(Any, _Zstd(raw)), 1 << 16))
    return raw


def _tar(path: Path) -> tarfile.TarFile:
    if path.name.lower().endswith(".zst"):
        beside = tempfile.TemporaryFile()  # noqa: SIM115  (tarfile seeks, knows no zstandard, and closes it)
        with path.open("rb") as raw:
            shutil.copyfileobj(io.BufferedReader(cast(Any, _Zstd(raw))), beside)
        beside.seek(0)
        return tarfile.open(fileobj=beside, mode="r:")
    return tarfile.open(path, mode="r:*")


class _Zstd(io.RawIOBase):
    """Zstandard by pyarrow's decompressor, which knows several frames in a row."""

    def __init__(self, raw: Any) -> None:
        import pyarrow

        self._stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._stream.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)
