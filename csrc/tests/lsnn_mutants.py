"""Planted bugs in the CUDA kernels of the paper's network, a part of mutant_table.py."""
from mutant import ADDRESS, PLAIN, THREAD, Check, Mutant

# The kernels of the paper's network: two warps to an item, one of them, several segments of steps.
LSNN, LSNN_WARP = "lsnn T=20 B=5 N=129 n_ref=2", "lsnn T=20 B=5 N=33 n_ref=2"
LSNN_LONG, LSNN_DELAYED = "lsnn T=260 B=9 N=32 n_ref=2", "lsnn T=60 B=3 N=34"
LSNN_GROUPS = "lsnn T=17 B=9 N=220"  # several items to a block, of several warps each
LSNN_RANDOM = "lsnn T=20 B=5 N=220 n_ref=2"  # the same, in a random order


def of_lsnn(name: str, old: str, new: str, runs: tuple[str, ...], check: Check = PLAIN,
            file: str = "lsnn_forward.cuh") -> Mutant:
    """A bug in the kernels of the paper's network."""
    return Mutant(f"lsnn: {name}", file, old, new, runs, check, object="lsnn")


def of_lsnn_backward(name: str, old: str, new: str, run: str = LSNN, check: Check = PLAIN,
                     file: str = "lsnn_backward.cuh") -> Mutant:
    return of_lsnn(f"backward: {name}", old, new, (run,), check, file)


def of_lsnn_replay(name: str, old: str, new: str, run: str = LSNN) -> Mutant:
    return of_lsnn_backward(name, old, new, run, file="lsnn_replay.cuh")


