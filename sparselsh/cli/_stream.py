"""Lines of a pipe as they come: several where they wait, one where there is one."""
from __future__ import annotations

from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

READ_BYTES = 1 << 16
MAX_LINE_BYTES = 1 << 26  # a line without an end would fill the memory


def lines_of(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield (number of the first line, whole lines) as soon as there are any.

    ValueError for a line that is too long.
    """
    line, rest = 1, b""
    while part := file.read1(READ_BYTES):  # type: ignore[attr-defined]
        whole, end, rest_of_part = part.rpartition(b"\n")
        if not end:
            rest += part
            if len(rest) > MAX_LINE_BYTES:
                raise ValueError(f"'<stdin>', line {line}: longer than {MAX_LINE_BYTES} bytes")
            continue
        text, rest = rest + whole + end, rest_of_part
        yield line, text
        line += text.count(b"\n")
    if rest:
        yield line, rest
