"""Training of sparse and signed networks: DEEP R around any optimizer of torch, fixed signs, and
parameter groups for weight decay."""
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .modules.checks import check_number
from .modules.weights import broadcast_to, check_signs, find_synapses, keep_signs, parameter_groups

__all__ = ["DeepR", "keep_signs", "parameter_groups", "find_synapses"]

EPSILON = 1e-12  # strength of a new connection
_KEY = "deep_r"
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


class _Rewired(NamedTuple):
    weight: Tensor
    sign: Tensor  # of its shape and dtype, 1 and -1
    allowed: Tensor  # of its shape, bool: where a connection may be
    size: int  # number of allowed connections


class DeepR(Optimizer):
    """DEEP R: rewires sparse networks while another optimizer trains them, with a constant number
    of connections.

    A synapse of fixed sign is connected while theta > 0, with w = sign * theta, and dormant with
    w = 0 otherwise. A step, in the order of the LSNN paper's code:

    1. the optimizer steps on theta with the gradient sign * dL/dw of all synapses, dormant ones
       too, so its running averages go on;
    2. dormant synapses stay dormant;
    3. connections shrink and, at a temperature T > 0, diffuse:
       theta += -lr l1 + sqrt(2 lr T) N(0, 1);
    4. as many connections as were cut are made between random dormant pairs, with theta = 1e-12.
       They are distributed among the matrices of a group at random, in proportion to their sizes.

    The weights hold w, so the state_dict of a module is complete; a dormant theta is 0. The
    gradient of a dormant synapse has no direct effect, so layers may use sparse_grad="existing" at
    less cost. An optimizer with running averages, such as Adam, then averages 0 for dormant
    synapses; for one without, results are bitwise identical.

    Args:
        optimizer: any optimizer of torch that takes one gradient a step. Each of its parameter
            groups with a key "connectivity", a fraction from 0 to 1, is rewired: this fraction of
            all synapses of its matrices is connected. The matrices of a group share one
            connectivity, so one may become denser than another; matrices in separate groups keep
            theirs. Keys "l1" and "temperature" of a group override the arguments.
        l1: decrease of theta in a step, in units of the learning rate. Default 0.01.
        temperature: strength of the noise. Default 0: none.
        signs: for each weight a tensor of 1 and -1 that broadcasts to its shape; (I,) for a weight
            (N, I) are the signs of sources, Dale's law. Default: the signs of the weights, random
            where a weight is 0.
        masks: for each weight a bool tensor that broadcasts to its shape, False where there is no
            synapse: such weights are set to 0 and not counted. See find_synapses.
        generator: of the CPU, for all draws. Default: a new one, seeded by torch's global one.

    Initially a weight that is not 0 is a connection. Random ones are cut or made until the
    connectivity is met; lsnn_ext.init makes the exact number.

    Under torch.distributed all ranks rewire identically: initially, and when a state is loaded,
    rank 0 broadcasts weights, signs and generator. Gradients must be the same on all ranks, as with
    DistributedDataParallel.

    Learning rates are those of the optimizer's groups, which are shared, so schedulers and gradient
    scalers work as with the optimizer. state_dict holds the optimizer's state, the signs, the masks
    and the generator. copy.deepcopy and pickle need the model and this optimizer together, so the
    copy trains the copied weights.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or range; in step a gradient or
            a weight that is not finite, and weights whose signs or number of connections have
            changed since the last step. Then nothing is changed.

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
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, (), device="cpu")))
        if generator.device.type != "cpu":
            raise ValueError(f"generator: expected a generator of the CPU, got {generator.device}")
        super().__init__(optimizer.param_groups, {**optimizer.defaults})
        self.optimizer = optimizer
        self.l1, self.temperature, self.generator = float(l1), float(temperature), generator
        self.rewired = 0  # connections that the last step made
        self._matrices: list[list[_Rewired]] = []  # of each group, none where it is not rewired
        self._share()
        rewired = [weight for group in self.param_groups if "connectivity" in group
                   for weight in group["params"]]
        for name, argument in (("signs", signs), ("masks", masks)):
            for weight in argument or ():
                if not any(weight is one for one in rewired):
                    raise ValueError(f"{name}: expected weights of groups with a connectivity, got "
                                     f"another of shape {tuple(weight.shape)}")
        if not rewired:
            raise ValueError("optimizer: expected a parameter group with a connectivity, got none")
        for group in self.param_groups:
            self._start(group, signs or {}, masks or {})
        self._synchronize()

    @classmethod
    def of(cls, module: nn.Module, optimizer: Callable[..., Optimizer], connectivity: float, *,
           l1: float = 0.01, temperature: float = 0.0, signs: Mapping[Tensor, Tensor] | None = None,
           generator: torch.Generator | None = None, **options: Any) -> "DeepR":
        """Returns DEEP R for all weight matrices of a module, in one group; other parameters are
        only trained.

        Args:
            module: an LSNN, or any module; diagonals without autapses are not counted, see
                find_synapses.
            optimizer: a class or function from parameter groups to an optimizer, such as
                torch.optim.Adam.
            connectivity: the fraction of all synapses that is connected.
            l1, temperature, signs, generator: as of DeepR.
            **options: of the optimizer, such as lr; weight_decay affects weights only, as in
                parameter_groups.

        Example:
            >>> tuned = DeepR.of(net, torch.optim.Adam, 0.1, lr=0.001)
        """
        weights, masks = find_synapses(module)
        decaying, others = parameter_groups(module, weight_decay=0.0)
        ids = set(map(id, weights))
        more = [weight for weight in decaying["params"] if id(weight) not in ids]
        groups = {"params": weights, "connectivity": connectivity}, {"params": more}, others
        tuned = optimizer([group for group in groups if group["params"]], **options)
        return cls(tuned, l1=l1, temperature=temperature, signs=signs, masks=masks,
                   generator=generator)

    # ------------------------------------------------------------------------------------- the step
    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Takes one step of the optimizer and rewires; a closure is called once, before."""
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
            self.rewired = sum(self._rewire(group, members) for group, members
                               in zip(self.param_groups, self._matrices, strict=True) if members)
        finally:
            for one in matrices:
                _to_weight(one)
        return loss

    def _rewire(self, group: dict[str, Any], members: list[_Rewired]) -> int:
        """Shrinks, diffuses and reconnects the thetas of a group; returns how many it made."""
        lr = float(group["lr"])
        l1 = float(group.get("l1", self.l1))
        temperature = float(group.get("temperature", self.temperature))
        for theta, _, _, _ in members:
            if theta.grad is not None:
                change: Tensor | float = -lr * l1
                if temperature:  # without noise dormant ones only decrease, and are clamped to 0
                    noise = torch.randn(theta.shape, generator=self.generator, dtype=theta.dtype,
                                        device="cpu")
                    noise = math.sqrt(2 * lr * temperature) * noise.to(theta.device)
                    change = (noise - lr * l1).masked_fill_(theta <= 0, 0.0)
                theta.add_(change)
            theta.clamp_(min=0.0)
        connected = sum(int((one.weight > 0).sum()) for one in members)
        missing = _count_connections(group, members) - connected
        self._connect(members, missing)
        return missing

    def _connect(self, members: list[_Rewired], missing: int) -> None:
        """Makes this number of connections from dormant thetas, in proportion to sizes."""
        sizes = torch.tensor([float(one.size) for one in members], dtype=torch.float64,
                             device="cpu")
        while missing:
            # for a full matrix the others are drawn again
            drawn = torch.multinomial(sizes, missing, replacement=True, generator=self.generator)
            for k, count in enumerate(drawn.bincount(minlength=len(members)).tolist()):
                if not count:
                    continue
                theta, _, allowed, _ = members[k]
                dormant = ((theta <= 0) & allowed).reshape(-1).nonzero().squeeze(1)
                if len(dormant) <= count:
                    sizes[k] = 0.0
                chosen = dormant[self._draw_distinct(len(dormant), count).to(dormant.device)]
                theta.index_put_(torch.unravel_index(chosen, theta.shape),
                                 theta.new_tensor(EPSILON))
                missing -= len(chosen)

    def _draw_distinct(self, n: int, count: int) -> Tensor:
        """Distinct random integers below n: count of them, at most n."""
        if 4 * count > n:
            return torch.randperm(n, generator=self.generator, device="cpu")[:count]
        found = torch.empty(0, dtype=torch.int64, device="cpu")
        while len(found) < count:  # replaces duplicates
            more = torch.randint(n, (count - len(found),), generator=self.generator, device="cpu")
            found = torch.cat([found, more]).unique()
        return found

    def _check(self, connected: list[Tensor]) -> None:
        """Raises ValueError unless gradients, weights and connections are as DEEP R assumes."""
        counts = iter([int(one.sum()) for one in connected])
        for group, members in zip(self.param_groups, self._matrices, strict=True):
            count = 0
            for theta, _, allowed, size in members:
                where = f"a weight of shape {tuple(theta.shape)}"
                if theta.grad is not None and not _is_within(theta.grad, -math.inf):
                    raise ValueError(f"gradient: expected finite numbers of {where}, got others")
                if not _is_within(theta, 0.0) or (
                        size < theta.numel() and bool(theta.masked_fill(allowed, 0.0).any())):
                    raise ValueError(f"weight: expected finite numbers of the signs that {where} "
                                     f"had initially, 0 where the mask is False, got others")
                count += next(counts)
            if members and count != (expected := _count_connections(group, members)):
                raise ValueError(f"weight: expected {expected} connections as after the last step, "
                                 f"got {count}; after loading weights load the optimizer's state "
                                 f"too")

    # ---------------------------------------------------------------------------------------- state
    def connectivity(self) -> list[list[float]]:
        """Returns for each group the connected fraction of each matrix; [] for a group that is not
        rewired."""
        return [[int((one.weight != 0).sum()) / one.size for one in members]
                for members in self._matrices]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group as an optimizer does; with a key "connectivity" it is rewired, with the
        current signs of its weights."""
        if "optimizer" not in self.__dict__:  # called by the constructor of the base class
            super().add_param_group(param_group)
            return
        self.optimizer.add_param_group(param_group)
        self._share()
        self._start(self.param_groups[-1], {}, {})
        self._synchronize()

    def __getstate__(self) -> dict[str, Any]:
        """The state of copies and pickles, which have no hooks, as of any optimizer."""
        names = ("optimizer", "l1", "temperature", "generator", "rewired", "_matrices")
        return super().__getstate__() | {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, and under "deep_r" signs, masks and the generator's state."""
        extra = {"signs": [[one.sign.to(torch.int8) for one in members]
                           for members in self._matrices],
                 "masks": [[one.allowed.clone() for one in members] for members in self._matrices],
                 "generator": self.generator.get_state(), "rewired": self.rewired}
        return {**self.optimizer.state_dict(), _KEY: extra}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state; the module must load its weights too."""
        if _KEY not in state_dict:
            raise ValueError("state_dict: expected the state of a DeepR, got that of another "
                             "optimizer")
        extra = state_dict[_KEY]
        shapes = [[tuple(sign.shape) for sign in members] for members in extra["signs"]]
        expected = [[tuple(one.weight.shape) for one in members] for members in self._matrices]
        if shapes != expected:
            raise ValueError(f"state_dict: expected signs of shapes {expected}, got {shapes}")
        self.optimizer.load_state_dict({key: value for key, value in state_dict.items()
                                        if key != _KEY})
        self._share()
        for members, signs, masks in zip(self._matrices, extra["signs"], extra["masks"],
                                    strict=True):
            for k, (one, sign, allowed) in enumerate(zip(members, signs, masks, strict=True)):
                members[k] = _Rewired(one.weight, sign.to(one.weight),
                                      allowed.to(one.weight.device), int(allowed.sum()))
        self.generator.set_state(extra["generator"].cpu())
        self.rewired = extra["rewired"]
        self._synchronize()

    def _share(self) -> None:
        """Shares groups and state with the optimizer, which replaces them when it loads."""
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state

    @torch.no_grad()
    def _start(self, group: dict[str, Any], signs: Mapping[Tensor, Tensor],
              masks: Mapping[Tensor, Tensor]) -> None:
        """Begins to rewire a group, with the number of connections of its connectivity."""
        members: list[_Rewired] = []
        self._matrices.append(members)
        if "connectivity" not in group:
            return
        if "lr" not in group:
            raise ValueError("optimizer: expected a learning rate lr in each group that is rewired")
        check_number("connectivity", group["connectivity"], "a fraction from 0 to 1", 1.0)
        for name in ("l1", "temperature"):
            check_number(name, group.get(name, 0.0))
        for weight in group["params"]:
            if weight.dtype not in _DTYPES:
                raise TypeError(f"weight: expected {', '.join(map(str, _DTYPES))}, got "
                                f"{weight.dtype}")
            mask = masks.get(weight, weight.new_ones((), dtype=torch.bool))
            allowed = broadcast_to("masks", mask, weight).clone()
            weight.masked_fill_(~allowed, 0.0)
            if weight in signs:
                sign = check_signs(signs[weight], weight)
            else:
                coin = torch.rand(weight.shape, generator=self.generator, device="cpu")
                coin = coin.to(weight.device)
                sign = torch.where(weight == 0, torch.where(coin < 0.5, -1.0, 1.0).to(weight),
                                   weight.sign())
            members.append(_Rewired(weight, sign, allowed, int(allowed.sum())))
        connected = sum(int((one.weight != 0).sum()) for one in members)
        missing = _count_connections(group, members) - connected
        for one in members:
            _to_theta(one)
        self._connect(members, max(missing, 0))
        self._cut(members, max(-missing, 0))
        for one in members:
            _to_weight(one)

    def _cut(self, members: list[_Rewired], count: int) -> None:
        here = [(one.weight > 0).reshape(-1).nonzero().squeeze(1).cpu() for one in members]
        owner = torch.cat([torch.full_like(places, k) for k, places in enumerate(here)])
        chosen = self._draw_distinct(len(owner), count)
        owner, places = owner[chosen], torch.cat(here)[chosen]
        for k, one in enumerate(members):
            at = places[owner == k].to(one.weight.device)
            one.weight.index_put_(torch.unravel_index(at, one.weight.shape),
                                  one.weight.new_zeros(()))

    @torch.no_grad()
    def _synchronize(self) -> None:
        """Gives all ranks the weights, signs, masks and generator of rank 0."""
        spread = torch.distributed
        if not spread.is_available() or not spread.is_initialized() or spread.get_world_size() == 1:
            return
        for members in self._matrices:
            for k, one in enumerate(members):
                allowed = one.allowed.to(torch.uint8)
                for tensor in (one.weight, one.sign, allowed):
                    spread.broadcast(tensor, 0)
                members[k] = one._replace(allowed=allowed.bool(), size=int(allowed.sum()))
        state = [self.generator.get_state()]
        spread.broadcast_object_list(state, 0)
        self.generator.set_state(state[0])


# ------------------------------------------------------------------------------------------ helpers
def _to_theta(one: _Rewired) -> None:
    one.weight.mul_(one.sign)
    if one.weight.grad is not None:
        one.weight.grad.mul_(one.sign)


def _to_weight(one: _Rewired) -> None:
    _to_theta(one)
    one.weight.add_(0.0)  # -0 becomes 0


def _is_within(values: Tensor, least: float) -> bool:
    if not values.numel():
        return True
    low, high = values.aminmax()  # NaN if any is
    return bool((low >= least) & low.isfinite() & high.isfinite())


def _count_connections(group: dict[str, Any], members: list[_Rewired]) -> int:
    """The number of connected synapses of a group, rounded down up to the precision of a float."""
    return int(sum(one.size for one in members) * float(group["connectivity"]) + 1e-6)

