#!/usr/bin/env python3
"""Instructions of the inner loops of ternary, skipping and screening kernels, read from a binary's assembly.

usage: count_loops.py BINARY [OBJDUMP]

For every function of a kernel file of one instruction set: of the loops that multiply, and have none inside that does, the
one with most multiplying instructions (one of MULTIPLY), as `name  instruction  how many of it  instructions in the loop`. Works for x86-64 and, with a cross objdump, for aarch64.
"""
import re
import subprocess
import sys

MULTIPLY = [
    "tdpbsud", "vpdpbusd", "vpmaddubsw", "sdot", "smmla", "smlal", "smlal2",
    "tbl", "vpshufb", "vpermb", "vpermi2b", "vpermt2b",
]
KERNEL = re.compile(r"bitnet_cpu::kernels::((?:ternary|skip|screen)::(?:\w+::)+\w+)")
FUNCTION = re.compile(r"^([0-9a-f]+) <(.*)>:$")
LINE = re.compile(r"^\s*([0-9a-f]+):\s+(?:\{\w+\}\s+)?(\S+)\s*(.*)$")
TARGET = re.compile(r"\b([0-9a-f]+)(?: <|$)")


def loops(instructions):
    """Loops: from a target to the last branch back to it."""
    place = {address: i for i, (address, _, _) in enumerate(instructions)}
    found = {}
    for i, (_, name, operands) in enumerate(instructions):
        if not re.match(r"^(j\w+|b|b\.\w+|cbn?z|tbn?z)$", name):
            continue
        target = TARGET.search(operands.split(",")[-1].strip())
        start = place.get(int(target[1], 16)) if target else None
        if start is not None and start <= i:
            found[start] = max(found.get(start, i), i)
    return list(found.items())


def best(instructions):
    """The loop with most of one multiplying instruction, of those with no such loop inside."""
    names = [name for _, name, _ in instructions]
    counted = []
    for multiply in MULTIPLY:
        spans = [(a, b, names[a : b + 1].count(multiply)) for a, b in loops(instructions)]
        spans = [span for span in spans if span[2]]
        for a, b, count in spans:
            if not any((c, d) != (a, b) and a <= c and d <= b for c, d, _ in spans):
                counted.append((count, b + 1 - a, multiply))
    # Of two loops with as many of them, the shorter one is the loop and the other its beginning or end.
    return max(counted, key=lambda c: (c[0], -c[1])) if counted else None


def main():
    binary = sys.argv[1]
    objdump = sys.argv[2] if len(sys.argv) > 2 else "objdump"
    command = [objdump, "-d", "--no-show-raw-insn", "-C", binary]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    kernels = {}
    name, body = None, []
    for line in text.splitlines() + ["0 <end>:"]:
        head = FUNCTION.match(line)
        if head:
            count = best(body) if name else None
            if count:
                # Copies of one generic function differ in constants that its symbol does not tell: keep the largest loop.
                kernels[name] = max(kernels.get(name, (0,)), count)
            kernel = KERNEL.search(head[2])
            name, body = (kernel[1] if kernel else None), []
        elif name:
            instruction = LINE.match(line)
            if instruction:
                body.append((int(instruction[1], 16), instruction[2], instruction[3]))
    for name, (many, length, multiply) in sorted(kernels.items()):
        print(f"{name}\t{multiply}\t{many}\t{length}")


main()
