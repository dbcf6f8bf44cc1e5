"""The recurrent layer of Yin et al., as one fused operator over the sequence.

    from lsnn_ext.yin import SRNN    # in place of from SRNN_layers.spike_rnn import spike_rnn

Arguments, defaults, parameters and the state that stays in the layer are those of class spike_rnn
of the published programs for speech commands (byin-cwi/Efficient-spiking-networks, folder GSC). In
those a call is one step inside the user's loop; here a call with (B, I) is that step, and one with
(T, B, I) the whole loop. docs/from_yin_and_sparch.md says which parameter is which of
functional.alif.

Source: Yin, Corradi and Bohte, Nature Machine Intelligence 3, 905 (2021).
"""
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import functional
from ._original import Original, Shape, measured, plain_linear, refuse, state_of

__all__ = ["SRNN"]


def _shape(layer: str, kind: str, gamma: float, lens: float) -> Shape:
    """The derivative of act_fun_adp, by the surrograte_type of the programs."""
    shapes = {"MG": Shape("multi_gaussian", gamma, lens), "G": Shape("gaussian", gamma, lens),
              "linear": Shape("triangle", gamma, 1.0),
              "slayer": Shape("exponential", gamma / 5, 1 / 5)}
    if kind not in shapes:
        refuse(layer, "surrogate", repr(kind), ", ".join(shapes))
    return shapes[kind]


def _hold_update(layer: str, update: Callable[..., Any], shape: Shape, given: dict[str, Any],
                 device: Any) -> None:
    """Raises Refused where the program's function of a step is not the published one."""
    generator = torch.Generator().manual_seed(1)
    names = ("inputs", "mem", "spike", "b", "tau_adp", "tau_m")
    x = dict(zip(names, 4 * torch.rand(6, 3, 50, generator=generator), strict=True))
    x["spike"], x["mem"] = (x["spike"] > 2).float(), 2 * x["mem"] - 4
    x = {name: value.to(device) for name, value in x.items()}
    alpha, rho = (torch.exp(-1 / x[name]) for name in ("tau_m", "tau_adp"))
    b = rho * x["b"] + (1 - rho) * x["spike"]
    A = given["b_j0_value"] + given["beta_value"] * b
    mem = alpha * x["mem"] + given["R_m"] * (1 - alpha) * x["inputs"] - A * x["spike"]
    found = update(x["inputs"], x["mem"], x["spike"], x["tau_adp"], x["b"], x["tau_m"],
                   device=device, isAdapt=1)
    # a distance that rounding may turn round is no sign of another function
    clear = (mem - A).abs() > 1e-4
    same = (torch.allclose(found[0], mem, atol=1e-5) and torch.allclose(found[3], b, atol=1e-5)
            and torch.equal(found[1][clear], (mem > A).float()[clear]))
    if not same:
        refuse(layer, "mem_update_adp", "a function with other values", "the published one")
    measured(shape, given["act_fun_adp"], layer, "act_fun_adp")


