"""Scalars and pictures of a run: `metrics.csv`, appended and flushed row by row, and PNG files."""

from __future__ import annotations

import csv
import io
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from threestudio_rf.core.files import write_files, write_text


class Metrics:
    """A CSV file with the column `step`, the number of finished steps. A full disk costs rows, never the run.

    `resume(step)` drops the rows beyond the resumed step, so that a resumed run leaves the file of an uninterrupted
    one. A new column rewrites the file with a wider header.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.columns = file, ["step"]
        self._failed = False

    def resume(self, step: int) -> None:
        """Keep the rows up to `step`; a last line that was cut by a crash is dropped too."""
        rows = [row for row in self.rows() if row["step"] <= step]
        self.columns = list(dict.fromkeys(name for row in rows for name in row)) or ["step"]
        self._write(rows)

    def rows(self) -> list[dict[str, float]]:
        """The whole file; cells that are empty, cut or no numbers are left out, rows without a step too. A file that
        is no table has no rows."""
        if not self.file.is_file():
            return []
        lines = self.file.read_text(encoding="utf-8", errors="replace")
        whole = lines[: lines.rfind("\n") + 1].replace("\0", "")
        rows = []
        try:
            table = list(csv.DictReader(io.StringIO(whole, newline="")))
        except csv.Error:
            return []
        for row in table:
            cells = {name: cell for name, cell in row.items() if name and isinstance(cell, str)}
            numbers = {name: float(cell) for name, cell in cells.items() if _is_number(cell)}
            if abs(numbers.get("step", math.inf)) < math.inf:
                rows.append(numbers)
        return rows

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Append one row and flush it."""
        row = {"step": float(step), **values}
        if not self.file.is_file() or self.file.is_symlink() or any(name not in self.columns for name in row):
            rows = [*self.rows(), row]
            self.columns += [name for name in row if name not in self.columns]
            self._write(rows)
            return
        try:
            with self.file.open("a", newline="", encoding="utf-8") as handle:
                handle.write(self._line(row))
        except OSError as error:
            self._warn(error)

    def _line(self, row: Mapping[str, float]) -> str:
        return ",".join(_text(row[name]) if name in row else "" for name in self.columns) + "\n"

    def _write(self, rows: list[dict[str, float]]) -> None:
        text = ",".join(self.columns) + "\n" + "".join(self._line(row) for row in rows)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.file, text)
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._failed:
            reason = os.strerror(error.errno or 0)
            warnings.warn(f"{self.file} cannot be written ({reason}); rows are lost", stacklevel=3)
        self._failed = True


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _text(value: float) -> str:
    """Whole numbers without a point, the others with nine digits, so that equal runs give equal files."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else f"{value:.9g}"


def image(file: Path, picture: Tensor) -> None:
    """One picture (3, H, W) in [0, 1] as PNG; values outside are clamped. OSError leaves no file behind."""
    from PIL import Image

    if picture.ndim != 3 or picture.shape[0] != 3:
        raise ValueError(f"picture: got {tuple(picture.shape)}, expected (3, H, W)")
    pixels = (picture.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_files({file: buffer.getvalue()})


def row_of_pictures(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) side by side, (3, H, B W)."""
    return pictures.permute(1, 2, 0, 3).reshape(pictures.shape[1], pictures.shape[2], -1)
