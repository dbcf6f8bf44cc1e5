"""What nvcc makes of the CUDA kernels, held against what is expected of it.  No GPU is needed.

Compiles csrc/cuda/*.cu with the flags and for the architectures of the build, and compares
registers, stack and spills of every kernel with csrc/tests/budget.csv; --write makes that file
anew. Then reads the machine code of the hot kernels, those made for the paper's network: wide loads
and stores, nothing in local memory, no calls; and counts instructions. That part needs nvdisasm: on
PATH, or by `pip install nvidia-cuda-nvdisasm`.
"""
import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from chain import cycles
from sass import Kernel, Loop, Wanted, disassembled

CUDA = Path(__file__).resolve().parents[1] / "cuda"
BUDGET = Path(__file__).with_name("budget.csv")
ARCH = "90"  # whose machine code is read
# the paper's network, the weight gradient and the projection of bits; they keep everything in
# registers
HOT = re.compile(r"\w+<float.*\bPaperSpec\b|(lsnn_\w+|spike_product|linear_forward)_kernel<")
# A step of the paper's forward kernel, with eight spikes, or with 16 whose rows are not in shared
# memory; and of its backward kernels, with twelve active neurons of a warp, or by matrices, with
# two of a warp's tiles of W and one item of a lane, or two: cycles at most, by the model of
# chain.py.
MOST_CYCLES, MOST_CYCLES_GATHER, MOST_CYCLES_BACKWARD = 650, 1000, 1100
MOST_CYCLES_MATRICES = {"lsnn_matrix_kernel<2>": 1100, "lsnn_matrix_kernel<1>": 1400}
# What plan.cpp takes for these steps, and how far it may be from what is counted here: another
# nvcc makes other code.
COSTS = (CUDA / "costs.h").read_text()
COUNTED = {"lsnn_forward_kernel<2, true, true, float>": "lsnn_step",
           "lsnn_forward_kernel<4, false, true, float>": "lsnn_gather_step",
           "lsnn_matrix_kernel<2>": "lsnn_matrix_step",
           "lsnn_matrix_kernel<1>": "lsnn_matrix_pairs_step",
           "lsnn_backward_kernel<7, LsnnBlockGradients>": "lsnn_backward_step"}
MOST_OFF = 0.05


class Figures(NamedTuple):
    registers: int  # of a thread, as they are handed out: by eights
    stack: int      # bytes
    spills: int     # bytes, stores and loads


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
def figures(said: str) -> Iterator[tuple[str, Figures]]:
    """By mangled name, from what ptxas says."""
    for part in said.split("Compiling entry function '")[1:]:
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
    """forward_kernel<float, float, PaperSpec, BlockSpikes, 1, true> and the like."""
    said = subprocess.run(["c++filt", *mangled], capture_output=True, text=True, check=True).stdout
    names = (re.sub(r"lsnn::(cuda::)?", "", line.removeprefix("void "))
             for line in said.splitlines())
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
def find_nvdisasm() -> str | None:
    if on_path := shutil.which("nvdisasm"):
        return on_path
    try:
        files = metadata.distribution("nvidia-cuda-nvdisasm").files or []
    except metadata.PackageNotFoundError:
        return None
    return next((str(file.locate()) for file in files if file.name == "nvdisasm"), None)


def read(name: str, kernel: Kernel) -> Iterator[str]:
    """What is wrong with the code of a hot kernel; prints what was counted. Of each kernel a few
    features are known: four weights are loaded at once, from shared memory or as constants, for
    several rows in one loop; a step of the forward pass makes a word of spikes by three
    shuffles."""
    backward = name.startswith("backward")
    if kernel.find("LDL|STL"):
        yield f"{name}: uses local memory"
    if kernel.find("CALL") and not backward:  # backwards it divides
        yield f"{name}: calls a function"
    for what in ("LDG", "STG"):
        if not kernel.find(rf"{what}\.E\.128"):
            yield f"{name}: expected {what} of 16 bytes, for numbers of four neurons"

    width = "64" if "bfloat16" in name else "128"
    row = rf"LDS\.{width}" if name.endswith("true>") else rf"LDG\.E\.{width}\.CONSTANT"
    at_once = 8 if backward else 4
    rows = next((loop for loop in kernel.loops() if len(kernel.find(row, loop)) >= at_once), None)
    if rows is None:
        yield f"{name}: expected a loop with {at_once} times {row}, for the weight rows"
        return
    wide, sums, barriers = (len(kernel.find(what, rows)) for what in (row, "FADD|FFMA", "BAR"))
    per_row = sums / 4 / at_once  # quads of a row that a round adds
    print(f"{name}\n    {len(kernel.code)} instructions; a round for {at_once} rows: "
          f"{rows.length}, of them {wide} wide loads and {sums} sums; for a row's quad "
          f"{rows.length / at_once / per_row:.1f}")
    if barriers:
        yield f"{name}: a barrier in the loop over weight rows"
    if not backward:
        yield from read_step(name, kernel, rows)


