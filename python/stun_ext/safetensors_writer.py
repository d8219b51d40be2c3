# SPDX-License-Identifier: Apache-2.0
"""Writes safetensors files tensor by tensor: none but the one at hand is in memory, and sizes need not be known before.

The header stands first in the format, so room is reserved for it and filled at the end; spaces fill what is left, as
the format allows. The data, and each tensor in it, starts at a multiple of 64 bytes, so that a mapped tensor can be
used where it lies; the format wants no holes, so the bytes between are tensors named "padding.N".
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt

ALIGNMENT = 64
_ENTRY = 160  # no entry takes more, its name left out
_PADDING = "padding."


class SafetensorsWriter:
    """A file being written; a context manager that writes the header at the end, unless there was an error."""

    def __init__(
        self, path: str | os.PathLike[str], names: Iterable[str], metadata: Mapping[str, str]
    ) -> None:
        """Reserves the header.

        Args:
            path: The file, which is created or overwritten.
            names: Names of all tensors that may be added; not each has to be.
            metadata: For the header's ``__metadata__``.
        """
        self._names = set(names)
        self._header: dict[str, Any] = {"__metadata__": dict(metadata)}
        room = len(json.dumps(self._header)) + ALIGNMENT
        room += sum(len(json.dumps(name)) + len(_PADDING) + 2 * _ENTRY for name in self._names)
        self._room = -(-(8 + room) // ALIGNMENT) * ALIGNMENT - 8
        self._end = 0
        self._file = Path(path).open("wb")  # noqa: SIM115 (closed by __exit__)
        self._file.seek(8 + self._room)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if error is None:
                text = json.dumps(self._header, separators=(",", ":")).encode()
                self._file.seek(0)
                self._file.write(self._room.to_bytes(8, "little") + text.ljust(self._room))
                self._file.truncate(8 + self._room + self._end)

    def add(self, name: str, dtype: str, shape: Iterable[int], content: npt.NDArray[Any] | bytes) -> None:
        """Appends one tensor.

        Args:
            name: One of the names announced, once.
            dtype: As the format names it: "BF16", "U32", ...
            shape: Its shape, which the caller answers for.
            content: Its bytes: C-contiguous, any dtype.
        """
        if name not in self._names:
            raise ValueError(f"[safetensors] {name} was not announced, or is there already")
        self._names.remove(name)
        padding = -self._end % ALIGNMENT
        if padding:
            self._append(f"{_PADDING}{len(self._header)}", "U8", (padding,), bytes(padding))
        self._append(name, dtype, shape, content)

    def _append(self, name: str, dtype: str, shape: Iterable[int], content: npt.NDArray[Any] | bytes) -> None:
        data = content if isinstance(content, bytes) else content.reshape(-1).view("u1").data
        self._file.write(data)
        begin, self._end = self._end, self._end + len(data)
        self._header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, self._end]}
