"""Files that are written as a whole or not at all; safetensors files with checksums.

A file is written under another name in the same folder, checked, flushed to disk and then renamed:
a reader finds the old file or the new one, and a process that is killed leaves the old one. What is
left under the other name is removed by the next write of the same file.

Arrays go to the file in parts, so that writing needs some megabytes of memory however large a
network is. The format safetensors is 8 bytes with the length of a JSON header, the header, and the
arrays. Its metadata hold here

    format      the kind of file
    config      everything that is no array, as JSON
    checksum    of both and of the arrays, see `checksum`
"""
from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
import zlib
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from . import _validation as check
from ._core import _file_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ._arrays.types import PathLike

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".part"
PART_BYTES = 1 << 20  # of an array that are converted, summed or written at a time
MIN_FAST_BYTES = 64  # of a sum by `_file_parts.crc32`, which takes multiples of 16
CHECKSUM_VERSION = "2-"  # at the start of checksums; those of earlier versions have none
DTYPES = {"float32": "F32", "float64": "F64", "float16": "F16", "int8": "I8", "uint8": "U8",
          "int16": "I16", "uint16": "U16", "int32": "I32", "uint32": "U32", "int64": "I64",
          "uint64": "U64", "bool": "BOOL"}
MAPPED_DTYPES = {"F32": np.float32, "U16": np.uint16, "I8": np.int8}  # of weights
TRANSFER_ERRORS = (errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS)


class ArrayLike(Protocol):
    """An array, or what gives parts of one: `array[start:stop]` is an ndarray."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __getitem__(self, rows: Any) -> Any: ...


# --- paths ----------------------------------------------------------------------------------------


def existing(path: PathLike) -> str:
    """The checked path of a file to read."""
    path = check.path(path)
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path!r} is a directory; give the path of a file in it")
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file; check the path")
    return path


def place(path: PathLike) -> str:
    """The checked path of a file to write; for a symbolic link, its target."""
    real = os.path.realpath(check.path(path))
    folder = os.path.dirname(real)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder!r} is no directory; create it first")
    if os.path.isdir(real):
        raise IsADirectoryError(f"{real!r} is a directory; give the path of a file in it")
    if os.path.exists(real) and not os.path.isfile(real):
        raise ValueError(f"{real!r} is a device or a pipe, which a file must not replace; give the "
                         "name of a file")
    return real


# --- replacing a file -----------------------------------------------------------------------------


@contextmanager
def replacing(path: PathLike, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Open a temporary file that replaces `path` if the block succeeds and is deleted otherwise.

    It is in the same folder, so that the renaming is atomic, and is flushed to disk before, as the
    folder is after it. It gets the mode, the owner and the extended attributes of the file that it
    replaces. An OSError names `path`.
    """
    path = os.fspath(path)
    folder, name = os.path.split(os.path.abspath(path))
    with naming(path):
        _sweep(folder, name)
    temporary = os.path.join(folder, f"{_prefix(name)}{secrets.token_hex(6)}{SUFFIX}")
    try:
        with naming(path), _new(temporary, os.path.exists(path), mode, options) as file:
            yield file
            file.flush()
            _take_attributes(file.fileno(), path)
            os.fsync(file.fileno())
            if os.name == "nt":  # where an open file cannot be renamed
                file.close()
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # it may be the new file already
            os.unlink(temporary)
        raise
    with naming(path):
        _flush_folder(folder)


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Context in which an OSError names the file that the user has given, and no temporary one."""
    try:
        yield
    except OSError as error:
        given = error.filename
        if error.errno is None or not (given is None or os.fsdecode(given).endswith(SUFFIX)):
            raise
        raise type(error)(error.errno, error.strerror, path) from error


def _prefix(name: str) -> str:
    """The begin of the names of temporary files: short, as names have at most 255 bytes."""
    return f".sparselsh-{zlib.crc32(os.fsencode(name)):08x}-"


def _new(path: str, replaces: bool, mode: str, options: dict[str, Any]) -> IO[Any]:
    """A new file, locked, which says that its writer lives."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    # the system applies the umask; a file that replaces another gets the mode of that one, which
    # may let fewer people read it
    mask = 0o600 if replaces else 0o666
    file = open(path, mode, opener=lambda name, _: os.open(
        name, flags | getattr(os, "O_BINARY", 0), mask), **options)
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks
            while not _is_ours(file, path):
                file.close()  # another process has just swept it up
                file = open(path, mode, opener=lambda name, _: os.open(name, flags, mask),
                            **options)
    return file


def _is_ours(file: IO[Any], path: str) -> bool:
    """Lock a file; False if a process that sweeps has got it first."""
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return False
    return os.path.exists(path)