def read_step(name: str, kernel: Kernel, rows: Loop) -> Iterator[str]:
    """The loop over the steps of a forward kernel."""
    def within(pattern: str) -> Wanted:
        places = set(kernel.find(pattern, step))
        return lambda i: i in places

    enclosing = (loop for loop in kernel.loops() if loop.first < rows.first
                 and loop.last > rows.last)
    step = next((loop for loop in enclosing if len(kernel.find(r"SHFL\.BFLY", loop)) == 3), None)
    if step is None or not kernel.find(r"STS\.U16", step):
        yield f"{name}: expected a loop over steps that lists neurons"
        return
    barrier = ["BAR"] if "BlockSpikes" in name else []
    if len(kernel.find("BAR", step)) != len(barrier):
        yield (
            f"{name}: expected {len(barrier)} barriers in a step, found "
            f"{len(kernel.find('BAR', step))}"
        )
    on_the_way = ["POPC", *[r"STG\.E\.128"] * 2, *[r"SHFL\.BFLY"] * 3, *barrier]
    silent = kernel.shortest(step, [within(what) for what in on_the_way])
    listing = [i for i in kernel.find(r"POPC|STS\.U16", step) if i < rows.first]
    words = len(kernel.find(r"STS\.U16", Loop(listing[0], listing[-1])))
    memory, floats = (len([i for i in silent if re.match(kind, kernel.code[i].name)])
                      for kind in ("LD|ST", "F(ADD|MUL|FMA|SETP|SEL)"))
    print(f"    a step without spikes has {len(silent)} at least, of them {memory} of memory, "
          f"{floats} of floats, some {listing[-1] - listing[0] + 1} for {words} words of spikes")


def read_lsnn(name: str, kernel: Kernel) -> Iterator[str]:
    """The kernels of the paper's network: a step is one loop around the loops over further rows."""
    if kernel.find("LDL|STL|CALL"):
        yield f"{name}: uses local memory or calls a function"
    if name.startswith("lsnn_backward"):
        yield from read_lsnn_backward(name, kernel)
        return
    if name.startswith("lsnn_matrix"):
        yield from read_lsnn_matrix(name, kernel)
        return
    of = name[name.index("<") + 1:-1].split(", ")
    warps, in_shared, whole = int(of[0]), of[1] == "true", of[2:] == ["true", "float"]
    copies = r"LDGSTS\..*128" if whole else "LDGSTS"
    step = next((loop for loop in kernel.loops() if kernel.find("LDGDEPBAR", loop)
                 and len(kernel.find("VOTE", loop)) >= 4), None)
    if step is None or not kernel.find(copies, step):
        yield f"{name}: expected a loop over steps with {copies}"
        return
    if (found := len(kernel.find("BAR", step))) != (warps > 1):
        yield f"{name}: expected {int(warps > 1)} barriers in a step, found {found}"
    if not whole:
        return
    # Of a step that has as many spikes as are added at once: 20 sums of the neurons themselves,
    # and those of the rows.
    sums = frozenset(kernel.find("FADD", step))
    path = kernel.shortest(step, [lambda i: i in sums] * (20 + 16 * warps))
    on_path = Counter(kernel.code[i].name for i in path)
    rows = on_path["LDS.128"] - 1 - warps if in_shared else on_path["LDG.E.128.CONSTANT"]
    if rows != 4 * warps or on_path["STG.E.128"] != 2:
        yield (f"{name}: expected a path through a step that loads {4 * warps} rows and stores "
               f"z and y in 16 bytes, found {dict(on_path)}")
        return
    yield from walk(name, kernel, path, f"{4 * warps} spikes",
                    MOST_CYCLES if in_shared else MOST_CYCLES_GATHER)


