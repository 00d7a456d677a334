"""The plan of a prediction in parts: every row checked, rows shared out to parts, and known again at the next start.

Several inputs are read side by side, one by one process. The plan stands in ``manifest.json`` beside the parts, with
what tells this prediction from any other: the model, the inputs and the settings that the labels and scores depend on.
"""

import base64
import dataclasses
import re
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ulmfit_pipe.data.row_places import find_rows
from ulmfit_pipe.data.row_streams import check_suffix, unify_types
from ulmfit_pipe.data.table_readers import TableError
from ulmfit_pipe.stages.artifacts import ArtifactError, library_versions, model_identity
from ulmfit_pipe.stages.in_step import run_in_step
from ulmfit_pipe.stages.part_files import RECORDS, DigestSteps, plan_parts
from ulmfit_pipe.stages.predict import BACKWARD
from ulmfit_pipe.stages.predict_columns import check_row
from ulmfit_pipe.stages.run_context import RunContext
from ulmfit_pipe.training.checkpoint import read_json
from ulmfit_pipe.training.record_differences import as_json, differences

if TYPE_CHECKING:
    from ulmfit_pipe.stages.predict_files import PredictFileSettings

MANIFEST = "manifest.json"
KIND = "prediction in parts"
PART_ROWS = 1024  # rows of a part: minutes of work at most, and enough for batches of like lengths
MOST_PARTS = 1000  # of an input of many rows; its parts are larger
COUNTED = ("part_rows", "text_column", "all_scores", "empty_text", "chunk_rows")  # what the parts' content depends on


