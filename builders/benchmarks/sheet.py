"""A spreadsheet of one table as .xlsx, the form in which MMBench's server takes predictions."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import BinaryIO

from vlmix.mixture.errors import VlmixError

_CREATED = datetime(2000, 1, 1)  # same table, same bytes


def write_sheet(file: BinaryIO, header: Sequence[str], rows: Iterable[Sequence[str | int | None]]) -> None:
    """One sheet, `header` in its first row; numbers stay numbers, None is an empty cell. The bytes depend on the
    table alone. Raises VlmixError past what such a file holds: 2^20 rows, 32,767 letters of a text."""
    import xlsxwriter  # only the machine that submits needs it

    options = {"in_memory": True, "strings_to_formulas": False, "strings_to_urls": False}
    with xlsxwriter.Workbook(file, options) as book:
        book.set_properties({"created": _CREATED})
        sheet = book.add_worksheet()
        for number, row in enumerate([header, *rows]):
            for column, cell in enumerate(row):
                if cell is None:
                    continue
                # XML has no other control characters than these.
                text = "".join(c for c in cell if c >= " " or c in "\t\n\r") if isinstance(cell, str) else ""
                failed = sheet.write_string(number, column, text) if text else sheet.write(number, column, cell)
                if failed:
                    raise VlmixError(f"row {number}, column {header[column]!r}: too large for a spreadsheet")