LSNN_MUTANTS = [
    of_lsnn("no barrier after a step", "spikes.advance();\n        sync();", "spikes.advance();",
            (LSNN,)),
    of_lsnn("no barrier after a step, one warp", "warp_barrier(where);", ";",
            (LSNN_WARP,), THREAD),
    of_lsnn("no barrier before the first step", "group);\n    sync();", "group);",
            (LSNN, LSNN_DELAYED), THREAD),
    of_lsnn("no barrier after the copy of the rows", "__syncthreads();", "", (LSNN,)),
    of_lsnn("a wait that leaves one group too many", "<(int)stages - 2>", "<(int)stages - 1>",
            (LSNN,), file="lsnn_stream.cuh"),
    of_lsnn("a stage overwritten before it is read", "begin((at + stages - 1)",
            "begin((at + 1)", (LSNN,), file="lsnn_stream.cuh"),
    of_lsnn("currents past the end", "is_there && i < live", "i < live", (LSNN_WARP,), ADDRESS,
            "lsnn_stream.cuh"),
    of_lsnn("whole currents past the end", "is_there && live", "live", (LSNN_LONG,), ADDRESS,
            "lsnn_stream.cuh"),
    of_lsnn("a slot of lists too few", "end(slots * slot)", "end((slots - 1) * slot)", (LSNN,)),
    of_lsnn("lists are not empty before the first step", "ring[i + 128 * warps + of] = 0;", ";",
            (LSNN,)),
    of_lsnn("lists are read from the slot that is written", "read + slot == end ? 0 : read + slot;",
            "written;", (LSNN, LSNN_DELAYED)),
    of_lsnn("one barrier for all groups", "(group.id + 1, where)", "(1, where)", (LSNN_RANDOM,)),
    of_lsnn("the lists of all groups in one place",
            "shared.lists + group.id * shape.slots * list_words(warps)", "shared.lists",
            (LSNN_GROUPS,), THREAD),
    of_lsnn("the currents of all groups in one place",
            "shared.current + group.id * stages_of_current * 4 * group.threads", "shared.current",
            (LSNN_GROUPS,), THREAD),
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
    Mutant("lsnn: several delays", "plan.cpp", "if (l.S != 1) return \"it has one",
           "if (l.S < 1) return \"it has one",
           ("lsnn T=60 B=3 N=34",)),
    Mutant("lsnn: any model", "plan.cpp", "!same(l.model, PaperSpec::model) || l.smooth",
           "l.smooth", ("lsnn N=41",)),
    Mutant("lsnn: smooth spikes", "plan.cpp", "PaperSpec::model) || l.smooth", "PaperSpec::model)",
           ("lsnn T=20 B=5 N=36",)),
    Mutant("lsnn: with a trace", "plan.h", "!f.trace_v && !f.trace_a &&", "!f.trace_v &&",
           ("lsnn T=17 B=3 N=64",)),
    Mutant("lsnn: the general kernel does not run where nobody has said that it need not",
           "launch.cuh", "{all.paper && !lsnn, all.general}",
           "{all.paper && !lsnn, all.general && !lsnn}", ("lsnn first_r=4",)),
    of_lsnn_backward("no barrier after a step", "written = read();\n        sync();",
                     "written = read();"),
    of_lsnn_backward("dL/dc of the step that is made", "dc + read(), places, rows.n",
                     "dc + written, places, rows.n"),
    of_lsnn_backward("a slot of dL/dc too few", "job.shape.slots * NP : written",
                     "(job.shape.slots - 1) * NP : written"),
    of_lsnn_backward("the sum of another row", "of.rank % groups * lanes +",
                     "(of.rank + 1) % groups * lanes +"),
    of_lsnn_backward("a row in another lane's list", "rank % groups * of_group + rank / groups]",
                     "rank]"),
    of_lsnn_backward("more than twelve rows", "others();\n      add<4>(dc,",
                     "others();\n      add<3>(dc,"),
    of_lsnn_backward("more than sixteen rows", "rows.n <= first) [[likely]]",
                     "rows.n <= 2 * first) [[likely]]"),
    of_lsnn_backward("the first sixteen rows again", "rows.places(product.lane, first",
                     "rows.places(product.lane, 0 * first"),
    of_lsnn_backward("the slope of another step", "return at_test; }",
                     "return slope_of_step(neuron.spec, k, before); }"),
    of_lsnn_backward("columns that are not there", "column(full) < NP", "true"),
    of_lsnn_backward("spikes that reach no step", "return t >= end ?", "return t > end ?"),
    of_lsnn_backward("a gradient of the last state less", "if (t > end &&", "if (t > end + 1 &&",
                     LSNN_DELAYED),
    of_lsnn_backward("gradients before the first step", "next >= 0);", "true);", check=ADDRESS),
    of_lsnn_backward("membranes before the first step", "next > 0);", "true);", check=ADDRESS),
    of_lsnn_backward("the records of all groups in one place",
                     "shared.record + group.id * stages_of_record * 2 * shape.threads",
                     "shared.record", LSNN_GROUPS, THREAD),
    of_lsnn_backward("the lists of all groups in one place",
                     "shared.list + group.id * 2 * shape.threads", "shared.list", LSNN_GROUPS,
                     THREAD),
    of_lsnn_backward("one barrier for all groups", "(group.id + 1, group.threads",
                     "(1, group.threads", "lsnn T=40 B=9 N=70 n_ref=1"),
    of_lsnn_replay("spikes of the step before", "step(window, steps_of_replay + i, s);",
                   "step(window, steps_of_replay + i - 1, s);"),
    of_lsnn_replay("bits of the wrong lane", "row & low) | (other & low) << o",
                   "row & low) | (other & low)"),
    of_lsnn_replay("no first v", "if (t == 0) [[unlikely]]", "if (t == -2)"),
    of_lsnn_replay("no spikes before the sequence", "if (t == 1) [[unlikely]]", "if (t == -2)"),
    of_lsnn_replay("refractory a step early", "counting <<= 31 - last;", "counting <<= 30 - last;"),
    of_lsnn_replay("bits of a segment alone", "own << 32 | before", "own << 32", LSNN_LONG),
    Mutant("lsnn: backward: coefficients that want gradients", "plan.h", " && !f.want &&", " &&",
           ("lsnn T=35 B=2 N=41",)),
]
