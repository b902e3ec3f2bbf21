#!/usr/bin/env python3
"""Compiles the kernels for Hopper, reads what the compiler made of them, and writes kernels/REPORT.md.

    tools/kernel_report.py       after tools/toolchain.sh; .ci/run fails where the report is not what this writes

Fails where an early kernel breaks a promise of kernels/README.md in machine code: a way to its end without a wait, a
start of the next in front of its own wait, a store or a load of x before it, or a load that promises that nothing is
written. Registers, spills and bytes of code are of the compiler's release that tools/toolchain.sh names.
"""

import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOOLCHAIN = ROOT / ".toolchain"
REPORT = ROOT / "kernels/REPORT.md"
# What x is loaded by in the kernels for few rows (load_again), and weights (load_once).
LOADS_OF_X = re.compile(r"\bLDG\.E\.128\b")
STORES = re.compile(r"\b(STG|RED|ATOMG?)\b")
# One or two columns of kernels a row.
HEAD = """\
# What the compiler makes of the kernels

For sm_90a, by {compiler}. Written by `tools/kernel_report.py`, which also reads the machine code of early kernels: what
stands in front of their wait. Spills are in bytes; a block's registers are its threads times these.

| kernel | registers | spills | KiB of code | early: loads in front of the wait |
|---|---|---|---|---|
"""


def main() -> int:
    nvcc = (TOOLCHAIN / "nvcc").resolve()
    nvdisasm = (TOOLCHAIN / "nvdisasm").resolve()
    compiler = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release \S+, V(\S+)", compiler)[1]
    sources = sorted((ROOT / "kernels").glob("*.cu"))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        files = list(pool.map(lambda source: Compiled(nvcc, nvdisasm, source, Path(folder)), sources))
    text, broken = HEAD.format(compiler=f"nvcc {release}"), []
    for file in files:
        for kernel in file.kernels:
            early = kernel in file.early
            before = file.before_wait(kernel) if early else ""
            broken += file.faults(kernel) if early else []
            registers, spills = file.used[kernel]
            text += f"| {kernel} | {registers} | {spills or ''} | {file.bytes(kernel) / 1024:.1f} | {before} |\n"
    REPORT.write_text(text)
    for fault in broken:
        print(f"kernel_report.py: {fault}", file=sys.stderr)
    return 1 if broken else 0


class Compiled:
    """One .cu as the compiler and the disassembler show it."""

    def __init__(self, nvcc: Path, nvdisasm: Path, source: Path, folder: Path):
        heads = re.findall(r'extern "C" (EARLY )?__global__ void[^{;]*?(\w+)\(const \w+ p\)', source.read_text())
        self.kernels = [name for _, name in heads]
        self.early = {name for early, name in heads if early}
        cubin = folder / f"{source.stem}.cubin"
        command = [nvcc, "-std=c++17", "-O3", "-cubin", "-Xptxas", "-v", "-I", source.parent, "-o", cubin, source]
        command += ["-gencode", "arch=compute_90a,code=sm_90a"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        self.used = {}
        for part in said.split("Compiling entry function '")[1:]:
            name = part.split("'")[0]
            spills = int(re.search(r"(\d+) bytes spill stores", part)[1])
            self.used[name] = (int(re.search(r"Used (\d+) registers", part)[1]), spills)
        code = subprocess.run([nvdisasm, "-c", cubin], capture_output=True, text=True, check=True).stdout
        self.code = {}
        for part in code.split("\n.text.")[1:]:
            name = part.split(":")[0]
            self.code[name] = re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]*);", part)

    def bytes(self, kernel: str) -> int:
        return 16 * len(self.code[kernel])

    def instructions(self, kernel: str) -> list[str]:
        return [text for _, text in self.code[kernel]]

    def wait(self, kernel: str) -> int | None:
        """Where the first wait stands in the code, which follows the source."""
        places = [at for at, text in enumerate(self.instructions(kernel)) if "ACQBULK" in text]
        return places[0] if places else None

    def before_wait(self, kernel: str) -> int:
        upto = self.instructions(kernel)[: self.wait(kernel)]
        return sum("LDG" in text for text in upto)

    def faults(self, kernel: str) -> list[str]:
        code, wait = self.instructions(kernel), self.wait(kernel)
        if wait is None:
            return [f"{kernel} never waits for the kernel in front"]
        faults = []
        before = code[:wait]
        if any("PREEXIT" in text for text in before):
            faults.append("starts the next kernel before it has waited")
        if any(STORES.search(text) for text in before):
            faults.append("stores before it has waited")
        if any(re.search(r"\bEXIT\b", text) for text in before):
            faults.append("can end before it has waited")
        if any("CONSTANT" in text and "LDG" in text for text in code):
            faults.append("has a load that promises that nothing is written (ld.global.nc)")
        if any("LDG.E.NA.128" in text for text in code) and any(LOADS_OF_X.search(text) for text in before):
            faults.append("loads x before it has waited")
        return [f"{kernel} {fault}" for fault in faults]


if __name__ == "__main__":
    sys.exit(main())