class ShardPlanner:
    """Finds or makes the plan of one prediction.

    Args:
        settings: Its settings; they have a folder of parts.
        sources: The input files, checked one by one.
        context: Processes, and where news goes.

    Attributes:
        folder: The folder of parts.
        suffix: The kind of the parts.

    Raises:
        ValueError: Input or output files are of several kinds, or lie in the folder of parts.
    """

    def __init__(self, settings: "PredictFileSettings", sources: Sequence[Path], context: RunContext) -> None:
        self.settings, self.sources, self.context = settings, list(sources), context
        self.folder = Path(str(settings.output_dir))
        self.rank, self.world_size = context.accelerator.process_index, context.accelerator.num_processes
        self.suffix = self._part_suffix()

    def _part_suffix(self) -> str:
        kinds = sorted({check_suffix(source) for source in self.sources})
        if len(kinds) > 1:
            raise ValueError(f"the input files are of several kinds, {', '.join(kinds)}; predict each kind by itself")
        inside = [source for source in self.sources if source.resolve().parent == self.folder.resolve()]
        if inside:
            raise ValueError(f"the input {inside[0]} lies in output_dir; choose another folder for the parts")
        asked, file = self.settings.part_format, self.settings.output_file
        wanted = None if file is None else check_suffix(Path(file))
        if asked is not None and wanted not in (None, f".{asked}"):
            raise ValueError(f"parts of part_format {asked} cannot be joined to {file}; leave part_format out")
        return f".{asked}" if asked is not None else wanted or kinds[0]

    def plan(self) -> tuple[dict[str, Any], bool]:
        """Return the manifest, and whether it was there before; the same on every process.

        Raises:
            ArtifactError: The folder holds something else, or the parts of another prediction.
            TableError: An input cannot be used.
            ValueError: The processes do not see one folder.
        """
        found = self._found_manifest()
        results = run_in_step(self.context.accelerator, self._digests(known=found is not None))
        if len({result["known"] for result in results}) > 1:
            raise ValueError(
                f"the processes do not see the same folder {self.folder}; output_dir must lie on a disk that all "
                "machines share"
            )
        identity = as_json(self._identity(_in_order([result["inputs"] for result in results])))
        if found is not None:
            self._refuse_other(found, identity)
            return found, True
        tables = _in_order(run_in_step(self.context.accelerator, self._tables()))
        return self._planned(tables, identity), False

    def _found_manifest(self) -> dict[str, Any] | None:
        path = self.folder
        if path.exists() and not path.is_dir():
            raise ArtifactError(f"output_dir {path} is a file; choose another folder")
        if (path / MANIFEST).is_file():
            found = read_json(path / MANIFEST)
            if isinstance(found, dict) and found.get("kind") == KIND:
                return found
        if path.exists() and any(file.name != RECORDS and not file.name.endswith(".tmp") for file in path.iterdir()):
            raise ArtifactError(f"{path} holds files that are no prediction's; choose another output_dir or remove it")
        return None

    def _digests(self, *, known: bool) -> Generator[None, None, dict[str, Any]]:
        """Size and digest of this process' share of the inputs."""
        inputs = {}
        for number in range(self.rank, len(self.sources), self.world_size):
            steps = DigestSteps(self.sources[number])
            yield from steps
            inputs[number] = {"bytes": self.sources[number].stat().st_size, "sha256": steps.sha256}
        return {"known": known, "inputs": inputs}

    def _identity(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        model = Path(self.settings.model)
        return {
            "settings": {name: getattr(self.settings, name) for name in COUNTED}
            | {"part_format": self.suffix[1:], "mixed_precision": self.context.mixed_precision},
            "model": model_identity(self.settings.model),
            "backward model": model_identity(model / BACKWARD) if (model / BACKWARD).is_dir() else None,
            "inputs": inputs,
        }

    def _refuse_other(self, found: dict[str, Any], identity: dict[str, Any]) -> None:
        before, now = len(found["identity"]["inputs"]), len(identity["inputs"])
        changed = [self._named(line) for line in differences(found["identity"], identity)]
        if before != now:
            others = [str(source) for source in self.sources if str(source) not in found["inputs"]]
            new = f"; {others[0]} was not among them" if others else ""
            changed = [line for line in changed if not line.startswith("inputs")]
            changed.append(f"inputs ({before} there, {now} now{new})")
        if changed:
            raise ArtifactError(
                f"{self.folder} holds the parts of another prediction; it differs in {', '.join(changed)}. Choose "
                "another output_dir, or remove this one to predict anew"
            )
        if changed := differences(found["versions"], library_versions()):
            self.context.tell(
                f"the parts that are there were made with other versions: {', '.join(changed)}; the last digits of the "
                "scores may differ from part to part"
            )

    def _named(self, line: str) -> str:
        """Name an input by its file rather than its place."""
        place = re.match(r"inputs\.(\d+)\.", line)
        return f"{self.sources[int(place[1]) - 1]}: {line[place.end() :]}" if place else line

    def _tables(self) -> Generator[None, None, dict[int, dict[str, Any]]]:
        """Check every row of this process' share of the inputs, and note where rows begin."""
        settings, found = self.settings, dict[int, dict[str, Any]]()
        for number in range(self.rank, len(self.sources), self.world_size):
            path = self.sources[number]
            places = yield from find_rows(
                path,
                columns=settings.text_column,
                every=settings.part_rows or PART_ROWS,
                check=partial(
                    check_row, name=str(path), columns=settings.text_column, skip_empty=settings.empty_text == "skip"
                ),
                typed=self.suffix == ".parquet",
            )
            if not places.rows:
                raise TableError(f"{path}: the table is empty, it has no rows to predict")
            found[number] = {
                "rows": places.rows,
                "columns": places.columns,
                "marks": places.marks,
                "schema": schema_to_text(places.schema),
            }
        return found

    def _planned(self, tables: list[dict[str, Any]], identity: dict[str, Any]) -> dict[str, Any]:
        columns, schema = self._one_table(tables)
        rows = sum(table["rows"] for table in tables)
        every = self.settings.part_rows or PART_ROWS
        part_rows = self.settings.part_rows or every * max(1, -(-rows // (MOST_PARTS * every)))
        parts = plan_parts(
            [(table["rows"], table["marks"], every) for table in tables], part_rows=part_rows, suffix=self.suffix
        )
        return {
            "kind": KIND,
            "finished": False,
            "rows": rows,
            "columns": columns,
            "schema": schema_to_text(schema),
            "inputs": [str(source) for source in self.sources],
            "identity": identity,
            "versions": library_versions(),
            "parts": [dataclasses.asdict(part) for part in parts],
        }

    def _one_table(self, tables: list[dict[str, Any]]) -> tuple[list[str], pa.Schema | None]:
        """Columns and types of all inputs together."""
        columns = list(dict.fromkeys(name for table in tables for name in table["columns"]))
        schemas = [schema_of_text(table["schema"]) for table in tables]
        is_json, merged = check_suffix(self.sources[0]) == ".jsonl", schemas[0]
        for path, table, schema in zip(self.sources, tables, schemas, strict=True):
            same = table["columns"] == tables[0]["columns"] and (schema is None or schema.equals(schemas[0]))
            if is_json and schema is not None:
                merged = unify_types(merged, schema, name=str(path))
            elif not is_json and not same:
                raise TableError(
                    f"{path} has other columns than {self.sources[0]}, or others in type or order "
                    f"({', '.join(table['columns'])} and {', '.join(columns)}); files that count as one table need the "
                    "same"
                )
        return columns, merged


def _in_order(shares: Sequence[dict[str, Any]]) -> list[Any]:
    """What the processes found out about their inputs, in the order of the inputs."""
    found = {int(number): fact for share in shares for number, fact in share.items()}
    return [found[number] for number in sorted(found)]


def schema_to_text(schema: pa.Schema | None) -> str | None:
    """Return Arrow types as text that JSON can hold."""
    return None if schema is None else base64.b64encode(schema.serialize()).decode()


def schema_of_text(text: str | None) -> pa.Schema | None:
    """Return the Arrow types that `schema_to_text` wrote."""
    return None if text is None else pa.ipc.read_schema(pa.BufferReader(base64.b64decode(text)))