def walk(name: str, kernel: Kernel, path: Sequence[int], given: str, most: int) -> Iterator[str]:
    """The cycles of a path through a step with what is given."""
    taken = cycles(kernel, path)
    print(f"{name}\n    {len(kernel.code)} instructions; a step with {given} has {len(path)}: "
          f"{taken} cycles by the model of chain.py, nothing measured")
    if taken > most:
        yield f"{name}: {taken} cycles a step by the model, {most} at most"
    if cost := COUNTED.get(name):
        told = re.search(rf"X\({cost}, (\d+),", COSTS)
        if not told or abs(int(told[1]) - taken) > MOST_OFF * taken:
            yield f"costs.h: expected {cost} near {taken}, found {told and told[1]}"


def read_spike_product(name: str, kernel: Kernel) -> Iterator[str]:
    """The weight gradient: a loop of so many mma as a warp's tile has, for 16 items of steps."""
    parts = int(name[name.index(",") + 2])  # of a float
    quads, rows = 4, 4  # of mma beside each other and below each other
    loop = next((loop for loop in kernel.loops() if kernel.find("HMMA", loop)), None)
    if loop is None or (found := len(kernel.find("HMMA", loop))) != parts * quads * rows:
        yield f"{name}: expected a loop with {parts * quads * rows} HMMA, found {loop and found}"
        return
    if kernel.find("LDL|STL|LDS|STS|BAR"):  # it divides before its loop
        yield f"{name}: expected registers alone, found other memory or a barrier"
    if "<true" in name and len(kernel.find(r"LDG\.E\.128", loop)) != quads:
        yield f"{name}: expected {quads} loads of 16 bytes in a round"
    print(f"{name}\n    a round for 16 items of steps, 64 rows and 32 columns: {loop.length} "
          f"instructions, of them {found} of the tensor cores")


def read_linear(name: str, kernel: Kernel) -> Iterator[str]:
    """The projection of bits: the loop over the inputs of a word that are 1, two at a time."""
    quads = int(name[name.index("<") + 1])
    loop = next((loop for loop in kernel.loops() if kernel.find("FADD", loop)), None)
    wide = loop and len(kernel.find(r"LDG\.E\.128\.CONSTANT", loop))
    if loop is None or wide != 2 * quads:
        yield f"{name}: expected a loop with {2 * quads} loads of 16 bytes, found {wide}"
        return
    if kernel.find("LDL|STL"):
        yield f"{name}: expected registers alone, found local memory"
    print(f"{name}\n    two inputs that are 1 are {loop.length} instructions")


def read_lsnn_backward(name: str, kernel: Kernel) -> Iterator[str]:
    """Its backward kernel: the loop over the steps, with what a step copies for later ones."""
    quads = int(name[name.index("<") + 1])
    step = next((loop for loop in kernel.loops() if kernel.find("LDGDEPBAR", loop)), None)
    if step is None or len(kernel.find("LDGSTS", step)) != 2:
        yield f"{name}: expected a loop over steps with two copies"
        return
    in_cluster = "LsnnClusterGradients" in name
    if (found := len(kernel.find("BAR", step))) != (not in_cluster):
        yield f"{name}: expected {int(not in_cluster)} barriers in a step, found {found}"
    if in_cluster:
        sent, waits = (len(kernel.find(what, step)) for what in (r"STAS\.128", "SYNCS"))
        wide = len(kernel.find(r"LDS\.128", step))
        if kernel.find("CCTL", step):
            yield f"{name}: empties the first level cache in a step"
        if sent != 1 or waits < 2 or not wide:
            yield (f"{name}: expected a step with a store of 16 bytes to other blocks, two or more "
                   f"uses of a barrier in memory, and wide loads, found {sent}, {waits}, {wide}")
        return
    # Of a step in which a warp has more than eight active neurons, and twelve at most: the columns
    # of its rows.
    sums, votes = (frozenset(kernel.find(what, step)) for what in ("FFMA", "VOTE"))
    path = kernel.shortest(step, [lambda i: i in sums] * (12 * quads) + [lambda i: i in votes])
    wide = Counter(kernel.code[i].name for i in path)["LDS.128"]
    if wide < 3 * quads:
        yield f"{name}: expected a path through a step with {3 * quads} wide loads, found {wide}"
        return
    yield from walk(name, kernel, path, "twelve active neurons of a warp", MOST_CYCLES_BACKWARD)


