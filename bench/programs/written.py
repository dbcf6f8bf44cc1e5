"""Programs without a repository: written here as users of the packages write them.

Only those imports run that a program needs, see load.py.
"""

import norse.torch as norse
import snntorch
import torch
from sinabs import layers
from snntorch import surrogate, utils
from torch import Tensor, nn

from lsnn_ext.zoo.surrogates import super_spike


class NorseClassifier(nn.Module):
    """A LIFRecurrentCell with time constants of its own in each neuron, and a LICell."""

    def __init__(self, inputs: int, hidden: int, classes: int, per_neuron: bool) -> None:
        super().__init__()
        parameters = norse.LIFParameters()
        if per_neuron:
            parameters = norse.LIFParameters(
                tau_mem_inv=torch.empty(hidden).uniform_(50.0, 200.0),
                v_th=torch.empty(hidden).uniform_(0.3, 0.6))
        self.hidden = norse.LIFRecurrentCell(inputs, hidden, p=parameters)
        self.fc = nn.Linear(hidden, classes)
        self.out = norse.LICell()

    def forward(self, x: Tensor) -> Tensor:
        """x: (T, B, inputs); the largest voltage over time, (B, classes)."""
        hidden_state = out_state = None
        voltages = []
        for x_t in x:
            z, hidden_state = self.hidden(x_t, hidden_state)
            v, out_state = self.out(self.fc(z), out_state)
            voltages.append(v)
        return torch.stack(voltages).max(0).values


class NorseFilter(nn.Module):
    """A LSNNRecurrent whose spikes an exponential filter smooths."""

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.lsnn = norse.LSNNRecurrent(inputs, hidden)
        self.fc = nn.Linear(hidden, classes)
        self.decay = 0.9

    def forward(self, x: Tensor) -> Tensor:
        """x: (T, B, inputs); the filtered output of the last step, (B, classes)."""
        z, _ = self.lsnn(x)
        filtered = torch.zeros_like(z[0])
        for z_t in z:
            filtered = self.decay * filtered + (1 - self.decay) * z_t
        return self.fc(filtered)


class EEGNet(nn.Module):
    """A convolution over the channels, LSNNRecurrent(10) and a mean over time."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, 16, 7, padding=3)
        self.norm = nn.BatchNorm1d(16)
        self.lsnn = norse.LSNNRecurrent(16, 10)
        self.fc = nn.Linear(10, classes)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, channels, T); (B, classes)."""
        current = torch.relu(self.norm(self.conv(x))).permute(2, 0, 1)
        z, _ = self.lsnn(current)
        return self.fc(z).mean(0)


