#!/usr/bin/env python3
"""Writes kernels/wgmma.cuh: one function for each number of columns, whose registers PTX wants to be listed.

    tools/make_wgmma.py          .ci/run fails where the file is not what this writes
"""

from pathlib import Path

COLUMNS = (16, 32, 64, 128, 160)
FILE = Path(__file__).parent.parent / "kernels/wgmma.cuh"
HEAD = """\
// wgmma.mma_async of 64 lines by 16 positions by some columns. Written by tools/make_wgmma.py.
//
// Adds to `sums`, or begins with them if not `add`, the products of 64 rows at `a` and the columns at `b`, both 16
// positions of swizzled rows in shared memory (swizzled_rows). In warp w of the warpgroup, with g = lane / 4 and
// t = lane % 4, sums[4 j + k] belongs to line 16 w + 8 (k / 2) + g and column 8 j + 2 t + k % 2.
#pragma once
"""
FUNCTION = """
__device__ inline void wgmma(float (&sums)[{count}], Rows a, Rows b, bool add) {{
#ifdef TRIMTAB_EMULATOR
  emulator::wgmma(sums, {columns}, a, b, add);
#elif TRIMTAB_HOPPER
  asm volatile(
      "{{ .reg .pred p; setp.ne.b32 p, %{add}, 0; "
      "wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.bf16.bf16 {{"
{registers}
      "}}, %{a}, %{b}, p, 1, 1, 0, 0; }}"
      : {operands}
      : "l"(a), "l"(b), "r"(int(add)));
#endif
}}
"""


def function(columns: int) -> str:
    count = columns // 2
    numbers = [f"%{i}" for i in range(count)]
    lines = [", ".join(numbers[at : at + 16]) for at in range(0, count, 16)]
    registers = "\n".join(f'      "{line}{"" if at + 1 == len(lines) else ", "}"' for at, line in enumerate(lines))
    operands = [f'"+f"(sums[{i}])' for i in range(count)]
    rows = [", ".join(operands[at : at + 5]) for at in range(0, count, 5)]
    return FUNCTION.format(
        count=count,
        columns=columns,
        a=count,
        b=count + 1,
        add=count + 2,
        registers=registers,
        operands=",\n        ".join(rows),
    )


FILE.write_text(HEAD + "".join(map(function, COLUMNS)))
