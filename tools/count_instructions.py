"""Instructions of the inner loops of the aarch64 kernels beside the least that there can be.

    python tools/count_instructions.py [--folder target/a64-tools] [--binary FILE] [--check]

Disassembles the tests of the kernels as `tools/aarch64/test.sh` builds them. For each microkernel the loop with the most
products is taken. The least count is one instruction per vector of products, one per pair of vectors loaded, and two to
count and branch. ``--check`` fails if a loop has more than 15 % above that.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Symbols of microkernels and the instruction that multiplies in them.
FAMILIES = {
    "gemm_i8 smmla": (r"gemm_i8.*tile_smmla", ("smmla",)),
    "gemm_i8 sdot": (r"gemm_i8.*tile_sdot", ("sdot",)),
    "gemm_i8 neon": (r"gemm_i8.*tile_wide", ("smlal", "smlal2")),
    "gemm_w4 sdot": (r"gemm_w4.*tile_sdot", ("sdot",)),
    "gemm_w4 neon": (r"gemm_w4.*tile_wide", ("smlal", "smlal2")),
    "gemm_f32 neon": (r"gemm_f32.*tile_neon", ("fmla",)),
    "gemm_half fp16": (r"gemm_half.*tile_fp16", ("fmla",)),
}

#: Largest share above the least count.
ALLOWED = 0.15

_LINE = re.compile(r"\s*([0-9a-f]+):\s+([a-z0-9.]+)\s*(.*)")
_HEAD = re.compile(r"^[0-9a-f]+ <(.+)>:$")
_VECTOR_LOAD = {"ldr": 1, "ldp": 2, "ldur": 1, "ld1": 1}


@dataclass(frozen=True)
class Loop:
    """One loop: its instructions, how many multiply, how many vectors are loaded."""

    instructions: int
    products: int
    vectors: int
    unpacking: int

    @property
    def least(self) -> int:
        """The least number of instructions for this work."""
        return self.products + (self.vectors + 1) // 2 + self.unpacking + 2

    @property
    def excess(self) -> float:
        """Share above the least."""
        return self.instructions / self.least - 1


def functions(text: str) -> Iterator[tuple[str, list[tuple[int, str, str]]]]:
    """Names and instructions (address, name, operands) of a disassembly."""
    name, body = "", []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            if body:
                yield name, body
            name, body = head[1], []
        elif found := _LINE.match(line):
            body.append((int(found[1], 16), found[2], found[3]))
    if body:
        yield name, body


def loops(body: list[tuple[int, str, str]], multiply: tuple[str, ...]) -> Iterator[Loop]:
    """The innermost loops of a function: from the target of a backward branch to the branch."""
    place = {address: index for index, (address, _, _) in enumerate(body)}
    spans = []
    for index, (address, name, operands) in enumerate(body):
        target = re.search(r"\b([0-9a-f]+) <", operands)
        if name.startswith(("b.", "cb", "tb")) and target and int(target[1], 16) <= address:
            start = place.get(int(target[1], 16))
            if start is not None:
                spans.append((start, index))
    for start, end in spans:
        if any(start <= s and e <= end and (s, e) != (start, end) for s, e in spans):
            continue
        part = body[start : end + 1]
        names = Counter(name for _, name, _ in part)
        vectors = sum(
            _VECTOR_LOAD.get(name, 0) for _, name, operands in part if re.match(r"\{?[qv]\d", operands)
        )
        # Nibbles are split by one instruction per vector of codes.
        unpacking = names["and"] + names["ushr"] if "ushr" in names else 0
        yield Loop(len(part), sum(names[name] for name in multiply), vectors, unpacking)


def measure(disassembly: str) -> dict[str, Loop]:
    """The loop with the most products of each family."""
    best: dict[str, Loop] = {}
    for name, body in functions(disassembly):
        for family, (pattern, multiply) in FAMILIES.items():
            if re.search(pattern, name):
                found = [loop for loop in loops(body, multiply) if loop.products]
                for loop in [*found, *([best[family]] if family in best else [])]:
                    if family not in best or loop.products > best[family].products:
                        best[family] = loop
    return best


def newest_binary(target: Path) -> Path:
    """The tests of the kernels that were built last."""
    found = [
        path
        for path in (target / "aarch64-unknown-linux-gnu/release/deps").glob("mnnq_kernels-*")
        if not path.suffix
    ]
    if not found:
        sys.exit("no tests of the kernels for aarch64: run tools/aarch64/test.sh first")
    return max(found, key=lambda path: path.stat().st_mtime)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("target/a64-tools"), help="the tool chain")
    parser.add_argument("--binary", type=Path, help="default: the tests of the kernels in target/a64")
    parser.add_argument("--check", action="store_true", help="fail if a loop is more than 15 %% above")
    args = parser.parse_args()
    binary = args.binary or newest_binary(Path("target/a64"))
    command = [args.folder / "bin/objdump-a64", "-d", "--no-show-raw-insn", "--demangle", binary]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = measure(text)
    print("| kernel | instructions | products | vectors loaded | least | above |")
    print("| --- | --- | --- | --- | --- | --- |")
    for family, loop in found.items():
        print(
            f"| {family} | {loop.instructions} | {loop.products} | {loop.vectors} | {loop.least} | {loop.excess:.0%} |"
        )
    if missing := FAMILIES.keys() - found.keys():
        sys.exit(f"no loop found of: {', '.join(sorted(missing))}")
    worst = max(found, key=lambda family: found[family].excess)
    if args.check and found[worst].excess > ALLOWED:
        sys.exit(f"{worst}: {found[worst].excess:.0%} above the least, at most {ALLOWED:.0%} wanted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
