"""Planted bugs in the CUDA kernels, each with the check that finds it. mutants.py plants them one
by one.

Every barrier of every kernel is here, unless another one beside it does its work too; then indices,
masks, buffers, numbers of steps, flags and sums. What no test could see, as it changes no result,
is not here.
"""
from typing import Literal, NamedTuple

# the kernels under the emulator, alone or with a sanitizer
Check = Literal["plain", "address", "thread"]
PLAIN: Check = "plain"  # a wrong result in some order of the threads, or an error of the emulator
ADDRESS: Check = "address"
THREAD: Check = "thread"


class Mutant(NamedTuple):
    name: str
    file: str               # of csrc/cuda
    old: str                # must stand there `times` times, and all of them are replaced
    new: str
    runs: tuple[str, ...]   # a design, or "any", and a word of the names of cases
    check: Check = PLAIN    # the one that finds it, if the plain one does not
    times: int = 1
    # what is compiled again; files that others share name theirs in mutants.py
    object: str = "alif_f32"


# Groups of two warps and several groups in a block; then the same with delays of 1 and 3 steps.
BLOCK, GATHER, CLUSTER = (
    f"{design} T=20 B=5 N=129 n_ref=2" for design in ("block", "gather", "cluster")
)
DELAYED, CLUSTER_DELAYED = (f"{design} T=20 B=5 N=129 n_ref=0" for design in ("gather", "cluster"))
MANY_ITEMS = "T=20 B=38 N=40 n_ref=0"  # a group has one after the other
# the same, with sequences shorter than the buffers
SHORT = "cluster T=3 B=38 N=40", "cluster T=4 B=38 N=40"
GROUPS = "gather T=17 B=9 N=220 n_ref=1"  # groups of several warps in a random order
PAPER = "block T=17 B=3 N=64"  # aligned layers but for one trace
# The kernels of the paper's network: two warps to an item, one of them, several segments of steps.
LSNN, LSNN_WARP = "lsnn T=20 B=5 N=129 n_ref=2", "lsnn T=20 B=5 N=33 n_ref=2"
LSNN_LONG, LSNN_DELAYED = "lsnn T=260 B=9 N=32 n_ref=2", "lsnn T=60 B=3 N=34"
STEP = "step T=20 B=5 N=65"
LONG = "block T=129 B=9 N=31"  # two segments, several slices of the weight gradient
ABSENT = "block N=40 n_ref=1 layout=0 want=0"
ALONE = "alone T=150 B=3 N=64"  # no recurrent weights
MATRICES = "block all_delays T=150 B=3 N=64"  # a weight of each synapse for each of three delays
UNEQUAL, UNEQUAL_LONG = "gather T=40 B=9 N=40", "gather T=260 B=19"
UNEQUAL_STEP = "step T=17 B=3 N=33"
UNEQUAL_CLUSTER = "cluster T=40 B=38 N=70", "cluster T=40 B=47 N=40"
LEAKY = "any leaky"  # the integrator of products that were made elsewhere
IDLE_RANK = ("cluster T=20 B=1 N=257", "cluster T=20 B=5 N=257")  # four ranks share out nine words



def of_lsnn(name: str, old: str, new: str, runs: tuple[str, ...], check: Check = PLAIN) -> Mutant:
    """A bug in the kernels of the paper's network."""
    return Mutant(f"lsnn: {name}", "lsnn_forward.cuh", old, new, runs, check, object="lsnn")


def of_product(name: str, old: str, new: str, runs: tuple[str, ...],
               check: Check = PLAIN) -> Mutant:
    """A bug in the weight gradient by tensor cores."""
    return Mutant(f"spike product: {name}", "spike_product.cuh", old, new, runs, check,
                  object="spike_product")


