"""Parquet tables of prompts: only the columns that may be wanted, within bounds.

Knows Arrow, and that a small file can hold a huge table. Does not know what a sound prompt is.

Tested in tests/prompts/test_files.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refusal_lens.errors import RefusalLensError
from refusal_lens.prompts.contrast import (
    COMPANION_FIELDS,
    JOINED,
    LABEL_FIELDS,
    TEXT_FIELDS,
    Record,
)

MAX_ROWS = 1_000_000
MAX_BYTES = 256 * 2**20
"""Of the columns read, unpacked: a thousand times what prompt sets are."""

_FAULTS_SHOWN = 20


def read_parquet(
    path: Path, text_field: str | None, faults: list[str]
) -> tuple[list[Record], list[str]]:
    """Read the columns that may be wanted, `text_field` among them; rows count from 1.

    Returns the records and the names of all columns; `faults` is told of what cannot be read.

    Raises:
        RefusalLensError: pyarrow is missing, or the table is too large to be one of prompts.
    """
    # Imported here: it takes longer than all the rest of this package's reading.
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise RefusalLensError(
            f"{path}: reading Parquet needs pyarrow, which is not installed. "
            "Run: pip install pyarrow"
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = list(file.schema_arrow.names)
            wanted = _wanted(columns, text_field)
            _check_sizes(path, file.metadata, wanted)
            return _read_columns(path, wanted, faults), columns
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, RefusalLensError):
            raise
        faults.append(f"{path}: not a valid Parquet file. Write or download it again.")
        return [], []


def _wanted(columns: Sequence[str], text_field: str | None) -> list[str]:
    """Choose the columns whose names may be those of texts, labels and parts of prompts."""
    asked = [] if text_field is None else [text_field, *text_field.split(JOINED)]
    known = (*TEXT_FIELDS, *LABEL_FIELDS, *COMPANION_FIELDS, *asked)
    names = {name.strip().casefold() for name in known}
    return [name for name in columns if name.casefold() in names]


def _check_sizes(path: Path, metadata: Any, wanted: Sequence[str]) -> None:
    """Refuse tables that unpack to more than prompts can be."""
    n_bytes = 0
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for index in range(row_group.num_columns):
            column = row_group.column(index)
            if column.path_in_schema.split(".")[0] in wanted:
                n_bytes += column.total_uncompressed_size
    _refuse_large(path, metadata.num_rows, n_bytes)


def _refuse_large(path: Path, n_rows: int, n_bytes: int) -> None:
    if n_rows > MAX_ROWS or n_bytes > MAX_BYTES:
        raise RefusalLensError(
            f"{path} unpacks to {n_rows:,} rows and {n_bytes / 2**20:,.0f} MiB of text; prompts "
            f"are read up to {MAX_ROWS:,} rows and {MAX_BYTES // 2**20} MiB. Take fewer of them."
        )


def _read_columns(path: Path, wanted: Sequence[str], faults: list[str]) -> list[Record]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        schema, n_rows = file.schema_arrow, file.metadata.num_rows
    twice = [name for name in wanted if schema.names.count(name) > 1]
    if twice:
        faults.append(f"{path}: the column {twice[0][:60]} stands twice. Rename one of them.")
        return []
    types = {name: schema.field(name).type for name in wanted}
    flat = [name for name, kind in types.items() if not pyarrow.types.is_nested(kind)]
    # As dictionaries: a text that is repeated a million times is unpacked once.
    with pyarrow.parquet.ParquetFile(path, read_dictionary=flat) as file:
        values = {name: _values(path, name, file.read([name]).column(0), faults) for name in flat}
    # Nested ones are not unpacked: that they are no text is all that matters.
    values |= {name: [[str(types[name])[:60]]] * n_rows for name in wanted if name not in flat}
    return [
        Record(f"{path}:row {row + 1}", {name: column[row] for name, column in values.items()})
        for row in range(n_rows)
    ]


def _values(path: Path, name: str, column: Any, faults: list[str]) -> list[Any]:
    """Turn a column into Python values, and tell of those that cannot be."""
    found: list[Any] = []
    n_bytes = n_faults = 0
    for chunk in column.chunks:
        is_packed = hasattr(chunk, "indices")
        distinct: list[Any] = []
        wrong: dict[int, str] = {}
        for row, scalar in enumerate(chunk.dictionary if is_packed else chunk):
            try:
                distinct.append(scalar.as_py())
            except (ValueError, OverflowError) as error:
                wrong[row] = str(error)[:120]
                distinct.append(None)
        rows = chunk.indices.to_pylist() if is_packed else range(len(distinct))
        for row in rows:
            value = None if row is None else distinct[row]
            n_bytes += len(value) if isinstance(value, str) else 8
            found.append(value)
            if row in wrong and n_faults < _FAULTS_SHOWN:
                n_faults += 1
                faults.append(f"{path}:row {len(found)}: {name} cannot be read: {wrong[row]}.")
        _refuse_large(path, len(found), n_bytes)
    return found
