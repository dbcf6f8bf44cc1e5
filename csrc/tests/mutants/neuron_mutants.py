"""Planted bugs in the CUDA kernels of generated neurons, a part of mutant_table.py."""
from mutant import ADDRESS, PLAIN, Check, Mutant

NEURONS = ("any neurons",)


def of_neuron(name: str, old: str, new: str, check: Check = PLAIN, times: int = 1) -> Mutant:
    """A bug in the kernels."""
    return Mutant(f"neuron: {name}", "../../lsnn_ext/codegen/cuda_threads.h", old, new, NEURONS,
                  check, times, "neurons")


def of_host(name: str, old: str, new: str, check: Check = PLAIN) -> Mutant:
    """A bug in their launches."""
    return Mutant(f"neuron, launches: {name}", "neuron.cpp", old, new, NEURONS, check,
                  object="neuron")


NEURON_MUTANTS = [
    # ------------------------------------------------------------------------- barriers and buffers
    of_neuron("gather: no barrier after a step", "block.sync();\n    }\n    if", "}\n    if"),
    of_neuron("gather, backward: no barrier after a step", "block.sync();\n    }\n    for",
              "}\n    for"),
    of_neuron("gather: spikes of D steps", "W = words(N), rows = job.D + 1",
              "W = words(N), rows = job.D"),
    of_neuron("gather, backward: dL/dc of D steps", "KN = K * N, rows = job.D + 1",
              "KN = K * N, rows = job.D"),
    of_host("memory for D steps", "{l.B, int(32 * words(l.N)), (l.D + 1) *",
            "{l.B, int(32 * words(l.N)), l.D *"),
    # -------------------------------------------------------------------------------------- indices
    of_neuron("a neuron past the last", "if (i >= job.B * job.N) return;", "", ADDRESS, 3),
    of_neuron("a synapse past the last", "if (i >= job.N * K * job.N) return;", "", ADDRESS, 2),
    of_neuron("numbers: those of the first launch", "job.numbers[job.t + i]", "job.numbers[i]"),
    of_neuron("pack: never transposed", "job.is_transposed ?", "false ?"),
    of_neuron("pack: with autapses", "(job.autapses || s.j != s.n) && has_delay(job, s)",
              "has_delay(job, s)"),
    of_neuron("pack: the delay of the reverse synapse",
              "job.delay_of[(s.k * job.N + s.j) * job.N + s.n]",
              "job.delay_of[(s.k * job.N + s.n) * job.N + s.j]"),
    of_host("pack: every delay in one place", "return packed + d * l.N * KN;", "return packed;"),
    of_neuron("step: the current of the step before", "(t + 1) * job.x_stride_t",
              "t * job.x_stride_t"),
    of_neuron("gather: inputs before the sequence of the next neuron", "p.at(-1 - past) - p.n;",
              "p.at(-1 - past) - p.n + 1;"),
    of_neuron("gather: rows of the first word", "32 * at + lowest_bit(word)", "lowest_bit(word)"),
    of_neuron("gather: four rows as three", "i < 4; i++)\n          if (i < n)",
              "i < 3; i++)\n          if (i < n)"),
    of_neuron("bits: neurons of the next item", "n < n0 + 32 && n < job.N", "n < n0 + 32"),
    of_neuron("replay: the spike of the step", "spike(job, p, first - 1)", "spike(job, p, first)"),
    of_neuron("replay: always the first spike", "x.before() = x.after();", ""),
    of_neuron("adjoint: states of the next step", "t % steps_of_chunk * S + s",
              "(t + 1) % steps_of_chunk * S + s"),
    of_neuron("adjoint: currents and neurons changed places", "dc[k * job.N + p.n] =",
              "dc[p.n * K + k] ="),
    of_neuron("gather, backward: dL/dc of the next step", "reached % rows", "(reached + 1) % rows"),
    of_neuron("gather, backward: no state of the last step", "first, t + 1);", "first, t);"),
    of_neuron("sum: without the last item", "b < job.B; b++) sum", "b + 1 < job.B; b++) sum"),
    of_neuron("weight gradient: spikes of the next step", "job.t + t);", "job.t + t + 1);"),
    of_neuron("weight gradient: of all delays", "if (!has_delay(job, s)) return;", ""),
    of_neuron("weight gradient: of missing synapses",
              "(!job.existing || weight(job, s) != T(0))", "true"),
    of_host("weight gradient: no delays", "lag = 1 + l.delays[d];", "lag = 1;"),
    of_host("weight gradient: dL/dc of the first rows", "{job.gx + t0 * l.B * this->KN, this->KN,",
            "{job.gx, this->KN,"),
    of_host("weight gradient: every delay into the first matrix",
            "(matrices(l) > 1 ? d * l.N * this->KN : 0)", "0"),
    # ----------------------------------------------------------------------- steps, sums and states
    of_neuron("carried state: a step late",
              "t % steps_of_chunk == 0)\n      for (int s = 0; s < S; s++) job.carry["
              "p.at(t / steps_of_chunk * S + s)] = x.state(s);",
              "t % steps_of_chunk == 1)\n      for (int s = 0; s < S; s++) job.carry["
              "p.at(t / steps_of_chunk * S + s)] = x.state(s);"),
    of_neuron("step: an item goes on after its end", "if (t >= end) return clear_step(job, p, t);",
              ""),
    of_neuron("gather: bits after the end of an item", "for (int64_t t = end; t < job.steps; t++) "
              "job.bits", "for (int64_t t = end + 1; t < job.steps; t++) job.bits"),
    of_neuron("last spikes: of a short item", "end <= back ?", "end < back ?"),
    of_neuron("last spikes: of the first state", "p.at(back - end)", "p.at(back)"),
    of_neuron("adjoint: the last state of the longest item", "back = end - 1 - t;",
              "back = job.steps - 1 - t;"),
    of_neuron("gather, backward: dL/dc after the end of an item", "|| reached >= end)",
              "|| reached >= job.steps)"),
    of_neuron("coefficients: only the first step", "job.sums[p.at(g)] += x.result",
              "job.sums[p.at(g)] = x.result"),
    of_neuron("coefficients: sums do not start at 0", "job.sums[p.at(g)] = T(0);", ";"),
    of_neuron("weight gradient: sums do not start at 0", "job.packed[i] = T(0);", ";"),
    of_host("replay: a chunk late", "t % steps_of_chunk == steps_of_chunk - 1",
            "t % steps_of_chunk == 0"),
    of_host("backward: the last step of the first state", "t >= -l.D; t--)", "t > -l.D; t--)"),
]