def read_lsnn_matrix(name: str, kernel: Kernel) -> Iterator[str]:
    """The same by matrices: in a step what is sent, a round of a warp's product, a barrier, the
    adjoint of one item of a lane or two, and a wait for the other blocks."""
    parts = int(name[name.index("<") + 1])
    items, mma = (2, 4) if parts == 1 else (1, 6)  # of a lane; of a round of two tiles
    step = next((loop for loop in kernel.loops() if kernel.find("LDGDEPBAR", loop)
                 and kernel.find("HMMA", loop)), None)
    if step is None or len(kernel.find("LDGSTS", step)) != 2 * items:
        yield f"{name}: expected a loop over steps with {2 * items} copies and matrices"
        return
    if kernel.find("CCTL", step):
        yield f"{name}: empties the first level cache in a step"
    sent, barriers = (len(kernel.find(what, step)) for what in (r"STAS\.128", "BAR"))
    if sent != 1 or barriers != 1:
        yield (f"{name}: expected a step with a store of 16 bytes to other blocks and a barrier, "
               f"found {sent} and {barriers}")
        return
    at = {what: frozenset(kernel.find(what, step))
          for what in (r"STAS\.128", r"LDS$", "HMMA", "BAR", "SYNCS")}

    def within(what: str) -> Wanted:
        return lambda i: i in at[what]

    # y, dL/dz and adaptation of each item, then the parts of its sum
    path = kernel.shortest(step, [
        within(what) for what in (r"STAS\.128", *[r"LDS$"] * (3 * items), *["HMMA"] * mma, "BAR",
                                  *[r"LDS$"] * (4 * items), "SYNCS")])
    if not path:
        yield f"{name}: expected a path through a step that reads and adds up sums"
        return
    yield from walk(name, kernel, path, f"{mma} products of tiles of a warp",
                    MOST_CYCLES_MATRICES[name])


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
        every = [(name, arch, now) for arch, said, _ in results for name, now in figures(said)]
        names = short_names({name for name, _, _ in every})
        # a kernel of two files is the same in both
        found = {(names[name], arch): now for name, arch, now in every}
        if arguments.write:
            write_budget(compiler, found)
        wrong = list(over_budget(compiler, found))
        if not any(HOT.match(kernel) for kernel, _ in found):
            wrong.append(f"expected kernels whose names match {HOT.pattern}, found none")
        print(f"registers for sm_{', sm_'.join(archs)}:")
        for kernel in sorted({kernel for kernel, _ in found if HOT.match(kernel)}):
            figures_here = (found[kernel, arch] for arch in archs)
            print(f"    {kernel}:",
                  *(f"{now.registers}" + f" ({now.spills} bytes spilled)" * (now.spills > 0)
                    for now in figures_here))
        nvdisasm = find_nvdisasm()
        if nvdisasm is None:
            print("skipped: reading machine code, as there is no nvdisasm; pip install "
                  "nvidia-cuda-nvdisasm")
        for cubin in [cubin for arch, _, cubin in results if nvdisasm and arch == ARCH]:
            for mangled, code in disassembled(str(nvdisasm), cubin).items():
                name = names[mangled]
                if HOT.match(name) and re.match("(for|back)ward_kernel", name):
                    wrong += read(name, code)
                elif name.startswith("lsnn_"):
                    wrong += read_lsnn(name, code)
                elif name.startswith("spike_product"):
                    wrong += read_spike_product(name, code)
                elif name.startswith("linear_forward"):
                    wrong += read_linear(name, code)
    print(*wrong, f"{len(found)} kernels, {len(wrong)} faults", sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