class SnnTorchNet(nn.Module):
    """Linear, a recurrent neuron of snnTorch, Linear, Leaky, called once a step."""

    def __init__(self, inputs: int, hidden: int, classes: int, kind: str,
                 threshold: float = 1.0) -> None:
        super().__init__()
        common = {"linear_features": hidden, "threshold": threshold,
                  "spike_grad": surrogate.fast_sigmoid(slope=25)}
        self.kind = kind
        self.fc1 = nn.Linear(inputs, hidden)
        self.hidden = (snntorch.RLeaky(beta=0.9, **common) if kind == "RLeaky"
                       else snntorch.RSynaptic(alpha=0.85, beta=0.9, **common))
        self.fc2 = nn.Linear(hidden, classes)
        self.out = snntorch.Leaky(beta=0.9, spike_grad=surrogate.fast_sigmoid(slope=25))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: (T, B, inputs); spikes and membranes of the output, (T, B, classes)."""
        state = self.hidden.reset_mem()
        membrane = self.out.reset_mem()
        spikes, membranes = [], []
        for t in range(x.size(0)):
            z, *rest = self.hidden(self.fc1(x[t]), *state)
            state = (z, *rest)
            spike, membrane = self.out(self.fc2(z), membrane)
            spikes.append(spike)
            membranes.append(membrane)
        return torch.stack(spikes), torch.stack(membranes)


class Reservoir(nn.Module):
    """A liquid state machine: fixed random weights, a high threshold, a readout of counts."""

    def __init__(self, inputs: int, neurons: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(inputs, neurons)
        self.lsm = snntorch.RSynaptic(alpha=0.9, beta=0.8, linear_features=neurons, threshold=20)
        for weight in (*self.fc.parameters(), *self.lsm.parameters()):
            weight.requires_grad_(False)
        nn.init.normal_(self.fc.weight, std=1.5)
        self.readout = nn.Linear(neurons, classes)

    def forward(self, x: Tensor) -> Tensor:
        """x: (T, B, inputs); (B, classes)."""
        spike, synapse, membrane = self.lsm.init_rsynaptic()
        collected = []
        for step in range(x.shape[0]):
            spike, synapse, membrane = self.lsm(self.fc(x[step]), spike, synapse, membrane)
            collected.append(spike)
        return self.readout(torch.stack(collected).mean(0))


class NormalizedRSNN(nn.Module):
    """Two recurrent layers; LayerNorm and clamp act on the membrane of the first."""

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.fc_in = nn.Linear(inputs, hidden)
        self.rec1 = nn.Linear(hidden, hidden, bias=False)
        self.norm = nn.LayerNorm(hidden)
        self.between = nn.Linear(hidden, hidden)
        self.rec2 = nn.Linear(hidden, hidden, bias=False)
        self.fc_out = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, inputs); (B, classes)."""
        batch, steps, _ = x.shape
        v1 = x.new_zeros(batch, self.norm.normalized_shape[0])
        z1, v2, z2 = torch.zeros_like(v1), torch.zeros_like(v1), torch.zeros_like(v1)
        out = 0
        for t in range(steps):
            v1 = self.norm(0.9 * v1 + self.fc_in(x[:, t]) + self.rec1(z1)).clamp(-3.0, 3.0)
            z1 = super_spike(v1 - 1.0, 10.0)
            v1 = v1 * (1 - z1)
            v2 = 0.9 * v2 + self.between(z1) + self.rec2(z2) - z2
            z2 = super_spike(v2 - 0.5, 10.0)
            out = out + self.fc_out(z2)
        return out / steps


class HiddenState(nn.Module):
    """A Sequential whose neurons of snnTorch keep their state in attributes."""

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(inputs, hidden),
            snntorch.RLeaky(beta=0.9, linear_features=hidden, init_hidden=True),
            nn.Linear(hidden, classes),
            snntorch.Leaky(beta=0.9, init_hidden=True, output=True))

    def forward(self, x: Tensor) -> Tensor:
        """x: (T, B, inputs); the sum of the spikes, (B, classes)."""
        utils.reset(self.net)
        spikes = []
        for x_t in x:
            spike, _ = self.net(x_t)
            spikes.append(spike)
        return torch.stack(spikes).sum(0)


class _LIFNode(nn.Module):
    """A layer over time, with or without a recurrent matrix, hard reset."""

    def __init__(self, neurons: int, recurrent: bool) -> None:
        super().__init__()
        self.recurrent = nn.Linear(neurons, neurons) if recurrent else None

    def forward(self, currents: Tensor) -> Tensor:
        """(T, B, neurons), currents to spikes."""
        v, z = torch.zeros_like(currents[0]), torch.zeros_like(currents[0])
        spikes = []
        for c in currents:
            if self.recurrent is not None:
                c = c + self.recurrent(z)  # noqa: PLW2901
            v = 0.5 * v * (1 - z) + c
            z = super_spike(v - 0.5, 10.0)
            spikes.append(z)
        return torch.stack(spikes)


class SMLP(nn.Module):
    """Three hidden layers, of which the second is recurrent."""

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        sizes = [inputs, hidden, hidden, hidden]
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:],
                                                                     strict=False))
        self.nodes = nn.ModuleList(_LIFNode(hidden, i == 1) for i in range(3))
        self.classifier = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """x: (T, B, inputs); (B, classes)."""
        for linear, node in zip(self.linears, self.nodes, strict=True):
            x = node(linear(x))
        return self.classifier(x).mean(0)


def sinabs_recurrent(kind: str, neurons: int) -> nn.Module:
    """A recurrent layer of sinabs with Flatten and Linear as its connection."""
    connection = nn.Sequential(nn.Flatten(), nn.Linear(neurons, neurons, bias=False))
    coefficients = {"tau_mem": 20.0, "norm_input": False, "rec_connect": connection}
    if kind == "ALIF":
        return layers.ALIFRecurrent(tau_adapt=10.0, **coefficients)
    return layers.LIFRecurrent(**coefficients)

