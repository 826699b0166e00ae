"""Tables as text: aligned columns, or rich tables on a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mnnq.report.quantization import LayerReport, QuantizationReport


@dataclass(frozen=True)
class Table:
    """Rows of text under headings.

    Attributes
    ----------
    right
        Indices of the columns that are aligned to the right (numbers).
    footer
        A last row of totals, or None.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[int] = frozenset()
    footer: tuple[str, ...] | None = None

    def text(self) -> str:
        """Return the table as aligned plain text, no line ending in spaces."""
        rows = [self.columns, *self.rows, *([self.footer] if self.footer else [])]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.columns))]
        rule = "  ".join("-" * width for width in widths)
        lines = [self.title] if self.title else []
        lines += [self._line(self.columns, widths), rule]
        lines += [self._line(row, widths) for row in self.rows]
        if self.footer:
            lines += [rule, self._line(self.footer, widths)]
        return "\n".join(lines) + "\n"

    def _line(self, row: Sequence[str], widths: Sequence[int]) -> str:
        cells = [
            cell.rjust(width) if i in self.right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    def print_rich(self) -> None:
        """Print the table to the terminal."""
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table as RichTable

        table = RichTable(title=self.title or None, title_justify="left", show_footer=self.footer is not None)
        for i, column in enumerate(self.columns):
            footer = self.footer[i] if self.footer else ""
            table.add_column(
                column, footer=footer, justify="right" if i in self.right else "left", overflow="fold"
            )
        for row in self.rows:
            table.add_row(*(escape(cell) for cell in row))
        Console().print(table)


def size(count: int) -> str:
    """A number of bytes for people: ``512 B``, ``1.5 KB``, ``12.3 MB`` (powers of 1000)."""
    value, unit = float(count), "B"
    for larger in ("KB", "MB", "GB", "TB"):
        if value < 999.95:
            break
        value, unit = value / 1000, larger
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def quantization_table(report: QuantizationReport) -> Table:
    """Per layer: bits, scheme, block, method, bytes before and after, weight error; and the totals."""
    rows: tuple[tuple[str, ...], ...] = tuple(_row(layer) for layer in report.layers)
    before, after = report.bytes_before, report.bytes_after
    ratio = f"{before / after:.2f}x" if after else "-"
    footer = (
        f"{len(report.quantized)} of {len(report.layers)} quantized",
        "",
        "",
        "",
        "",
        "",
        "",
        size(before),
        size(after),
        ratio,
    )
    columns: tuple[str, ...] = (
        "layer",
        "type",
        "shape",
        "bits",
        "scheme",
        "block",
        "method",
        "before",
        "after",
        "SQNR dB",
    )
    if report.samples is None:
        return Table("", columns, rows, frozenset({3, 5, 7, 8, 9}), footer)
    rows = tuple((*row, *_calibrated(layer)) for row, layer in zip(rows, report.layers, strict=True))
    columns = (*columns, "output error", "mean error")
    return Table("", columns, rows, frozenset({3, 5, 7, 8, 9, 10, 11}), (*footer, "", ""))


def _calibrated(layer: LayerReport) -> tuple[str, str]:
    """Errors of a layer on calibration data, before and after."""

    def pair(before: float | None, after: float | None) -> str:
        return "-" if before is None or after is None else f"{before:.2%} -> {after:.2%}"

    return (
        pair(layer.output_error_before, layer.output_error_after),
        pair(layer.bias_error_before, layer.bias_error_after),
    )


def _row(layer: LayerReport) -> tuple[str, ...]:
    return (
        layer.label,
        layer.op_type,
        "x".join(map(str, layer.shape)),
        _bits(layer.bits),
        layer.scheme or "-",
        block(layer),
        layer.method or "-",
        size(layer.bytes_before),
        size(layer.bytes_after),
        decibel(layer.sqnr_db),
    )


def _bits(bits: int) -> str:
    return {16: "fp16", 32: "float"}.get(bits, str(bits))


def block(layer: LayerReport) -> str:
    """Block of a layer: the input channels that share a scale, or ``channel`` for one scale per output channel."""
    if not layer.quantized:
        return "-"
    return "channel" if layer.block_used is None else str(layer.block_used)


def decibel(value: float | None) -> str:
    """A signal-to-noise ratio; ``exact`` when there is no noise."""
    if value is None:
        return "-"
    return "exact" if math.isinf(value) and value > 0 else f"{value:.1f}"