def _sweep(folder: str, name: str) -> None:
    """Remove the temporary files of writers that were killed: those that nobody has locked."""
    if fcntl is None:
        return
    prefix = _prefix(name)
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not (entry.name.startswith(prefix) and entry.name.endswith(SUFFIX)):
                continue
            with contextlib.suppress(OSError):
                handle = os.open(entry.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(entry.path)
                finally:
                    os.close(handle)


def _take_attributes(handle: int, path: str) -> None:
    """Give a file the owner, the mode and the extended attributes of the one at `path`, if any."""
    try:
        old = os.stat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(old.st_mode) or not hasattr(os, "fchown"):
        return
    new = os.fstat(handle)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        with _where_supported():
            os.fchown(handle, old.st_uid, old.st_gid)
    if hasattr(os, "listxattr"):
        with _where_supported():
            for name in os.listxattr(path):
                with _where_supported():
                    os.setxattr(handle, name, os.getxattr(path, name))
    mode = stat.S_IMODE(old.st_mode)
    if os.fstat(handle).st_gid != old.st_gid:
        mode &= ~0o070  # meant for another group
    os.fchmod(handle, mode)


@contextmanager
def _where_supported() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in TRANSFER_ERRORS:
            raise


def _flush_folder(folder: str) -> None:
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with _where_supported():
            os.fsync(handle)
    finally:
        os.close(handle)


# --- writing safetensors --------------------------------------------------------------------------


def parts_of(array: ArrayLike) -> Iterator[memoryview]:
    """The bytes of an array in C order, some megabytes at a time."""
    shape, size = array.shape, int(np.prod(array.shape, dtype=np.int64))
    if not size:
        return
    if isinstance(array, np.ndarray) and array.flags.c_contiguous:
        whole = array.reshape(-1).view(np.uint8).data
        for start in range(0, len(whole), PART_BYTES):
            yield whole[start:start + PART_BYTES]
        return
    if not shape:
        yield np.ascontiguousarray(array).reshape(1).view(np.uint8).data
        return
    step = getattr(array, "part_rows", None) or max(
        1, PART_BYTES * shape[0] // (size * array.dtype.itemsize))
    for start in range(0, shape[0], step):
        part = np.ascontiguousarray(array[start:start + step])
        yield part.reshape(-1).view(np.uint8).data


def write(path: PathLike, tensors: Mapping[str, ArrayLike], metadata: Mapping[str, str]) -> None:
    """Write named arrays and a dict of strings.

    Equal arguments give equal files: arrays are in the order of their names, larger numbers first,
    so that each is aligned.
    """
    _write(path, tensors, metadata, None)


def write_checked(path: PathLike, tensors: Mapping[str, ArrayLike], kind: str,
                  config: str) -> None:
    """Write named arrays and a text, with their checksum, as a file of the format `kind`.

    Each array is read once: the checksum is filled in when all are written.
    """
    unknown = checksum(tensors, config, dict.fromkeys(tensors, 0))
    _write(path, tensors, {"format": kind, "config": config, "checksum": unknown},
           lambda sums: checksum(tensors, config, sums))


def _write(path: PathLike, tensors: Mapping[str, ArrayLike], metadata: Mapping[str, str],
           checksum_of: Callable[[dict[str, int]], str] | None) -> None:
    path = place(path)
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    entries, end = {}, 0
    for name in names:
        array = tensors[name]
        start, end = end, end + _n_bytes(array)
        entries[name] = {"dtype": DTYPES[array.dtype.name], "shape": list(array.shape),
                         "data_offsets": [start, end]}
    header = _header(metadata, entries)

    with replacing(path) as file:
        file.write(header)
        sums = dict.fromkeys(names, 0)
        for name in names:
            for part in parts_of(tensors[name]):
                if checksum_of is not None:
                    sums[name] = crc32(part, sums[name])
                file.write(part)
        if checksum_of is not None:
            file.seek(0)
            file.write(_header({**metadata, "checksum": checksum_of(sums)}, entries))
        file.flush()
        # a file of another size would be one that no reader takes
        size = os.fstat(file.fileno()).st_size
        if size != len(header) + end:
            raise OSError(errno.EIO, f"{size} bytes were written instead of {len(header) + end}")


def _header(metadata: Mapping[str, str], entries: dict[str, Any]) -> bytes:
    text = json.dumps({"__metadata__": dict(metadata)} | entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _n_bytes(array: ArrayLike) -> int:
    return int(np.prod(array.shape, dtype=np.int64)) * array.dtype.itemsize


# --- checksums ------------------------------------------------------------------------------------


def crc32(part: memoryview, before: int = 0) -> int:
    """CRC-32 of the bytes of an array that follow those whose CRC-32 is `before`."""
    n = len(part) & -16 if _file_parts.is_fast() else 0
    if n >= MIN_FAST_BYTES:
        before, part = _file_parts.crc32(part[:n], before), part[n:]
    return zlib.crc32(part, before)


def checksum(tensors: Mapping[str, ArrayLike], config: str,
             known: Mapping[str, int] | None = None) -> str:
    """Checksum of arrays and config: a flipped bit would silently change answers.

    It consists of the version, the sum of everything, and those of the arrays in the order of their
    names, 8 hexadecimal digits each. `known` has the sums of arrays that are not to be read.
    """
    known = known or {}
    value, sums = zlib.crc32(config.encode()), []
    for name, array in sorted(tensors.items()):
        if name in known:
            own = known[name]
        else:
            own = 0
            for part in parts_of(array):
                own = crc32(part, own)
        value = zlib.crc32(f"{name} {array.dtype} {tuple(array.shape)} {own}".encode(), value)
        sums.append(own)
    return CHECKSUM_VERSION + "".join(f"{number:08x}" for number in (value, *sums))


def _checksum_of_version_1(tensors: Mapping[str, np.ndarray], config: str) -> str:
    value = zlib.crc32(config.encode())
    for name, array in sorted(tensors.items()):
        head = f"{name} {array.dtype} {array.shape}".encode()
        value = zlib.crc32(head, value)
        for part in parts_of(array):
            value = crc32(part, value)
    return str(value)


def _is_sound(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str],
              mapped: Callable[[str], bool] | None) -> bool:
    """Whether the checksum is right; arrays that are mapped are not read for it."""
    given = metadata.get("checksum")
    if given is None:  # a file of an earlier version
        return True
    config = metadata.get("config", "")
    if not given.startswith(CHECKSUM_VERSION):
        return given == _checksum_of_version_1(tensors, config)
    known = {}
    if mapped is not None:
        digits = given[len(CHECKSUM_VERSION) + 8:]
        for i, name in enumerate(sorted(tensors)):
            if mapped(name):
                known[name] = int(digits[8 * i:8 * i + 8], 16)
    return given == checksum(tensors, config, known)


# --- reading --------------------------------------------------------------------------------------


def with_prefix(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `prefix`, by the rest of their names."""
    return {name[len(prefix):]: a for name, a in tensors.items() if name.startswith(prefix)}


def damaged(path: PathLike, what: str, error: Exception) -> ValueError:
    """The error for a file that was read but cannot be used."""
    return ValueError(f"{path}: the {what} in this file is damaged or from another version "
                      f"({type(error).__name__}: {error}); save it again")


class Unread(NamedTuple):
    """What stands for an array that was not read."""

    dtype: np.dtype
    shape: tuple[int, ...]


def read(path: PathLike, kind: str, mapped: Callable[[str], bool] | None = None,
         unread: Callable[[str], bool] | None = None
         ) -> tuple[dict[str, Any], dict[str, str]]:
    """Named arrays and metadata of a file whose metadata have format = `kind`.

    Arrays for whose names `mapped` returns True are memory-mapped, those for which `unread` does
    become an `Unread`, and the others are copied. The checksum is compared, if there is one; arrays
    that are not copied are left out of it.
    """
    from safetensors import SafetensorError, safe_open

    path = existing(path)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != kind:
                raise ValueError(f"{path}: a safetensors file, but not one of {kind}; save one "
                                 "first")

            places = places_of(path) if mapped is not None or unread is not None else {}
            tensors: dict[str, Any] = {
                name: _mapped(path, *places[name]) if mapped is not None and mapped(name)
                else _unread(*places[name]) if unread is not None and unread(name)
                else _copied(path, file, name) for name in file.keys()}
        for name, array in tensors.items():
            if array.dtype.kind not in "fiub":  # types of ml_dtypes, where that is installed
                raise TypeError(f"{name} is {array.dtype}")
    except (AttributeError, TypeError) as error:  # NumPy lacks some types of the format
        raise ValueError(f"{path}: a safetensors file with a type of numbers that no {kind} has "
                         f"({error}); save it again") from error
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error}); it may be cut short "
                         "or of another kind: save it again") from error
    try:
        is_sound = _is_sound(tensors, metadata, mapped or unread)
    except ValueError:  # digits that are none
        is_sound = False
    if not is_sound:
        what = "index" if kind.endswith("index") else "network"
        raise damaged(path, what, ValueError("its checksum differs"))
    return tensors, metadata


def metadata(path: PathLike) -> dict[str, str]:
    """The metadata of a safetensors file; empty for other files, and for those without any."""
    from safetensors import SafetensorError, safe_open

    path = existing(path)
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def _copied(path: PathLike, file: Any, name: str) -> np.ndarray:
    try:
        return file.get_tensor(name)
    except ValueError as error:  # from NumPy, for a shape that is too large but contains a zero
        raise ValueError(f"{path}: not a readable safetensors file ({name}: {error}); "
                         "save it again") from error


def places_of(path: PathLike) -> dict[str, Any]:
    """{name: (dtype, shape, first byte)} of a file that the package safetensors has opened.

    Opening has checked the file. The package copies arrays and does not support bfloat16 in NumPy,
    so mapping or converting them needs their positions.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {name: (entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
            for name, entry in header.items() if name != "__metadata__"}


def _unread(dtype: str, shape: tuple[int, ...], start: int) -> Unread:
    return Unread(np.dtype(next(name for name, code in DTYPES.items() if code == dtype)), shape)


def _mapped(path: PathLike, dtype: str, shape: tuple[int, ...], start: int) -> np.ndarray:
    known = MAPPED_DTYPES.get(dtype)
    if known is None or 0 in shape or start % np.dtype(known).itemsize:
        raise ValueError(f"{path}: holds {dtype} of shape {shape} where float32 weights should be "
                         "mapped")
    return np.memmap(path, known, "r", start, shape).view(np.ndarray)
