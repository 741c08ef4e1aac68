"""Text sources: files, parts of files, Parquet columns and strings, read in pieces of bounded size.

A source yields pieces of text with every line end as "\\n" (as Python's text mode does: "\\r\\n" and a lone
"\\r" too). Pieces end anywhere, also inside a word. What cannot be text is refused with the byte where it is.
"""

import codecs
import io
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tpdist.errors import DataError, first_line

CHUNK_BYTES = 1 << 20
LINE_END = re.compile(rb"\r\n?|\n")
PARQUET_ROWS = 64
MAGIC = {
    b"\x1f\x8b": "a gzip file: unpack it first",
    b"PK\x03\x04": "a zip file: unpack it first",
    b"PAR1": "a Parquet file: let its name end in .parquet",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
}


def file_size(path: Path) -> int:
    """Size in bytes of a readable, regular, non-empty file. Raises DataError for everything else."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file{'' if path.is_absolute() else f' in {Path.cwd()}'}") from None
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{path}: a directory, where a file is expected")
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: not a regular file; it is read twice, so pipes and devices will not do")
    if status.st_size == 0:
        raise DataError(f"{path}: empty file")
    return status.st_size


def unreadable(path: Path, error: Exception) -> DataError:
    """The one line for an OSError while reading."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    return DataError(f"{path}: cannot be read: {reason}")


def end_of_line(path: Path, at: int) -> int:
    """The first byte from `at` on that begins a line; the file's size where none does."""
    if at == 0:
        return 0
    at -= 1
    try:
        with open(path, "rb") as file:
            file.seek(at)
            while chunk := file.read(CHUNK_BYTES):
                if found := LINE_END.search(chunk):
                    whole = found.group() != b"\r" or found.end() < len(chunk) or file.read(1) != b"\n"
                    return at + found.end() + (not whole)
                at += len(chunk)
    except OSError as error:
        raise unreadable(path, error) from None
    return at


@dataclass(frozen=True)
class FileText:
    """UTF-8 text of bytes [begin, end) of a file.

    `ascii`: refuse anything else (text8, which is cut at byte positions). `lines`: False makes a newline a space.
    """

    path: Path
    begin: int = 0
    end: int | None = None
    ascii: bool = False
    lines: bool = True
    chunk_bytes: int = CHUNK_BYTES

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def size(self) -> int:
        return (file_size(self.path) if self.end is None else self.end) - self.begin

    def pieces(self) -> Iterator[tuple[str, int]]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        newlines = io.IncrementalNewlineDecoder(None, translate=True)
        at_start = self.begin == 0
        position = self.begin
        for chunk in self._chunks():
            pending = len(decoder.getstate()[0])
            self._refuse_binary(chunk, position)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                where = f"byte {position - pending + error.start}: not UTF-8 (0x{error.object[error.start]:02x})"
                raise DataError(f"{self.path}: {where}; convert the file to UTF-8") from None
            position += len(chunk)
            if at_start and text:
                text, at_start = text.removeprefix("\ufeff"), False
            text = newlines.decode(text, final=not chunk)
            yield text if self.lines else text.replace("\n", " "), position - self.begin

    def _chunks(self) -> Iterator[bytes]:
        """Raw chunks, then one empty chunk for the end."""
        file_size(self.path)
        left = -1 if self.end is None else self.end - self.begin
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(self.begin)
                while left and (chunk := file.read(self.chunk_bytes if left < 0 else min(left, self.chunk_bytes))):
                    left -= len(chunk) if left > 0 else 0
                    yield chunk
        except OSError as error:
            raise unreadable(self.path, error) from None
        if left > 0:
            raise DataError(f"{self.path}: ended {left:,} bytes early; it changed while it was read")
        yield b""

    def _refuse_binary(self, chunk: bytes, position: int) -> None:
        if position == 0:
            for magic, kind in MAGIC.items():
                if chunk.startswith(magic):
                    raise DataError(f"{self.path}: byte 0: {kind}")
        if (at := chunk.find(b"\0")) >= 0:
            raise DataError(f"{self.path}: byte {position + at}: a NUL byte; this is a binary file, not text")
        if self.ascii and not chunk.isascii():
            at = next(i for i, byte in enumerate(chunk) if byte > 127)
            raise DataError(
                f"{self.path}: byte {position + at}: not ASCII (0x{chunk[at]:02x}); text8 is plain ASCII, "
                "for other text use recipe text"
            )


@dataclass(frozen=True)
class ParquetText:
    """A text column of a Parquet file: a row is a line. One line end at a row's end is not doubled; null rows are
    left out. Of a row group the whole compressed column is in memory, and some rows of it as text."""

    path: Path
    column: str

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def size(self) -> int:
        return file_size(self.path)

    def pieces(self) -> Iterator[tuple[str, int]]:
        size = self.size
        try:
            with pq.ParquetFile(self.path) as file:
                self._check_column(file.schema_arrow)
                total, row = max(file.metadata.num_rows, 1), 0
                for batch in file.iter_batches(PARQUET_ROWS, columns=[self.column]):
                    text, done = self._text(batch.column(0), row), size * row // total
                    for begin in range(0, len(text), CHUNK_BYTES):
                        yield text[begin : begin + CHUNK_BYTES], done
                    row += len(batch)
        except OSError as error:
            raise unreadable(self.path, error) from None
        except (pa.ArrowException, UnicodeDecodeError) as error:  # a damaged name is not UTF-8
            raise DataError(f"{self.path}: not a readable Parquet file: {first_line(error)}") from None
        yield "", size

    def _check_column(self, schema: pa.Schema) -> None:
        if self.column not in schema.names:
            raise DataError(f"{self.path}: no column {self.column!r}; it has {', '.join(map(repr, schema.names))}")
        if schema.names.count(self.column) > 1:
            raise DataError(f"{self.path}: several columns {self.column!r}; give them names of their own")
        kind = schema.field(self.column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise DataError(f"{self.path}: column {self.column!r} holds {kind}, not strings; cast it to string")

    def _text(self, column: pa.Array, first_row: int) -> str:
        try:
            rows = column.to_pylist()
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path}: rows from {first_row}: not UTF-8 (byte {error.start} of a row)") from None
        lines = []
        for i, row in enumerate(rows):
            if row is None:
                continue
            if "\0" in row:
                raise DataError(f"{self.path}: row {first_row + i}: a NUL character; this is not text")
            row = row.replace("\r\n", "\n").replace("\r", "\n")
            lines.append(row if row.endswith("\n") else row + "\n")
        return "".join(lines)


@dataclass(frozen=True)
class StringText:
    """Text that is already in memory."""

    name: str
    text: str

    @property
    def size(self) -> int:
        return len(self.text.encode())

    def pieces(self) -> Iterator[tuple[str, int]]:
        yield self.text, self.size


Source = FileText | ParquetText | StringText
"""One split's text. name: how messages and the manifest call it. size: in bytes, the unit of progress. pieces: those of
the text in order, each with the number of bytes read so far; it may be called repeatedly."""
