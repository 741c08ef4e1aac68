"""Parquet files as text: rows of any length, in pieces of bounded size."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tpdist.data.text import CHUNK_BYTES, ParquetText
from tpdist.errors import DataError


def test_rows_that_are_books_come_in_pieces(tmp_path: Path) -> None:
    books = ["a b\n" * 400_000, "", "c" * 3_000_000, "d"]
    pq.write_table(pa.table({"text": books}), tmp_path / "books.parquet")
    pieces = [text for text, _ in ParquetText(tmp_path / "books.parquet", "text").pieces()]
    assert max(map(len, pieces)) <= CHUNK_BYTES
    assert "".join(pieces) == f"{books[0]}\n{books[2]}\nd\n"


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: several columns 'text'; give them names of their own"):
        list(ParquetText(tmp_path / "a.parquet", "text").pieces())
