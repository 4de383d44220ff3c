"""Rows of one file of any kind; a row that cannot be read is a row with a fault, not the end of the file."""

from collections.abc import Iterator

from lora_select.data.reading import archives
from lora_select.data.reading.raw import RawRow, text_stream
from lora_select.data.reading.read_json import json_file, json_lines
from lora_select.data.reading.read_tables import columnar, csv_rows, tsv_rows
from lora_select.data.reading.read_text import paragraphs, sections
from lora_select.data.reading.source_files import DataFile
from lora_select.errors import InputError

_READERS = {
    "jsonl": json_lines,
    "json": json_file,
    "csv": csv_rows,
    "tsv": tsv_rows,
    "text": paragraphs,
    "markdown": sections,
}


def read_rows(file: DataFile) -> Iterator[RawRow]:
    """All rows of one file or archive member, one after the other.

    Raises:
        InputError: the file as a whole cannot be read: damaged, broken JSON, an unknown encoding.
    """
    with archives.opened(file.path, file.member, file.name) as stream:
        try:
            if file.kind in ("parquet", "arrow"):
                yield from columnar(file, stream)
            else:
                yield from _READERS[file.kind](file.name, text_stream(stream))
        except UnicodeError as error:
            reason = " ".join(str(error).split())[:120]
            raise InputError(
                f"{file.name} is in no encoding that is known here ({reason}); convert it to UTF-8"
            ) from error
