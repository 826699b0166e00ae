"""Relative RMS error of quantized weights on reference distributions.

Weights 256 x 1024, independent, standard deviation 0.02: Gaussian, Laplace, Student-t with 4 degrees of freedom. Rows of
the table: bits 2, 3, 4, 8; blocks of 32, 64, 128 and one per channel. Run from the repository root:

    python benches/weight_error.py [--reference FILE]

With ``--reference``, a Markdown table with columns "weights | bits | block | ... | MNN --hqq | ... | best found", each row
is compared with its best-known error, and the exit code is 1 if `search` is more than the noise of the draw above it
(0.5 %) or above the HQQ of the same draw.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mnnq import _native

SHAPE = (256, 1024)
SIGMA = 0.02
DRAWS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "Gauss": lambda rng: rng.normal(size=SHAPE),
    "Laplace": lambda rng: rng.laplace(size=SHAPE) / np.sqrt(2),
    "Student-t4": lambda rng: rng.standard_t(4, size=SHAPE) / np.sqrt(2),
}
NOISE = 1.005
METHODS = {
    "rtn sym": ("rtn", True),
    "rtn asym": ("rtn", False),
    "hqq": ("hqq", False),
    "hqq_ref": ("hqq_ref", False),
    "search": ("search", False),
    "search sym": ("search", True),
}


def read_reference(path: Path) -> dict[tuple[str, int, str], float]:
    """Best-known error by (weights, bits, block)."""
    best = {}
    for line in path.read_text().splitlines():
        cells = [cell.strip(" *") for cell in line.strip().strip("|").split("|")]
        if len(cells) >= 9 and cells[0] in DRAWS and cells[1].isdigit():
            best[cells[0], int(cells[1]), cells[2]] = float(cells[8])
    return best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, help="Markdown table of best-known errors")
    arguments = parser.parse_args()
    reference = read_reference(arguments.reference) if arguments.reference else {}

    columns = [*METHODS, *(["reference", "search / reference"] if reference else [])]
    print("| weights | bits | block | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 3) + "|")
    failures = []
    start = time.perf_counter()
    for name, draw in DRAWS.items():
        weight = (draw(np.random.default_rng(0)) * SIGMA).astype(np.float32)
        for bits in (2, 3, 4, 8):
            for block in (32, 64, 128, None):
                label = str(block) if block else "channel"
                errors = {
                    column: _native.quantize_codes(
                        weight, bits=bits, symmetric=symmetric, block=block, method=method
                    )["stats"]["relative_rms"]
                    for column, (method, symmetric) in METHODS.items()
                }
                cells = [f"{errors[column]:.5f}" for column in METHODS]
                if reference:
                    wanted = reference[name, bits, label]
                    cells += [f"{wanted:.5f}", f"{errors['search'] / wanted:.4f}"]
                    if errors["search"] > wanted * NOISE:
                        failures.append(f"{name} {bits} bit {label}: above the reference")
                if errors["search"] > errors["hqq"]:
                    failures.append(f"{name} {bits} bit {label}: above hqq")
                print(f"| {name} | {bits} | {label} | " + " | ".join(cells) + " |")
    print(f"\n{time.perf_counter() - start:.1f} s", *failures, sep="\n", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
