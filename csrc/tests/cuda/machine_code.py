"""What nvcc makes of the CUDA kernels, held against what is expected of it.  No GPU is needed.

Compiles csrc/cuda/*.cu with the flags and for the architectures of the build. Registers, stack and
spills of every kernel must not exceed csrc/tests/cuda/budget.csv, nor for one architecture the
loops that load serially, see sass.py; --write makes that file anew. The hot kernels need wide
loads and stores in their loops, and may use no local memory. Reading machine code needs nvdisasm:
on PATH, or by `pip install nvidia-cuda-nvdisasm`.
"""
import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from sass import Kernel, disassembled

CUDA = Path(__file__).resolve().parents[2] / "cuda"
BUDGET = Path(__file__).with_name("budget.csv")
ARCH = "90"  # whose machine code is read
# the paper's network, the weight gradient and the projection of bits; they keep everything in
# registers
HOT = re.compile(r"\w+<float.*\bPaperSpec\b|(lsnn_\w+|spike_product|linear_forward)_kernel<")


class Figures(NamedTuple):
    registers: int  # of a thread, as they are handed out: by eights
    stack: int      # bytes
    spills: int     # bytes, stores and loads
    serial: int = 0  # loops that load serially; of the architecture that is read


Table = dict[tuple[str, str], Figures]  # by kernel and architecture


def of_the_build() -> tuple[list[str], list[str]]:
    """Flags and architectures, from where the build has them."""
    text = (CUDA / "CMakeLists.txt").read_text()
    flags = re.search(r"target_compile_options\(cuda_kernels PRIVATE (.*?)\)", text)
    level = re.search(r'set\(CMAKE_CUDA_FLAGS_RELEASE "(.*?)"\)', text)
    archs = re.search(r"set\(CMAKE_CUDA_ARCHITECTURES ([\w -]+)\)", text)
    if not flags or not level or not archs:
        raise SystemExit(f"{CUDA}/CMakeLists.txt: expected the flags of cuda_kernels, the "
                         f"optimization, architectures")
    # the folder of the build is no matter here
    kept = [flag for flag in flags[1].split() if "CMAKE" not in flag]
    return ["-std=c++20", *level[1].split(), *kept], re.findall(r"\d+", archs[1])


