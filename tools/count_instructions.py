"""Instructions of the inner loops of the aarch64 kernels beside the least that there can be.

    python tools/count_instructions.py [--folder target/a64-tools] [--binary FILE] [--check]

Disassembles the tests of the kernels as `tools/aarch64/test.sh` builds them. For each microkernel the loop with the most
products is taken. The least count is its vector arithmetic (products, and what unpacks or adds up their operands), its
loads from memory other than the stack, and two instructions to count and branch: what is above is addresses, copies of
registers, broadcasts and spills. ``--check`` fails if a loop has more than 15 % of them (`EXCEPTIONS` aside).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Symbols of microkernels and the instruction that multiplies in them.
FAMILIES = {
    "gemm_i8 smmla": (r"gemm_i8.*tile_smmla", ("smmla",)),
    "gemm_i8 sdot": (r"gemm_i8.*tile_sdot", ("sdot",)),
    "gemm_i8 neon": (r"gemm_i8.*tile_wide", ("smlal", "smlal2")),
    "gemm_w4 sdot": (r"gemm_w4.*tile_sdot", ("sdot",)),
    "gemm_w4 neon": (r"gemm_w4.*tile_wide", ("smull", "smull2")),
    "gemm_f32 neon": (r"gemm_f32.*tile_neon", ("fmla",)),
    "gemm_half fp16": (r"gemm_half.*tile_fp16", ("fmla",)),
}

#: Largest share above the least count.
ALLOWED = 0.15

#: Plain Advanced SIMD has no multiplication by a group of four bytes: they are broadcast for each row first.
EXCEPTIONS = {"gemm_w4 neon": 0.65}

_LINE = re.compile(r"\s*([0-9a-f]+):\s+([a-z0-9.]+)\s*(.*)")
_HEAD = re.compile(r"^[0-9a-f]+ <(.+)>:$")
#: Vector arithmetic that the work needs.
_ARITHMETIC = frozenset(
    [
        "smmla",
        "sdot",
        "smlal",
        "smlal2",
        "smull",
        "smull2",
        "fmla",
        "saddlp",
        "sadalp",
        "addp",
        "add",
        "and",
        "ushr",
        "sxtl",
        "sxtl2",
        "sshll",
        "sshll2",
    ]
)
_LOADS = frozenset(["ldr", "ldp", "ldur", "ld1", "ld1r"])


@dataclass(frozen=True)
class Loop:
    """One loop: its instructions, how many multiply, how much arithmetic and how many loads there are."""

    instructions: int
    products: int
    arithmetic: int
    loads: int

    @property
    def least(self) -> int:
        """The least number of instructions for this work."""
        return self.arithmetic + self.loads + 2

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
        names = [name for _, name, _ in part]
        arithmetic = sum(name in _ARITHMETIC and operands.startswith("v") for _, name, operands in part)
        loads = sum(name in _LOADS and "[sp" not in operands for _, name, operands in part)
        yield Loop(len(part), sum(name in multiply for name in names), arithmetic, loads)


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
    print("| kernel | instructions | products | arithmetic | loads | least | above |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for family, loop in found.items():
        counts = (loop.instructions, loop.products, loop.arithmetic, loop.loads, loop.least)
        print(f"| {family} | {' | '.join(map(str, counts))} | {loop.excess:.0%} |")
    if missing := FAMILIES.keys() - found.keys():
        sys.exit(f"no loop found of: {', '.join(sorted(missing))}")
    limits = {family: EXCEPTIONS.get(family, ALLOWED) for family in found}
    if above := [family for family, loop in found.items() if args.check and loop.excess > limits[family]]:
        sys.exit(f"too many instructions above the least: {', '.join(above)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
