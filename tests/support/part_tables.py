"""Tables on the disk, written and read back, and parts of them read in the order of their names."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def write_table(path: Path, columns: dict[str, list]) -> Path:
    """Write a table of the kind that the suffix tells."""
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path, row_group_size=500)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([columns, *(row.values() for row in rows)])
    return path


def read_table(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a table."""
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True))


def read_parts(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of all parts, in the order of their names."""
    return [row for path in sorted(folder.glob("part-*")) for row in read_table(path)]
