"""Accuracy of weight quantization on trained models: without data, with data, and MNN's ``--hqq``, on the same inputs.

Per row a model, bits, and block: the metric of the float model, of MNN's file (in MNN's runtime), and of mnnq's files made
without data (``--method auto``) and from calibration samples (the same with data), in mnnq's runtime and, with
``--real``, in MNN's.

    python -m benches.weight_accuracy --data DIR [--row mobilenetv2:4:32 ...] [--samples 64 [--skip 64]] [--real] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import mnnq
from benches.accuracy import float_outputs, mnn_outputs, mnnconvert
from benches.tasks import TASKS, Outputs, Task

#: Model, bits, block (0: per channel), and the figure that counts.
ROWS = (
    ("mobilenetv2", 4, 32, "top1"),
    ("mobilenetv2", 4, 0, "top1"),
    ("squeezenet", 4, 32, "top1"),
    ("squeezenet", 3, 32, "top1"),
    ("vww", 4, 0, "agree"),
    ("vww", 3, 32, "agree"),
    ("nanodet", 4, 32, "f1"),
    ("minilm", 4, 32, "sqnr_db"),
    ("minilm", 4, 0, "sqnr_db"),
    ("mobilenetv2", 8, 0, "sqnr_db"),
    ("squeezenet", 8, 0, "sqnr_db"),
    ("vww", 8, 0, "sqnr_db"),
    ("nanodet", 8, 0, "sqnr_db"),
    ("minilm", 8, 0, "sqnr_db"),
)


def our_outputs(path: Path, task: Task, names: list[str]) -> Outputs:
    """Values of a `.mnn` file in mnnq's runtime."""
    session = mnnq.InferenceSession(path)
    return [list(session.run(names, feeds)) for feeds in task.evaluate]


def measure(
    task: Task, bits: int, block: int, figure: str, args: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """One row of the table."""
    names, reference = float_outputs(task)

    def figures(outputs: Outputs) -> dict[str, float]:
        values = task.metric(outputs, reference)
        return {"value": values[figure], "sqnr_db": values["sqnr_db"]}

    peer = folder / "peer.mnn"
    options = argparse.Namespace(bits=bits, block=block, method="hqq")
    mnnconvert(task.model, peer, options)
    row: dict[str, Any] = {
        "model": task.name,
        "bits": bits,
        "block": block,
        "figure": figure,
        "float": figures(reference)["value"],
        "mnn_hqq": figures(mnn_outputs(peer, task, names)),
    }
    model = mnnq.load(task.model)
    for name, calib in (("free", None), ("calib", task.calib[args.skip : args.skip + args.samples])):
        started = time.perf_counter()
        small = mnnq.quantize_weights(model, bits=bits, block=block or None, method="auto", calib=calib)
        seconds = time.perf_counter() - started
        path = folder / f"{name}.mnn"
        small.save(path)
        row[name] = {**figures(our_outputs(path, task, names)), "seconds": seconds}
        if args.real:
            row[f"{name}_real"] = figures(mnn_outputs(path, task, names))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with models/, images/, text/")
    parser.add_argument("--row", action="append", help="model:bits:block, one row of the table")
    parser.add_argument("--samples", type=int, default=64, help="calibration samples")
    parser.add_argument("--skip", type=int, default=0, help="samples left out before them")
    parser.add_argument("--real", action="store_true", help="run mnnq's files in MNN's runtime, too")
    parser.add_argument("--json", type=Path, help="write all figures to a file")
    args = parser.parse_args()
    rows = []
    print(f"{'model':<12} bits block figure   float   MNN hqq  no data   data ({args.samples} samples)")
    with tempfile.TemporaryDirectory() as name:
        for model, bits, block, figure in ROWS:
            if args.row and f"{model}:{bits}:{block}" not in args.row:
                continue
            row = measure(TASKS[model](args.data), bits, block, figure, args, Path(name))
            rows.append(row)
            cells = [f"{row[key]['value']:8.2f}" for key in ("mnn_hqq", "free", "calib")]
            real = [f"{row[key]['value']:.2f}" for key in ("free_real", "calib_real") if key in row]
            exact = "-" if not np.isfinite(row["float"]) or row["float"] > 1e3 else f"{row['float']:.2f}"
            suffix = f"  in MNN's runtime: {', '.join(real)}" if real else ""
            print(
                f"{model:<12} {bits:>4} {block or 'chan':>5} {figure:<8} {exact:>6} {' '.join(cells)}"
                f"  {row['calib']['seconds']:.1f} s{suffix}",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
