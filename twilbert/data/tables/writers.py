"""Tables of results, written chunk by chunk: TSV, CSV, JSON lines, Parquet, or embeddings as HDF5.

A chunk is a table: the input's own columns first (or, of JSON lines, the lines as they stood, under JSON_LINE), then
the results. The first chunk fixes the columns of a TSV, CSV or Parquet file.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Callable, Iterator
from typing import IO, Any, Protocol, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from twilbert.data.tables.blocks import JSON_LINE
from twilbert.errors import TwilbertError, UsageError

T = TypeVar("T")
TABLES = ("tsv", "csv", "jsonl", "parquet")
VECTORS = ("parquet", "h5", "hdf5")
_FAULTY = "\0line"
OTHER = "other_keys"
"""Of JSON lines written as columns: the keys that the first rows did not have, as JSON, or a line that is no object."""
_NO_BREAKS = str.maketrans("\t\r\n", "   ")


class Writer(Protocol):
    """What a format's writer can do; `close` writes what is left, and is called after a fault too."""

    def write(self, table: pa.Table) -> None:
        """Add the rows of a chunk."""
        ...

    def close(self) -> None:
        """Finish the file's contents; the stream stays open."""
        ...


def open_writer(form: str, stream: IO[bytes]) -> Writer:
    """The writer of TABLES and VECTORS formats."""
    if form in ("h5", "hdf5"):
        return Hdf5Writer(stream)
    return {"tsv": _CellWriter, "csv": _CsvWriter, "jsonl": _JsonWriter, "parquet": _ParquetWriter}[form](stream)


def _records(table: pa.Table) -> list[dict[str, Any]]:
    """The rows as JSON objects; a line that is none becomes {_FAULTY: what stood there}."""
    if JSON_LINE not in table.column_names:
        return table.to_pylist()
    results = table.drop_columns([JSON_LINE])
    records = []
    for line, result in zip(table.column(JSON_LINE).to_pylist(), results.to_pylist(), strict=True):
        record = _object(line)
        if taken := sorted(set(record) & set(result)):
            raise TwilbertError(f"a line already has the key {taken[0]!r}; choose other names with --prefix")
        records.append(record | result)
    return records


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {_FAULTY: line}
    return value if isinstance(value, dict) else {_FAULTY: line}


class _JsonWriter:
    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def write(self, table: pa.Table) -> None:
        records = [{"line" if k == _FAULTY else k: v for k, v in record.items()} for record in _records(table)]
        lines = [json.dumps(record, ensure_ascii=False, default=str) for record in records]
        # A lone surrogate that the input spelt out as \ud83d can only be written so.
        self._stream.write("".join(f"{line}\n" for line in lines).encode(errors="backslashreplace"))

    def close(self) -> None:
        pass


class _Columns:
    """Keeps the columns of the first chunk; what a later JSON line holds beside them goes to OTHER."""

    def __init__(self) -> None:
        self.names: list[str] | None = None

    def table(self, table: pa.Table) -> pa.Table:
        """The chunk with plain columns: values of JSON lines that are no text as their JSON."""
        if JSON_LINE not in table.column_names:
            return table
        results = table.drop_columns([JSON_LINE])
        records = [{k: v for k, v in r.items() if k not in results.column_names} for r in _records(table)]
        if self.names is None:
            self.names = list(dict.fromkeys(name for record in records for name in record if name != _FAULTY))
        columns = {name: [_plain(record.pop(name, None)) for record in records] for name in self.names}
        columns[OTHER] = [_plain(record.get(_FAULTY, record or None)) for record in records]
        kept = pa.table({name: pa.array(values, pa.large_string()) for name, values in columns.items()})
        for name in results.column_names:
            kept = kept.append_column(results.schema.field(name), results.column(name))
        return kept