# ------------------------------------------------------------------------------------------- budget
def figures(output: str) -> Iterator[tuple[str, Figures]]:
    """By mangled name, from the output of ptxas."""
    for part in output.split("Compiling entry function '")[1:]:
        found = [
            re.search(what, part)
            for what in (
                r"Used (\d+) registers",
                r"(\d+) bytes stack frame",
                r"(\d+) bytes spill stores",
                r"(\d+) bytes spill loads",
            )
        ]
        numbers = [int(number[1]) for number in found if number]
        if len(numbers) != len(found):
            raise SystemExit(f"expected the figures of ptxas -v, got {part}")
        registers, stack, stores, loads = numbers
        yield part[:part.index("'")], Figures((registers + 7) // 8 * 8, stack, stores + loads)


def short_names(mangled: set[str]) -> dict[str, str]:
    """forward_kernel<float, PaperSpec, 1, true> and the like."""
    done = subprocess.run(["c++filt", *mangled], capture_output=True, text=True, check=True)
    names = (re.sub(r"lsnn::(cuda::)?", "", line.removeprefix("void "))
             for line in done.stdout.splitlines())
    return {long: name[:name.rindex("(")] for long, name in zip(mangled, names, strict=True)}


def read_budget() -> tuple[str, Table]:
    if not BUDGET.exists():
        return "no compiler", {}
    compiler, *lines = BUDGET.read_text().splitlines()
    table = {(row["kernel"], row["arch"]): Figures(*(int(row[name]) for name in Figures._fields))
             for row in csv.DictReader(lines)}
    return compiler.removeprefix("# "), table


def write_budget(compiler: str, found: Table) -> None:
    with BUDGET.open("w", newline="") as file:
        file.write(f"# {compiler}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["kernel", "arch", *Figures._fields])
        writer.writerows(
            [*key, *found[key]] for key in sorted(found, key=lambda key: (key[0], int(key[1])))
        )


def over_budget(compiler: str, found: Table) -> Iterator[str]:
    for (kernel, arch), now in found.items():
        if HOT.match(kernel) and (now.stack or now.spills):
            yield (
                f"sm_{arch} {kernel}: expected nothing in local memory, found {now.stack} bytes of "
                f"stack"
            )
    made_with, budget = read_budget()
    if made_with != compiler:
        print(f"skipped: comparing with {BUDGET.name}, which is of {made_with}")
        return
    for (kernel, arch), now in found.items():
        most = budget.get((kernel, arch))
        if not most:
            yield f"sm_{arch} {kernel}: not in {BUDGET.name}, see --write"
            continue
        for name, have, limit in zip(Figures._fields, now, most, strict=True):
            if have > limit:
                yield f"sm_{arch} {kernel}: {have} {name}, the budget has {limit}"
    archs = {arch for _, arch in found}
    for kernel, arch in sorted(key for key in budget.keys() - found.keys() if key[1] in archs):
        yield f"sm_{arch} {kernel}: no such kernel, but {BUDGET.name} has it, see --write"


# ------------------------------------------------------------------------------------- machine code
ROW_SHARED, ROW_GLOBAL = r"LDS\.128", r"LDG\.E\.128\.CONSTANT"


def loop_of(name: str) -> dict[str, int]:
    """Instructions that the hot loop of a kernel has at least, by patterns; of STAS and HMMA it has
    exactly so many."""
    numbers = [int(number) for number in re.findall(r"\d+", name[name.index("<"):])]
    if name.startswith(("forward", "backward")):  # several weight rows at once
        row = ROW_SHARED if name.endswith("true>") else ROW_GLOBAL
        return {row: 8 if name.startswith("backward") else 4}
    if name.startswith("lsnn_forward"):  # a step: four rows for each warp, z and y of full quads
        in_shared, is_whole, number = name[:-1].split(", ")[1:]
        full = is_whole == "true" and number == "float"
        row = ROW_SHARED if in_shared == "true" else ROW_GLOBAL
        return {row: 4 * numbers[0], "LDGDEPBAR": 1, "VOTE": 4,
                **({r"STG\.E\.128": 2, r"LDGSTS\..*128": 1} if full else {"LDGSTS": 1})}
    if name.startswith("lsnn_backward"):
        return {ROW_SHARED: 3 * numbers[0], "LDGDEPBAR": 1, "LDGSTS": 2}
    if name.startswith("lsnn_block"):
        warps, parts = numbers
        return {"HMMA": 4 * warps * parts, "LDGDEPBAR": 1, r"LDS\.64": 2 * warps,
                **({ROW_SHARED: 4 * warps} if parts > 1 else {})}
    if name.startswith("lsnn_matrix"):
        words, parts = numbers
        return {"HMMA": words * parts * (parts + 1) // 2, "LDGDEPBAR": 1,
                ROW_SHARED: (words // 2 + 1) * parts, r"STAS\.128": 2 * parts}
    if name.startswith("spike_product"):  # 16 mma for each part of a float
        return {"HMMA": 16 * numbers[0], **({r"LDG\.E\.128": 4} if "<true" in name else {})}
    return {ROW_GLOBAL: 2 * numbers[0], "FADD": 1}  # linear_forward: two inputs


def faults_in_code(name: str, kernel: Kernel) -> Iterator[str]:
    """What is wrong with the machine code of a hot kernel."""
    wanted = loop_of(name)
    loop = kernel.loop_with(wanted)
    if loop is None:
        yield f"{name}: expected a loop with at least {wanted}, found none"
        return
    for what, n in wanted.items():
        if what.startswith(("HMMA", "STAS")) and (found := len(kernel.find(what, loop))) != n:
            yield f"{name}: expected {n} {what} in the loop, found {found}"
    if kernel.find("LDL|STL"):
        yield f"{name}: expected only registers, found local memory"
    if kernel.find("CCTL", loop):
        yield f"{name}: expected a loop that keeps the L1 cache, found CCTL"


def find_nvdisasm() -> str | None:
    if on_path := shutil.which("nvdisasm"):
        return on_path
    try:
        files = metadata.distribution("nvidia-cuda-nvdisasm").files or []
    except metadata.PackageNotFoundError:
        return None
    return next((str(file.locate()) for file in files if file.name == "nvdisasm"), None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the budget anew")
    parser.add_argument("--archs", nargs="+", metavar="XY",
                        help="only these of the build's architectures, e.g. 75 90")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at a time")
    arguments = parser.parse_args()
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc")
    if not nvcc:
        print("expected nvcc on PATH or in CUDACXX, found none")
        return 2
    flags, archs = of_the_build()
    if arguments.archs:
        if arguments.write or not set(arguments.archs) <= set(archs):
            parser.error(f"--archs: expected some of {' '.join(archs)}, and no --write")
        archs = arguments.archs
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    compiler = "nvcc " + re.findall(r"V([\d.]+)", version)[0]
    print(f"{compiler} {' '.join(flags)}: sm_{', sm_'.join(archs)}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-B", str(CUDA.parent / "model_table.py"), folder],
                       check=True)

        def compiled(source: Path, arch: str) -> tuple[str, str, Path]:
            cubin = Path(folder) / f"{source.stem}_{arch}.cubin"
            target = f"-gencode=arch=compute_{arch},code=sm_{arch}"
            command = [nvcc, *flags, f"-I{folder}", target, "-Xptxas=-v", "-cubin", str(source),
                       "-o", str(cubin)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
            return arch, done.stdout + done.stderr, cubin

        with ThreadPoolExecutor(arguments.jobs) as pool:
            jobs = [(source, arch) for source in sorted(CUDA.glob("*.cu")) for arch in archs]
            results = list(pool.map(lambda job: compiled(*job), jobs))
        every = [(name, arch, now) for arch, output, _ in results for name, now in figures(output)]
        names = short_names({name for name, _, _ in every})
        # a kernel of two files is the same in both
        found = {(names[name], arch): now for name, arch, now in every}
        nvdisasm = find_nvdisasm()
        wrong: list[str] = []
        if nvdisasm is None:
            print("skipped: reading machine code, as there is no nvdisasm; pip install "
                  "nvidia-cuda-nvdisasm")
        for cubin in [cubin for arch, _, cubin in results if nvdisasm and arch == ARCH]:
            for mangled, code in disassembled(str(nvdisasm), cubin).items():
                name = names[mangled]
                found[name, ARCH] = found[name, ARCH]._replace(serial=len(code.serial_loops()))
                if HOT.match(name) and not re.match(r"replay|\w+_step_", name):
                    wrong += faults_in_code(name, code)
        if arguments.write:
            if not nvdisasm:
                raise SystemExit("--write: expected nvdisasm, found none")
            write_budget(compiler, found)
        wrong += over_budget(compiler, found)
        if not any(HOT.match(kernel) for kernel, _ in found):
            wrong.append(f"expected kernels whose names match {HOT.pattern}, found none")
        print(f"registers for sm_{', sm_'.join(archs)}:")
        for kernel in sorted({kernel for kernel, _ in found if HOT.match(kernel)}):
            figures_here = (found[kernel, arch] for arch in archs)
            print(f"    {kernel}:",
                  *(f"{now.registers}" + f" ({now.spills} bytes spilled)" * (now.spills > 0)
                    for now in figures_here))
        print(f"loops that load serially, sm_{ARCH}:")
        for (kernel, arch), now in sorted(found.items()):
            if now.serial and arch == ARCH:
                print(f"    {kernel}: {now.serial}")
    print(*wrong, f"{len(found)} kernels, {len(wrong)} faults", sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
