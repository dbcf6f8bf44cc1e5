"""Training sparse and signed networks: DEEP R around any optimizer of torch, or only fixed signs;
and which parameters decay."""
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .modules.checks import check_number
from .modules.weights import (
    broadcast_to_weight,
    check_signs,
    find_synapses,
    keep_signs,
    parameter_groups,
)

__all__ = ["DeepR", "keep_signs", "parameter_groups", "find_synapses"]

EPSILON = 1e-12  # strength of a new connection
_KEY = "deep_r"
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


class _Rewired(NamedTuple):
    """A weight matrix whose connections are rewired."""

    weight: Tensor
    sign: Tensor  # of its shape and dtype, 1 and -1
    allowed: Tensor  # of its shape, bool: where a connection may be
    size: int  # how many that are


class DeepR(Optimizer):
    """DEEP R: rewires sparse networks while another optimizer trains them, with a number of
    connections that never changes.

    A synapse is w = sign * theta while theta > 0 and no connection, w = 0, otherwise; its sign is
    fixed. A step, in the order of the LSNN paper's code:

    1. the optimizer takes its step on theta, with the gradient sign * dL/dw of all synapses,
       dormant ones too, so that what it averages goes on;
    2. what was dormant before stays dormant;
    3. connections shrink and, at a temperature, diffuse: theta += -lr l1 + sqrt(2 lr T) N(0, 1);
    4. as many connections as this has cut are made anew between random dormant pairs, with
       theta = 1e-12. They are shared out among the matrices of a group at random, in proportion to
       their sizes.

    The weights hold w itself, so a module's state_dict is whole; a dormant theta is 0. A dormant
    synapse moves by no rule, so layers with sparse_grad="existing" do, at less cost: an optimizer
    that keeps averages, as Adam does, then averages 0 of a synapse while it is dormant, and one
    that keeps none takes the same path to the bit.

    Args:
        optimizer: any optimizer of torch that takes one gradient a step. Each of its parameter
            groups with a key "connectivity", a share from 0 to 1, is rewired: that share of all
            synapses of the group's matrices is connected. Several matrices in one group share one
            connectivity, so that one may become denser than another; matrices in groups of their
            own keep one each. Keys "l1" and "temperature" of a group stand above the arguments.
        l1: pull on connections towards 0, in units of the learning rate.
        temperature: strength of the noise. Default 0: none.
        signs: for each weight the signs 1 and -1 of its synapses, of a shape that broadcasts to
            its own; (I,) of a weight (N, I) are those of the sources, Dale's law. Default those of
            the weights as they are, and random ones where a weight is 0.
        masks: for each weight a bool tensor that broadcasts to its shape, False where there is no
            synapse: such are set to 0 and count nowhere. See synapses.
        generator: of the CPU, for all draws. Default a new one, with a seed of torch's global one.

    At the start a weight that is not 0 is a connection. Where these are more than wanted, random
    ones are cut, where they are fewer, random ones are made; lsnn_ext.init draws as many as wanted.

    Under torch.distributed all ranks rewire alike: at the start, and when a state is loaded, rank 0
    hands weights, signs and generator to the others. Gradients must be the same on all ranks, as
    DistributedDataParallel makes them.

    Learning rates are those of the optimizer's groups, which this one shares, so schedulers and
    gradient scalers take this one as they take the other. state_dict holds the optimizer's state,
    the signs, the masks and the generator. copy.deepcopy and pickle take the model and this
    optimizer together, so that the copy trains the copied weights.

    Raises:
        TypeError, ValueError: an argument of a wrong kind, shape or range; in step a gradient or a
            weight that is not finite, and weights whose signs or number of connections something
            else has changed. Nothing has been changed then.

    Source: Bellec, Kappel, Maass and Legenstein, ICLR 2018 (arXiv 1711.05136); the code of Bellec
    et al., NeurIPS 2018.
    """

    def __init__(self, optimizer: Optimizer, *, l1: float = 0.01, temperature: float = 0.0,
                 signs: Mapping[Tensor, Tensor] | None = None,
                 masks: Mapping[Tensor, Tensor] | None = None,
                 generator: torch.Generator | None = None) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: expected an optimizer of torch, got "
                            f"{type(optimizer).__name__}")
        check_number("l1", l1)
        check_number("temperature", temperature)
        if generator is None:
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        if generator.device.type != "cpu":
            raise ValueError(f"generator: expected one of the CPU, got {generator.device}")
        super().__init__(optimizer.param_groups, {**optimizer.defaults})
        self.optimizer = optimizer
        self.l1, self.temperature, self.generator = float(l1), float(temperature), generator
        self.rewired = 0  # connections that the last step made
        self._matrices: list[list[_Rewired]] = []  # of each group, none where it is not rewired
        self._share()
        known = [weight for group in self.param_groups if "connectivity" in group
                 for weight in group["params"]]
        for name, given in (("signs", signs), ("masks", masks)):
            for weight in given or ():
                if not any(weight is one for one in known):
                    raise ValueError(f"{name}: expected weights of groups with a connectivity, got "
                                     f"another of shape {tuple(weight.shape)}")
        if not known:
            raise ValueError("optimizer: expected a parameter group with a connectivity, got none")
        for group in self.param_groups:
            self._take(group, signs or {}, masks or {})
        self._agree()

    @classmethod
    def of(cls, module: nn.Module, optimizer: Callable[..., Optimizer], connectivity: float, *,
           l1: float = 0.01, temperature: float = 0.0, signs: Mapping[Tensor, Tensor] | None = None,
           generator: torch.Generator | None = None, **options: Any) -> "DeepR":
        """DEEP R for all weight matrices of a module, in one group, and the plain optimizer for its
        other parameters.

        Args:
            module: an LSNN, or any module; diagonals that do not act count nowhere, see synapses.
            optimizer: makes the optimizer of parameter groups, torch.optim.Adam say.
            connectivity: the share of all synapses that is connected.
            l1, temperature, signs, generator: as for DeepR.
            **options: of the optimizer, lr say; weight_decay acts on weights only, as by
                parameter_groups.
        """
        weights, masks = find_synapses(module)
        decaying, others = parameter_groups(module, weight_decay=0.0)
        known = set(map(id, weights))
        more = [weight for weight in decaying["params"] if id(weight) not in known]
        groups: list[dict[str, Any]] = [{"params": weights, "connectivity": connectivity}]
        groups += [{"params": more}] if more else []
        groups += [others] if others["params"] else []
        return cls(optimizer(groups, **options), l1=l1, temperature=temperature, signs=signs,
                   masks=masks, generator=generator)

    # ------------------------------------------------------------------------------------- the step
    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of the optimizer, and the rewiring; a closure is called once, before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        matrices = [one for group in self._matrices for one in group]
        for one in matrices:
            _to_theta(one)
        try:
            before = [one.weight > 0 for one in matrices]
            self._check(before)
            self.optimizer.step()
            for one, was in zip(matrices, before, strict=True):
                one.weight.mul_(was)
            self.rewired = sum(self._rewire(group, held) for group, held
                               in zip(self.param_groups, self._matrices, strict=True) if held)
        finally:
            for one in matrices:
                _to_weight(one)
        return loss

    def _rewire(self, group: dict[str, Any], held: list[_Rewired]) -> int:
        """Shrinks, diffuses and reconnects the thetas of a group; how many were reconnected."""
        lr = float(group["lr"])
        l1 = float(group.get("l1", self.l1))
        temperature = float(group.get("temperature", self.temperature))
        for theta, _, _, _ in held:
            if theta.grad is not None:
                change: Tensor | float = -lr * l1
                if temperature:  # without noise, what is 0 or less falls and is 0 again
                    noise = math.sqrt(2 * lr * temperature) * self._normal(theta)
                    change = (noise - lr * l1).masked_fill_(theta <= 0, 0.0)
                theta.add_(change)
            theta.clamp_(min=0.0)
        missing = _wanted(group, held) - sum(int((one.weight > 0).sum()) for one in held)
        self._connect(held, missing)
        return missing

    def _connect(self, held: list[_Rewired], missing: int) -> None:
        """Makes that many connections of thetas that are 0, shared out in proportion to sizes."""
        sizes = torch.tensor([float(one.size) for one in held], dtype=torch.float64)
        while missing:
            # a matrix without room leaves its share to the others, drawn again
            drawn = torch.multinomial(sizes, missing, replacement=True, generator=self.generator)
            for k, count in enumerate(drawn.bincount(minlength=len(held)).tolist()):
                if not count:
                    continue
                theta, _, allowed, _ = held[k]
                dormant = ((theta <= 0) & allowed).reshape(-1).nonzero().squeeze(1)
                if len(dormant) <= count:
                    sizes[k] = 0.0
                chosen = dormant[self._some(len(dormant), count).to(dormant.device)]
                theta.index_put_(torch.unravel_index(chosen, theta.shape),
                                 theta.new_tensor(EPSILON))
                missing -= len(chosen)

    def _some(self, n: int, count: int) -> Tensor:
        """Distinct whole numbers below n, every set of them as likely: as many as counted, or all
        n."""
        if 4 * count > n:
            return torch.randperm(n, generator=self.generator)[:count]
        found = torch.empty(0, dtype=torch.int64)
        while len(found) < count:  # a few are drawn twice, and then others for them
            more = torch.randint(n, (count - len(found),), generator=self.generator)
            found = torch.cat([found, more]).unique()
        return found

    def _normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype).to(like.device)

    def _check(self, connected: list[Tensor]) -> None:
        """Raises ValueError where a step on the thetas would not be what DEEP R says."""
        counts = iter([int(one.sum()) for one in connected])
        for group, held in zip(self.param_groups, self._matrices, strict=True):
            count = 0
            for theta, _, allowed, size in held:
                where = f"a weight of shape {tuple(theta.shape)}"
                if theta.grad is not None and not _within(theta.grad, -math.inf):
                    raise ValueError(f"gradient: expected finite numbers of {where}, got others")
                if not _within(theta, 0.0) or (
                        size < theta.numel() and bool(theta.masked_fill(allowed, 0.0).any())):
                    raise ValueError(f"weight: expected finite numbers of the signs that {where} "
                                     f"had when the optimizer took it, 0 where there is no "
                                     f"synapse, got others")
                count += next(counts)
            if held and count != (wanted := _wanted(group, held)):
                raise ValueError(f"weight: expected {wanted} connections as the last step left "
                                 f"them, got {count}; after loading weights load the optimizer's "
                                 f"state too")

    # ---------------------------------------------------------------------------------------- state
    def connectivity(self) -> list[list[float]]:
        """For each group the share of synapses of each matrix that is connected; [] for a group
        that is not rewired."""
        return [[int((one.weight != 0).sum()) / one.size for one in held]
                for held in self._matrices]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group as an optimizer does; with a key "connectivity" it is rewired, with the
        signs of its weights as they are."""
        if "optimizer" not in self.__dict__:  # the base class takes over the groups
            super().add_param_group(param_group)
            return
        self.optimizer.add_param_group(param_group)
        self._share()
        self._take(self.param_groups[-1], {}, {})
        self._agree()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which have no hooks, as those of any optimizer."""
        names = ("optimizer", "l1", "temperature", "generator", "rewired", "_matrices")
        return super().__getstate__() | {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, and under "deep_r" signs, masks and the generator's state."""
        own = {"signs": [[one.sign.to(torch.int8) for one in held] for held in self._matrices],
               "masks": [[one.allowed.clone() for one in held] for held in self._matrices],
               "generator": self.generator.get_state(), "rewired": self.rewired}
        return {**self.optimizer.state_dict(), _KEY: own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a state, whose weights the module has to load too."""
        if _KEY not in state_dict:
            raise ValueError("state_dict: expected that of a DeepR, got one of another optimizer")
        own = state_dict[_KEY]
        shapes = [[tuple(sign.shape) for sign in held] for held in own["signs"]]
        wanted = [[tuple(one.weight.shape) for one in held] for held in self._matrices]
        if shapes != wanted:
            raise ValueError(f"state_dict: expected signs of shapes {wanted}, got {shapes}")
        self.optimizer.load_state_dict({key: value for key, value in state_dict.items()
                                        if key != _KEY})
        self._share()
        for held, signs, masks in zip(self._matrices, own["signs"], own["masks"], strict=True):
            for k, (one, sign, allowed) in enumerate(zip(held, signs, masks, strict=True)):
                held[k] = _Rewired(one.weight, sign.to(one.weight),
                                   allowed.to(one.weight.device), int(allowed.sum()))
        self.generator.set_state(own["generator"].cpu())
        self.rewired = own["rewired"]
        self._agree()

    def _share(self) -> None:
        """Groups and state are those of the optimizer, which makes others when it loads."""
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state

    @torch.no_grad()
    def _take(self, group: dict[str, Any], signs: Mapping[Tensor, Tensor],
              masks: Mapping[Tensor, Tensor]) -> None:
        """Begins to rewire a group, with as many connections as it is to have."""
        held: list[_Rewired] = []
        self._matrices.append(held)
        if "connectivity" not in group:
            return
        if "lr" not in group:
            raise ValueError("optimizer: expected a learning rate lr in each group that is rewired")
        check_number("connectivity", group["connectivity"], "a share from 0 to 1", 1.0)
        for name in ("l1", "temperature"):
            check_number(name, group.get(name, 0.0))
        for weight in group["params"]:
            if weight.dtype not in _DTYPES:
                raise TypeError(f"weight: expected {', '.join(map(str, _DTYPES))}, got "
                                f"{weight.dtype}")
            mask = masks.get(weight, weight.new_ones((), dtype=torch.bool))
            allowed = broadcast_to_weight("masks", mask, weight).clone()
            weight.masked_fill_(~allowed, 0.0)
            if weight in signs:
                sign = check_signs(signs[weight], weight)
            else:
                coin = torch.rand(weight.shape, generator=self.generator).to(weight.device)
                sign = torch.where(weight == 0, torch.where(coin < 0.5, -1.0, 1.0).to(weight),
                                   weight.sign())
            held.append(_Rewired(weight, sign, allowed, int(allowed.sum())))
        missing = _wanted(group, held) - sum(int((one.weight != 0).sum()) for one in held)
        for one in held:
            _to_theta(one)
        self._connect(held, max(missing, 0))
        self._cut(held, max(-missing, 0))
        for one in held:
            _to_weight(one)

    def _cut(self, held: list[_Rewired], count: int) -> None:
        """Cuts that many random connections."""
        here = [(one.weight > 0).reshape(-1).nonzero().squeeze(1).cpu() for one in held]
        owner = torch.cat([torch.full_like(places, k) for k, places in enumerate(here)])
        chosen = self._some(len(owner), count)
        owner, places = owner[chosen], torch.cat(here)[chosen]
        for k, one in enumerate(held):
            at = places[owner == k].to(one.weight.device)
            one.weight.index_put_(torch.unravel_index(at, one.weight.shape),
                                  one.weight.new_zeros(()))

    @torch.no_grad()
    def _agree(self) -> None:
        """Gives all ranks the weights, signs, masks and generator of rank 0."""
        spread = torch.distributed
        if not spread.is_available() or not spread.is_initialized() or spread.get_world_size() == 1:
            return
        for held in self._matrices:
            for k, one in enumerate(held):
                allowed = one.allowed.to(torch.uint8)
                for tensor in (one.weight, one.sign, allowed):
                    spread.broadcast(tensor, 0)
                held[k] = one._replace(allowed=allowed.bool(), size=int(allowed.sum()))
        state = [self.generator.get_state()]
        spread.broadcast_object_list(state, 0)
        self.generator.set_state(state[0])


# -------------------------------------------------------------------------------------------- parts
def _to_theta(one: _Rewired) -> None:
    """From weight and gradient to theta and its gradient."""
    one.weight.mul_(one.sign)
    if one.weight.grad is not None:
        one.weight.grad.mul_(one.sign)


def _to_weight(one: _Rewired) -> None:
    """Back again; no zero keeps a sign."""
    _to_theta(one)
    one.weight.add_(0.0)  # -0 + 0 is 0


def _within(values: Tensor, least: float) -> bool:
    """Whether all are finite and none is less."""
    if not values.numel():
        return True
    low, high = values.aminmax()  # NaN, where one is
    return bool((low >= least) & low.isfinite() & high.isfinite())


def _wanted(group: dict[str, Any], held: list[_Rewired]) -> int:
    """How many synapses of a group are connected, rounded down, but for what a float loses."""
    return int(sum(one.size for one in held) * float(group["connectivity"]) + 1e-6)