def _plain(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode(errors="replace").decode()  # half a character that the line spelt out cannot be stored


class _ParquetWriter:
    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._columns = stream, _Columns()
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        table = self._columns.table(table)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._stream, table.schema, compression="zstd")
        self._writer.write_table(table)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _CellWriter:
    """TSV: never quoted, so that a tab or line break inside a cell becomes a space."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._columns, self._began = stream, _Columns(), False

    def write(self, table: pa.Table) -> None:
        table = self._columns.table(table)
        columns = [_cells(column) for column in table.columns]
        rows = [] if self._began else [tuple(table.column_names)]
        self._began = True
        self._stream.write(self._lines([*rows, *zip(*columns, strict=True)]).encode())

    def _lines(self, rows: list[tuple[str, ...]]) -> str:
        return "".join("\t".join(cell.translate(_NO_BREAKS) for cell in row) + "\n" for row in rows)

    def close(self) -> None:
        pass


class _CsvWriter(_CellWriter):
    def _lines(self, rows: list[tuple[str, ...]]) -> str:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue()


def _cells(column: pa.ChunkedArray) -> list[str]:
    """A column as text: numbers with seven digits, lists by commas, nothing for null."""

    def cell(value: Any) -> str:
        if value is None:
            return ""
        if isinstance(value, float):
            return f"{value:.7g}" if pa.types.is_float32(column.type) else repr(value)
        return ",".join(map(str, value)) if isinstance(value, list) else str(value)

    return [cell(value) for value in column.to_pylist()]


class Hdf5Writer:
    """Embeddings as the original's application wrote them: dataset /embeddings/N is row N's float32 [tokens, H].

    One vector for each text: the one dataset /embeddings, float32 [rows, P]. A row without one is empty, or NaN; its
    number stands in /errors/row, the reason in /errors/reason.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        try:
            import h5py
        except ImportError as error:
            raise UsageError("HDF5 needs h5py: pip install h5py; or write .parquet") from error
        self._h5py: Any = h5py
        self._disk = _Disk(stream)
        self._file: Any = h5py.File(self._disk, "w")
        self._row = 0
        self._faulty: list[tuple[int, str]] = []

    def write(self, table: pa.Table) -> None:
        with self._disk.faults():
            self._write(table)

    def _write(self, table: pa.Table) -> None:
        errors = table.column(table.num_columns - 1).to_pylist()  # the results end with it
        column = table.column(table.num_columns - 2)
        if pa.types.is_list(column.type):
            self._write_tokens(column)
        else:
            self._write_vectors(column)
        self._faulty += [(self._row + i, error) for i, error in enumerate(errors) if error is not None]
        self._row += len(errors)

    def _write_tokens(self, column: pa.ChunkedArray) -> None:
        group = self._file.require_group("embeddings")
        width = column.type.value_type.list_size
        for number, value in enumerate(column, start=self._row):
            vectors: Any = value
            flat = vectors.values.flatten().to_numpy() if vectors.is_valid else np.empty(0, np.float32)
            group.create_dataset(str(number), data=flat.reshape(-1, width))

    def _write_vectors(self, column: pa.ChunkedArray) -> None:
        width = column.type.list_size
        values: Any = column.combine_chunks()
        vectors = np.full((len(column), width), np.nan, np.float32)
        vectors[np.asarray(values.is_valid())] = values.flatten().to_numpy().reshape(-1, width)
        if "embeddings" not in self._file:
            self._file.create_dataset("embeddings", (0, width), "f4", maxshape=(None, width), chunks=(1024, width))
        stored = self._file["embeddings"]
        stored.resize(self._row + len(column), axis=0)
        stored[self._row :] = vectors

    def close(self) -> None:
        with self._disk.faults():
            try:
                if self._faulty:
                    rows, reasons = zip(*self._faulty, strict=True)
                    self._file["errors/row"] = np.array(rows, np.int64)
                    self._file.create_dataset("errors/reason", data=list(reasons), dtype=self._h5py.string_dtype())
            finally:
                self._file.close()


class _Disk:
    """The stream as the HDF5 library sees it: what fails is remembered, for the library crashes over an exception."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._fault: BaseException | None = None

    def tell(self) -> int:
        return self._attempt(self._stream.tell, 0)

    def seek(self, position: int, whence: int = 0) -> int:
        return self._attempt(lambda: self._stream.seek(position, whence), position)  # writes what is buffered

    def read(self, size: int = -1) -> bytes:
        return self._attempt(lambda: self._stream.read(size), b"")

    def readinto(self, place: Any) -> int:
        return self._attempt(lambda: cast(Any, self._stream).readinto(place), 0)

    def write(self, data: bytes) -> int:
        return self._attempt(lambda: self._stream.write(data), len(data))

    def truncate(self, size: int) -> int:
        return self._attempt(lambda: self._stream.truncate(size), size)

    def flush(self) -> None:
        self._attempt(self._stream.flush, None)

    def _attempt(self, work: Callable[[], T], otherwise: T) -> T:
        if self._fault is None:
            try:
                return work()
            except BaseException as error:  # noqa: BLE001 - Ctrl-C too; `faults` raises it
                self._fault = error
        return otherwise

    @contextlib.contextmanager
    def faults(self) -> Iterator[None]:
        """Raises the first exception, in place of what the library says of it."""
        try:
            yield
        finally:
            if self._fault is not None:
                raise self._fault