class SRNN(Original):
    """spike_rnn of Yin et al.: adaptive neurons, the input weights inside.

    Args:
        input_dim, output_dim: features of the input, I, and neurons, N.
        tauM, tauM_inital_std, tauAdp_inital, tauAdp_inital_std: means and standard deviations of
            the time constants, in steps, with which they begin.
        tau_initializer: "normal"; the programs' "multi_normal" is refused.
        is_adaptive: 0: no adaptation.
        device: of the parameters.
        bias: of both nn.Linear.
        b_j0, beta, gamma, lens, surrogate, R_m: constants that the programs have outside of the
            class: threshold, strength of the adaptation, height and width of the surrogate, its
            kind ("MG", "G", "linear", "slayer"), gain of the input.

    Parameters: dense and recurrent (nn.Linear), tau_m and tau_adp (N,). Each pass raises
    ValueError where a time constant has left its range, as functional.alif does.
    """

    original = "SRNN_layers.spike_rnn.spike_rnn"
    once = ("b_j0",)

    def __init__(self, input_dim: int, output_dim: int, tauM: float = 20,
                 tauAdp_inital: float = 100, tau_initializer: str = "normal",
                 tauM_inital_std: float = 5, tauAdp_inital_std: float = 5, is_adaptive: int = 1,
                 device: Any = "cpu", bias: bool = True, *, b_j0: float = 1.6,
                 beta: float = 0.184, gamma: float = 0.5, lens: float = 0.5,
                 surrogate: str = "MG", R_m: float = 1.0) -> None:
        super().__init__()
        if tau_initializer != "normal":
            refuse(type(self).__name__, "tau_initializer", repr(tau_initializer), "'normal'")
        self.input_dim, self.output_dim, self.is_adaptive = input_dim, output_dim, is_adaptive
        self.b_j0, self.beta, self.R_m = b_j0, beta, R_m
        self._shape = _shape(type(self).__name__, surrogate, gamma, lens)
        self.dense = nn.Linear(input_dim, output_dim, bias=bias, device=device)
        self.recurrent = nn.Linear(output_dim, output_dim, bias=bias, device=device)
        self.tau_m = nn.Parameter(torch.empty(output_dim, device=device))
        self.tau_adp = nn.Parameter(torch.empty(output_dim, device=device))
        nn.init.normal_(self.tau_m, tauM, tauM_inital_std)
        nn.init.normal_(self.tau_adp, tauAdp_inital, tauAdp_inital_std)
        self._forget()

    def _forget(self) -> None:
        self.mem: Tensor | None = None
        self.spike: Tensor | None = None
        self.b: Tensor | None = None

    def _adopt(self, module: Any) -> None:
        name = type(self).__name__
        update = type(module).forward.__globals__.get("mem_update_adp")
        constants = getattr(update, "__globals__", {})
        wanted = ("b_j0_value", "beta_value", "gamma", "lens", "R_m", "surrograte_type",
                  "act_fun_adp")
        missing = [word for word in wanted if word not in constants]
        if missing or update is None:
            refuse(name, "mem_update_adp", f"none of {', '.join(missing) or 'that name'}",
                   "the program's function and constants beside its class")
        given = {word: constants[word] for word in wanted}
        if inspect.signature(update).parameters["dt"].default != 1:
            refuse(name, "dt", inspect.signature(update).parameters["dt"].default, "1")
        start = getattr(module, "b_j0", given["b_j0_value"])  # of the adaptation, in the programs
        if not bool((torch.as_tensor(start) == given["b_j0_value"]).all()):
            refuse(name, "b_j0", start, f"{given['b_j0_value']}, the b_j0_value beside the class")
        self._shape = _shape(name, given["surrograte_type"], given["gamma"], given["lens"])
        _hold_update(name, update, self._shape, given, module.device)
        self.input_dim, self.output_dim = module.input_dim, module.output_dim
        self.is_adaptive, self.b_j0 = module.is_adaptive, given["b_j0_value"]
        self.beta, self.R_m = given["beta_value"], given["R_m"]
        self.dense, self.recurrent = module.dense, module.recurrent
        self.tau_m, self.tau_adp = module.tau_m, module.tau_adp
        plain_linear(name, "dense", self.dense)
        plain_linear(name, "recurrent", self.recurrent)
        self.mem, self.spike, self.b = (getattr(module, key, None) for key in ("mem", "spike", "b"))

    def extra_repr(self) -> str:
        """What is not a parameter."""
        return f"b_j0={self.b_j0}, beta={self.beta if self.is_adaptive else 0}"

    def set_neuron_state(self, batch_size: int) -> None:
        """No spikes, membranes of 0, and an adaptation of b_j0, with which the programs begin."""
        self.mem, self.spike, b = self.tau_m.new_zeros(3, batch_size, self.output_dim).unbind()
        self.b = b + self.b_j0

    def forward(self, input_spike: Tensor, *, trace: bool = False) -> tuple[Tensor, Tensor]:
        """One step as in the programs, or a whole sequence, from the state that is in the layer.

        Args:
            input_spike: (B, I): one step. (T, B, I): a sequence.
            trace: with a sequence, return the membranes of all its steps.

        Returns:
            mem and spike, (B, N) each. Of a sequence spike is (T, B, N), and mem that of the last
            step, with trace=True (T, B, N). Both and b stay in the layer with their graph;
            set_neuron_state begins anew, and is called where there is no state yet.

        Raises:
            TypeError, ValueError: as functional.alif.
        """
        if input_spike.dim() == 2:
            mem, spikes = self.step(input_spike)
            return mem, spikes
        if input_spike.dim() != 3 or not input_spike.shape[0]:
            raise ValueError(f"input_spike: expected shape (B, I), or (T, B, I) with T >= 1, got "
                             f"{tuple(input_spike.shape)}")
        return self._sequence(input_spike, trace)

    def step(self, input_spike: Tensor) -> tuple[Tensor, Tensor]:
        """One step, (B, I) to mem and spike (B, N)."""
        mem, spikes = self._sequence(input_spike.unsqueeze(0), False)
        return mem, spikes[0]

    def _sequence(self, x: Tensor, trace: bool) -> tuple[Tensor, Tensor]:
        if self.mem is None or self.spike is None or self.b is None:
            self.set_neuron_state(x.shape[1])
        assert self.mem is not None and self.spike is not None and self.b is not None
        name = type(self).__name__
        dense, recurrent = (plain_linear(name, key, getattr(self, key))
                            for key in ("dense", "recurrent"))
        bias: Tensor | None = dense.bias
        if recurrent.bias is not None:
            bias = recurrent.bias if bias is None else bias + recurrent.bias
        alpha = torch.exp(-1 / self.tau_m)
        out = functional.layer(
            x.to(self.mem.dtype), dense.weight, recurrent.weight.t(), bias=bias, alpha=alpha,
            rho=torch.exp(-1 / self.tau_adp), theta=self.b_j0,
            beta=self.beta if self.is_adaptive else 0.0,
            kappa=None if self.R_m == 1 else self.R_m * (1 - alpha), dynamics="srnn", trace=trace,
            state=state_of(self.mem, self.spike[None], self.b), **self._shape._asdict())
        spikes = out.spikes
        assert spikes is not None
        self.mem, self.b, self.spike = out.state.v, out.state.a, spikes[-1]
        return out.state.v if out.traces is None else out.traces.v, spikes