MUTANTS = [
    # ------------------------------------------------------------------------------------- barriers
    Mutant("forward: no barrier after a step", "forward.cuh",
           "const Group& group) const { group.sync();", "const Group& ) const {", (BLOCK, GATHER)),
    Mutant("forward: no barrier after the copy of the rows", "forward.cuh", "__syncthreads();", "",
           (BLOCK,)),
    Mutant("forward, cluster: no barrier before an item", "forward.cuh",
           "begin_item() const { cluster_sync();", "begin_item() const {",
           (CLUSTER, f"cluster {MANY_ITEMS}")),
    Mutant("forward, cluster: no barrier at the end", "forward.cuh",
           "if (shape.ranks > 1) cluster_sync();", "", (CLUSTER,)),
    Mutant("backward: no barrier after a step", "backward.cuh",
           "T*, uint32_t, int) const {\n    group.sync();", "T*, uint32_t, int) const {",
           (BLOCK, GATHER)),
    Mutant("backward, cluster: no barrier after a step", "backward.cuh",
           "(uint32_t)x);\n    }\n    group.sync();", "(uint32_t)x);\n    }\n", (CLUSTER,)),
    Mutant("backward: no barrier after the product", "backward.cuh",
           "}\n    group.sync();\n  }\n  __device__", "}\n    \n  }\n  __device__", (BLOCK,)),
    Mutant("backward: no barrier after the replay of a chunk", "backward.cuh",
           "});\n    }\n    group.sync();\n  }", "});\n    }\n  }", (BLOCK,)),
    Mutant("backward: no barrier between past spikes of the first state", "backward.cuh",
           "if (t < 0) group.sync();", "if (t < 0) {}", (DELAYED,)),
    Mutant("backward: no barrier after the copy of the rows", "backward.cuh", "__syncthreads();",
           "", (BLOCK,)),
    Mutant("backward, cluster: no barrier before the first item", "backward.cuh",
           "if (shape.ranks > 1) cluster_sync();\n\n  const", "\n\n  const", (CLUSTER,)),
    Mutant("backward, cluster: no barrier at the end", "backward.cuh",
           "if (shape.ranks > 1) cluster_sync();  //", "  //", IDLE_RANK),
    Mutant("forward, cluster: no wait for the second half of the words", "forward.cuh",
           "while (w < n_words &&", "while (w < 4 &&", (CLUSTER,)),
    Mutant("forward, cluster: the word of the lane beside", "forward.cuh",
           "? kept[0] : kept[1], w % 32)", "? kept[0] : kept[1], (w + 1) % 32)", (CLUSTER,)),
    Mutant("list: no barrier before it is written", "sequence.cuh", "__syncwarp();  //", "  //",
           (DELAYED,)),
    Mutant("list: no barrier before it is read", "sequence.cuh", "__syncwarp();\n  return",
           "return", (BLOCK,)),
    Mutant("weight gradient: no barrier before words are loaded", "weight_gradient.cuh",
           "__syncthreads();  //", "  //", (LONG, BLOCK)),
    Mutant("weight gradient: no barrier after words are loaded", "weight_gradient.cuh",
           "__syncthreads();\n      if", "\n      if", (LONG, BLOCK)),
    Mutant("one named barrier for all groups", "device.h", "barrier_sync(id + 1,",
           "barrier_sync(1,", (GROUPS,)),
    # -------------------------------------------------------------------------------------- indices
    Mutant("forward: the row after", "forward.cuh", "j * slice.width", "(j + 1) * slice.width",
           (BLOCK,)),
    Mutant("forward: the wrong slot", "forward.cuh", "at += slots;", "at += slots - 1;", (BLOCK,)),
    Mutant("forward: a current past the end", "forward.cuh", "if (t + 1 < length) next",
           "if (t < length) next", (GATHER,), ADDRESS),
    Mutant("forward: rows that the list does not name", "sequence.cuh", "if (i < n) row[i]",
           "row[i]", ("gather T=20 B=5 N=33 n_ref=2",), ADDRESS),
    Mutant("forward, cluster: bits of another slice", "forward.cuh",
           "spikes.n_words + slice.word : nullptr", "spikes.n_words : nullptr", (CLUSTER,)),
    Mutant("forward: one set of coefficients for all quads of a lane", "forward.cuh",
           "C == 1 ? k : reloaded", "k", ("any N=2100",)),
    Mutant("backward: an item past the last", "backward.cuh", "b < l.B && slice",
           "b <= l.B && slice", (BLOCK,)),
    Mutant("backward: the product of the next row", "backward.cuh", "dz[row] = total",
           "dz[row + 1] = total", (BLOCK,)),
    Mutant("backward: dL/dc after the last step", "backward.cuh", "|| reached >= length)",
           "|| reached > length)", (f"gather {MANY_ITEMS}",)),
    Mutant("backward: dL/dc of the wrong step", "backward.cuh", "dc_of(reached)",
           "dc_of(reached + 1)", (DELAYED,)),
    Mutant("backward: a list for all warps", "backward.cuh",
           "shared.list + threadIdx.x / 32 * list_size", "shared.list", (BLOCK,), THREAD),
    Mutant("backward: products of all groups in one place", "backward.cuh",
           "shared.dz + group.id * largest.width", "shared.dz", (BLOCK,), THREAD),
    Mutant("backward, cluster: a rank without neurons works", "backward.cuh",
           "&& slice.words > 0;", ";", IDLE_RANK),
    Mutant("list: nine words in the place of eight", "sequence.cuh", "most = list_size / 32;",
           "most = list_size / 32 + 1;", ("gather T=6 B=2 N=512",)),
    Mutant("items done twice", "sequence.cuh", "teams * shape.groups", "teams",
           ("gather T=20 B=5 N=65 n_ref=2",), THREAD),
    Mutant("load: past the last neuron", "quad.cuh", "if (i < live) q[i]", "q[i]", (GATHER, STEP),
           ADDRESS),
    Mutant("store: past the last neuron", "quad.cuh", "if (i < live) p[i]", "p[i]", (GATHER,)),
    Mutant("store: three neurons as four", "quad.cuh", "if (live >= 4 && on_boundary(p)) {",
           "if (live >= 3 && on_boundary(p)) {", ("any T=20 B=5 N=7", "any T=20 B=5 N=31")),
    Mutant("weight gradient: dL/dc past the last item", "weight_gradient.cuh",
           "i1 + i < last ? ((", "true ? ((", ("any T=17 B=33 N=32",), ADDRESS),
    Mutant("weight gradient: bits past the last item", "weight_gradient.cuh",
           "some = i0 + i < last &&", "some =", (LONG,), ADDRESS),
    Mutant("weight gradient: a list for all items", "weight_gradient.cuh",
           "lane, shared.list + i * list_size", "lane, shared.list", (LONG,)),
    Mutant("weight gradient: what is left of four rows", "weight_gradient.cuh",
           "for (; e < n; e++)", "for (; e + 1 < n; e++)", (LONG,)),
    Mutant("weight gradient: columns past the last", "weight_gradient.cuh", "&& k < N;", ";",
           (LONG,)),
    Mutant("step: bits of threads without neurons", "step.cuh", "f.save && at.real &&",
           "f.save &&", ("step T=20 B=5 N=33",), ADDRESS),
    Mutant("step: more threads than places", "step.cuh",
           "if (at.index >= job.state.threads) return;", "", (STEP,), ADDRESS),
    Mutant("workspace: one slice too few", "launch.cuh", "m.take<T>(plan.slices(f.first.z) *",
           "m.take<T>((plan.slices(f.first.z) - 1) *", (LONG,), ADDRESS),
    Mutant("workspace: sums without padding", "launch.cuh", "n_coefficients * padded(l.N)) :",
           "n_coefficients * l.N) :", (LONG,)),
    # -------------------------------------------------------------------------- masks and distances
    Mutant("word: half the warp in the mask", "neurons.cuh", "__shfl_xor_sync(~0u, word",
           "__shfl_xor_sync(0x0000ffffu, word", (BLOCK,)),
    Mutant("word: four lanes instead of eight", "neurons.cuh", "o < 8; o *= 2", "o < 4; o *= 2",
           (BLOCK,)),
    Mutant("product: half the warp in the mask", "backward.cuh", "__shfl_xor_sync(~0u, x[0], 2)",
           "__shfl_xor_sync(0x0000ffffu, x[0], 2)", (BLOCK,)),
    Mutant("product: the wrong lane", "backward.cuh", "__shfl_xor_sync(~0u, x[0], 1)",
           "__shfl_xor_sync(~0u, x[0], 2)", (BLOCK,)),
    Mutant("product: the wrong row of a lane", "backward.cuh",
           "(lane >> 4 & 1) * 4 + (lane >> 3 & 1) * 2",
           "(lane >> 3 & 1) * 4 + (lane >> 4 & 1) * 2", (BLOCK,)),
    # ----------------------------------------------------------------- buffers and numbers of steps
    Mutant("ring of D slots", "plan.cpp", "int(l.D + 1 + (", "int(l.D + (", (BLOCK, GATHER)),
    Mutant("ring of a cluster without the smallest delay", "plan.cpp", "? l.delays[0] : 0)",
           "? 0 : 0)", (CLUSTER_DELAYED,)),
    Mutant("inbox of one row", "backward.cuh", "inbox + number % 2 * NP", "inbox + 0 * NP",
           (CLUSTER,), times=2),
    Mutant("forward, cluster: the number of the step before", "forward.cuh",
           "word, n0 + (uint32_t)t + 1", "word, n0 + (uint32_t)t", (CLUSTER,)),
    Mutant("forward, cluster: the same numbers for every item", "forward.cuh",
           ", n0 += (uint32_t)l.T)", ")", SHORT),
    Mutant("forward, cluster: nothing for the last rank", "forward.cuh", "r < ranks; r += 8",
           "r < ranks - 1; r += 8", (CLUSTER,)),
    Mutant("backward, cluster: numbers from 0 on", "backward.cuh", "n0 + uint32_t(length - t)",
           "n0 + uint32_t(length - t - 1)", (CLUSTER,)),
    Mutant("backward, cluster: the same numbers for every item", "backward.cuh",
           "n0 += (uint32_t)job.p.length(l, b);", "", SHORT),
    # -------------------------------------------------------------------- sums, marks, flags, state
    Mutant("weight gradient: added twice", "weight_gradient.cuh", "sum[j * tiles.columns] += g",
           "sum[j * tiles.columns] += g + g", (BLOCK,)),
    Mutant("weight gradient: slices overlap", "weight_gradient.cuh",
           "all * (slice + 1) / tiles.slices", "all * (slice + 1) / tiles.slices + (slice == 0)",
           (LONG,)),
    Mutant("weight gradient: slices begin late", "weight_gradient.cuh",
           "first = all * slice / tiles.slices",
           "first = all * slice / tiles.slices + (slice > 0)", (LONG,)),
    Mutant("sum: without the first slice", "weight_gradient.cuh",
           "int64_t p = 0; p < job.n_partial_sums", "int64_t p = 1; p < job.n_partial_sums",
           (LONG,)),
    Mutant("coefficients: added twice", "replay.cuh", "+= sums[c]", "+= 2 * sums[c]", (LONG,)),
    Mutant("coefficients: sums do not start at 0", "replay.cuh", "Quad<T>{}, 4);",
           "Quad<T>::all(1), 4);", (LONG,)),
    Mutant("marks: the neighbour's", "replay.cuh", "active |= 1u << q", "active |= 1u << (q ^ 1)",
           (BLOCK,)),
    Mutant("marks: three of four", "backward.cuh", "% 32 & 15", "% 32 & 7", (BLOCK,)),
    Mutant("marks: products of neurons without a mark", "backward.cuh",
           "i < cell.live && (of_use >> i & 1)", "i < cell.live", (GATHER,)),
    Mutant("past spikes have a local part", "replay.cuh", "(steps_back ? T(0) : d.z[q])", "d.z[q]",
           (DELAYED,)),
    Mutant("carried state: one step late", "neurons.cuh", "t % segment == 0", "t % segment == 1",
           (BLOCK,)),
    Mutant("step: products not cleared", "step.cuh",
           "store(job.dz + cell.at(l, 0), Quad<T>{}, cell.live);", "", (STEP,)),
    Mutant("flags: the paper's kernel for any network", "layout.cuh", "general == is_paper<Spec>",
           "general != is_paper<Spec>", (ABSENT,)),
    Mutant("the paper's kernel with a trace", "layout.cuh", "!f.trace_a &&", "", (PAPER,)),
    Mutant("the paper's kernel with the gradient of a trace", "layout.cuh", "&& !f.gA", "",
           (PAPER,)),
    Mutant("the paper's kernel with any number of neurons", "layout.cuh", "l.N % 4 == 0 &&", "",
           ("block T=17 B=3 N=33 n_ref=0 layout=2",)),
    Mutant("the paper's kernel with one dL/dz for all", "layout.cuh", "(f.gz_stride_n == 1 &&",
           "(", ("block N=64 n_ref=0 layout=3",)),
    Mutant("flags: the paper's kernel alone where nobody has said that it may", "launch.cuh",
           "(plan.told.zero & no_terms) != no_terms", "false", (ABSENT,)),
    Mutant("told: one less another coefficient", "layout.cuh", "(c == KAPPA ? ALPHA : RHO)",
           "(c == KAPPA ? RHO : ALPHA)", ("block T=20 B=5 N=128",)),
    Mutant("flags: a synapse unseen", "layout.cuh", "c == SIGMA ? +SYNAPSE", "c == SIGMA ? 0",
           (LONG,)),
    Mutant("flags: the first refractory counter unseen", "layout.cuh", "flags |= REFRACTORY;",
           "flags |= 0;", ("any first_r=4",)),
    Mutant("bfloat16: cut off instead of rounded", "../bfloat16.h", "+ 0x7fff +", "+ 0 +",
           ("any T=20 B=5 N=236",), object="alif_f32_bf16"),
    # ---------------------------------------------------------- no weights, a matrix for each delay
    Mutant("no weights: nothing is packed", "layout.cuh", "bool more = true; more;",
           "bool more = l.S > 0; more;", (f"any {ALONE}",)),
    Mutant("pack: the first matrix for all delays", "layout.cuh", "matrix<T>(l, job.S0 + s)",
           "matrix<T>(l, 0)", (MATRICES,)),
    Mutant("pack: later launches begin with the first matrix", "layout.cuh",
           "matrix<T>(l, job.S0 + s)", "matrix<T>(l, s)", ("any all_delays T=80 B=2 N=9",)),
    Mutant("weight gradient: all delays into each matrix", "weight_gradient.cuh",
           "d0 = own_delays ? 0 : of", "d0 = 0", (MATRICES,)),
    Mutant("weight gradient: slices of one matrix", "weight_gradient.cuh",
           "tiles.matrices + of) * N", "tiles.matrices) * N", (MATRICES,)),
    Mutant("weight gradient: one delay into the one matrix", "weight_gradient.cuh",
           "own_delays ? (int)l.S : of + 1", "of + 1", (DELAYED,)),
    Mutant("workspace: slices of one matrix", "launch.cuh",
           "plan.slices(f.first.z) * matrices(l) * l.N", "plan.slices(f.first.z) * l.N",
           (MATRICES,), ADDRESS),
    Mutant("sum: of one matrix", "launch.cuh", "(T*)f.gw, n_w, n_w", "(T*)f.gw, l.N * l.N, n_w",
           (MATRICES,)),
    Mutant("no steps: gradients of one matrix are 0", "launch.cuh", "clear(f.gw, n_w *",
           "clear(f.gw, l.N * l.N *", ("any all_delays T=0 B=3 N=33",)),
    Mutant("tiles: of one matrix", "plan.cpp", "t.matrices = std::max((int)matrices(l), 1)",
           "t.matrices = 1", (MATRICES,)),
    Mutant("no weights: a ring for the smallest delay", "plan.cpp",
           "design == Design::cluster && l.S ?", "design == Design::cluster ?",
           ("cluster alone T=20 B=5 N=129",)),
    Mutant("no weights: block with the kernels of gather", "plan.cpp",
           "design == Design::gather ? 4 : 1", "4", ("any alone T=3 B=1 N=1537",)),
    # ---------------------------------------------------------------------- items of unequal length
    Mutant("lengths, backward, cluster: gaps between the numbers of items", "backward.cuh",
           "n0 += (uint32_t)job.p.length(l, b);", "n0 += (uint32_t)l.T;", UNEQUAL_CLUSTER),
    Mutant("lengths, forward: one step too many", "forward.cuh", "for (int t = 0; t < length;",
           "for (int t = 0; t < (length < l.T ? length + 1 : length);", (UNEQUAL,)),
    Mutant("lengths, forward: the last state of the longest item", "neurons.cuh",
           "t = length - 1 - steps_back;", "t = l.T - 1 - steps_back;", (UNEQUAL,)),
    Mutant("lengths, backward: gradients of the last state at T", "replay.cuh",
           "steps_back = length - 1 - t;", "steps_back = l.T - 1 - t;", (UNEQUAL,)),
    Mutant("lengths, backward: dL/dc after an item's last step", "backward.cuh",
           "|| reached >= length)", "|| reached >= l.T)", (UNEQUAL,)),
    Mutant("lengths: a row after the last step that is not cleared", "lengths.cuh",
           "if (t < job.p", "if (t <= job.p", (UNEQUAL,)),
    Mutant("lengths: arrays of an odd number of pairs", "lengths.cuh", "rows.bytes % 4 == 0 &&",
           "", ("any T=20 B=5 N=33 n_ref=0",), object="alif_f32_bf16"),
    Mutant("lengths: carried state of a segment not cleared", "lengths.cuh", "4, (int)segment",
           "4, (int)segment - 1", (UNEQUAL_LONG,)),
    Mutant("lengths: those of the first launch for all", "lengths.cuh", "p.lengths[job.first + i]",
           "p.lengths[i]", ("any B=300",)),
    Mutant("lengths, step: one step too many", "step.cuh", "ended = job.t >= length;",
           "ended = job.t > length;", (UNEQUAL_STEP,)),
    Mutant("lengths, step: the state of an item is replayed past its end", "step.cuh",
           "job.last < length ? job.last : length", "job.last", (UNEQUAL_STEP,), ADDRESS),
    Mutant("lengths, step: no gradient of the first state without steps", "step.cuh",
           "starts && length == 0", "starts && l.T == 0", (UNEQUAL_STEP,)),
    Mutant("lengths, step: an item goes back before its last step", "step.cuh",
           "!starts && job.t >= length", "!starts && job.t > length", (UNEQUAL_STEP,)),
    # ---------------------------------------------------------------------- memory that starts as 0
    Mutant("forward: the ring keeps what was there", "forward.cuh", "shared.ring[i] = 0;", "",
           SHORT),
    Mutant("backward: the inbox keeps what was there", "backward.cuh", "shared.inbox[i] = 0;", "",
           SHORT),
    # --------------------------------------------------------- the kernels of the paper's network
    of_lsnn("no barrier after a step", "spikes.advance();\n        sync();", "spikes.advance();",
            (LSNN,)),
    of_lsnn("no barrier after a step, one warp", "warp_barrier(where);", ";",
            (LSNN_WARP,), THREAD),
    of_lsnn("no barrier before the first step", "group);\n    sync();", "group);",
            (LSNN, LSNN_DELAYED), THREAD),
    of_lsnn("no barrier after the copy of the rows", "__syncthreads();", "", (LSNN,)),
    of_lsnn("a wait that leaves one group too many", "<(int)stages - 2>", "<(int)stages - 1>",
            (LSNN,)),
    of_lsnn("a stage overwritten before it is read", "copy((at + (stages - 1) * stage)",
            "copy((at + stage)", (LSNN,)),
    of_lsnn("currents past the end", "left > 0 && i < live", "i < live", (LSNN_WARP,), ADDRESS),
    of_lsnn("whole currents past the end", "left > 0 && live", "live", (LSNN_LONG,), ADDRESS),
    of_lsnn("a slot of lists too few", "end(slots * slot)", "end((slots - 1) * slot)", (LSNN,)),
    of_lsnn("lists are not empty before the first step", "ring[i + 128 * warps + of] = 0;", ";",
            (LSNN,)),
    of_lsnn("lists are read from the slot that is written", "read + slot == end ? 0 : read + slot;",
            "written;", (LSNN, LSNN_DELAYED)),
    of_lsnn("one barrier for all groups", "(group.id + 1, where)", "(1, where)", ("lsnn N=220",)),
    of_lsnn("the lists of all groups in one place",
            "shared.lists + group.id * shape.slots * list_words(warps)", "shared.lists",
            ("lsnn N=220",), THREAD),
    of_lsnn("the currents of all groups in one place",
            "shared.current + group.id * stages_of_current * 4 * group.threads", "shared.current",
            ("lsnn N=220",), THREAD),
    of_lsnn("the neuron's own place in the list", "& lower);", "& (2 * lower + 1));", (LSNN,)),
    of_lsnn("the spikes of the last neuron are not counted", "= n[4];", "= n[3];", (LSNN,)),
    of_lsnn("something where no row is", "= -0.f;", "= 1.f;", (LSNN,)),
    of_lsnn("rows that are listed, one after the other, but the last", "e < n[of]; e +=",
            "e + 1 < n[of]; e +=", (LSNN,)),
    of_lsnn("lanes without neurons fire", "if (!cell.live) k.k[c]", "if (cell.n < 0) k.k[c]",
            (LSNN,)),
    of_lsnn("no spikes before the sequence", "if (before)\n", "if (false)\n", (LSNN_DELAYED,)),
    of_lsnn("the first spikes too often", "t <= delay", "t <= delay + 1", (LSNN_DELAYED,)),
    of_lsnn("bits of another word", "b * words(l.N) + word", "b * words(l.N)", (LSNN,)),
    of_lsnn("words that are not there", "&& word < words(l.N)", "", (LSNN,), ADDRESS),
    of_lsnn("no state at the second segment", "if (f.save) store_carry",
            "if (f.save && t0 == 0) store_carry", (LSNN_LONG,)),
    of_lsnn("lengths: all are T", "length = job.p.length(l, b)", "length = (int)l.T",
            ("lsnn T=40 B=9 N=70",)),
    Mutant("lsnn: several delays", "plan.cpp", "if (l.S != 1) return impossible",
           "if (l.S < 1) return impossible",
           ("lsnn T=60 B=3 N=34",)),
    Mutant("lsnn: any model", "plan.cpp", "!same(l.model, PaperSpec::model) || l.smooth",
           "l.smooth", ("lsnn N=41",)),
    Mutant("lsnn: smooth spikes", "plan.cpp", "PaperSpec::model) || l.smooth", "PaperSpec::model)",
           ("lsnn T=20 B=5 N=36",)),
    Mutant("lsnn: with a trace", "launch.cuh", "!f.trace_v && !f.trace_a &&", "!f.trace_v &&",
           ("lsnn T=17 B=3 N=64",)),
    Mutant("lsnn: the general kernel does not run where nobody has said that it need not",
           "launch.cuh", "kernels{all.paper && !by_lsnn, all.general};",
           "kernels{all.paper && !by_lsnn, all.general && !by_lsnn};", ("lsnn first_r=4",)),
    # ---------------------------------------------------------- the weight gradient by tensor cores
    of_product("what is left of a float", "first = without_upper_half(first);", "", (LSNN,)),
    of_product("the halves of another float", "__float_as_uint(second) &",
               "__float_as_uint(first) &", (LSNN,)),
    of_product("the rows of other items", "shift = row + i % 2 * 8;", "shift = row + i / 2 * 8;",
               (LSNN,)),
    of_product("the items of another lane", "of_lane = lane % 4 * items_of_lane",
               "of_lane = (lane + 1) % 4 * items_of_lane * (lane < 16)", (LSNN,)),
    of_product("dL/dc of the step of the spikes", "(job.delay + 1) * l.B", "job.delay * l.B",
               (LSNN,)),
    of_product("slices overlap", "(slice + 1) / job.tiles.slices;",
               "(slice + 1) / job.tiles.slices + (slice == 0);", (LSNN_LONG,)),
    of_product("spikes past the last item", "some ? bits[item * W + w] : 0", "bits[item * W + w]",
               (LSNN_WARP,), ADDRESS),
    of_product("dL/dc past the last item", "some ? live : 0", "live", (LSNN_LONG,), ADDRESS),
    of_product("columns past the last", "j >= N || k >= N", "j >= N",
               ("lsnn T=17 B=3 N=64", "lsnn T=20 B=5 N=36")),
    of_product("the quads of a row", "i % 2 * 4;", "i / 2 * 4;", (LSNN,)),
    Mutant("spike product: in the place of the steps before it", "launch.cuh",
           "partial_sums + slice}", "partial_sums}", (LSNN,)),
    Mutant("spike product: all steps by events too", "launch.cuh",
           "by_events - spike_products(l, delay)", "by_events", (LSNN,)),
    # ---------------------------------------------------------------------------- the readout alone
    Mutant("leaky readout: starts from zeros always", "readout.cuh",
           "f.first ? ((const T*)f.first)[c] : T(0)", "T(0)", (LEAKY,), object="readout"),
    Mutant("leaky readout: no gradient from the last state", "readout.cuh",
           "f.gp_last ? ((const T*)f.gp_last)[c] : T(0)", "T(0)", (LEAKY,), object="readout"),
    Mutant("leaky readout: a thread beyond the last output", "readout.cuh",
           "if (c >= f.n) return;", "if (c > f.n) return;", (LEAKY,), ADDRESS, times=2,
           object="readout"),
]
