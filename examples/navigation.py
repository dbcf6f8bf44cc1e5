"""Navigation, a task of the LSNN paper: find a hidden goal, and then go back to it at once.

An agent in a disc sees where it is, by spikes of neurons with tuning curves, but not the goal. When
it reaches the goal it is put to a random place. The goal stays where it is for an episode, and its
place is another in the next; so it has to be learned by the network's activity, with weights that
stay as they are. Trains with PPO an LSNN of 280 regular and 120 adaptive neurons, whose readout is
the action and its worth, and beside it 400 neurons without adaptation; both are then measured by
the milliseconds to their n-th goal.

    python examples/navigation.py              four places, three minutes: both networks learn it
    python examples/navigation.py --gap 200    darkness after each goal, which memory has to
                                               outlast; 12 minutes a network
    python examples/navigation.py --gap 300 --inhibition 200
                                               the same, and each darkness begins with a current
                                               that inhibits all neurons
    python examples/navigation.py --paper      a goal anywhere, 20 % of the synapses; hours

The arena is an environment of gymnasium too, lsnn_ext/Navigation-v0 (arena.py). A checkpoint is
kept in --out, every minute and after Ctrl-C; --resume goes on from it. A run that is given
--iterations comes to the same result, bit for bit with the same --threads, whenever it was ended
and resumed.
"""
import argparse
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import pair
import processes
import training
from arena import Arena, after_a_goal
from lsnn_ext import LSNN, LSNNState, functional
from navigation_plots import picture
from pair import Pair, run_task, weights_of
from training import Values, count, number

PER_VALUE, WIDTH, PEAK = 20, 0.12, 0.3  # neurons, width of a tuning curve, spikes per ms at its top
PER_FLAG = 10  # neurons of each of reward, wall and the two parts of the last action
CENTRES = torch.linspace(-1.1, 1.1, PER_VALUE)
INPUTS = 2 * PER_VALUE + 4 * PER_FLAG
TARGET_RATE = 0.02
TRACE, NEAR = 0.95, 0.2  # PPO's: lambda of the advantages, and how far a ratio may be from 1
# The gap of a network's training begins with 0 ms, or with so many where a current inhibits. It is
# an action longer after each iteration in which goals after the first took less than so many ms
# without it, and an action shorter where they took more.
LEARNED, LOST, INHIBITED = 85.0, 100.0, 100.0
GOALS = 10  # as many are timed
GAPS = (0, 1 / 3, 0.5, 1, 1.5, 2)  # darkness in the test, in parts of --gap; training has the last
QUICK = {"places": 4, "ms": 2000, "gamma": 0.98, "batch": 32, "lr": 2e-3, "clip": 0.5, "reg": 5.0,
         "shift": None, "radius": 0.3, "minutes": 6.0}
DARK = {"shift": 0.3, "radius": 0.2, "minutes": 25.0}
PAPER = QUICK | {"places": 0, "gamma": 0.99, "deepr": 0.2, "minutes": 240.0}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    pair.task_options(parser, "navigation_out")
    task = parser.add_argument_group("task and network")
    task.add_argument("--places", type=int, help="of the goal, on a ring; 0: anywhere")
    task.add_argument("--radius", type=number, help="of the goal")
    task.add_argument("--gap", type=number, default=0.0,
                      help="ms of darkness and stillness after a goal, in the test; in training "
                           "a network's grows as it learns, to twice as much at most")
    task.add_argument("--inhibition", type=number, default=0.0, metavar="THRESHOLDS",
                      help="current that inhibits all neurons in the first action of a darkness")
    task.add_argument("--ms", type=count, help="of an episode")
    task.add_argument("--hold", type=count, default=10, help="ms that an action lasts")
    task.add_argument("--regular", type=count, default=280, help="neurons without adaptation")
    task.add_argument("--adaptive", type=count, default=120, help="neurons with it")
    task.add_argument("--tau-adapt", type=number, default=1200.0,
                      help="time constant of adaptation, ms")
    ppo = parser.add_argument_group("PPO")
    ppo.add_argument("--gamma", type=number, help="discount per action")
    ppo.add_argument("--updates", type=count, default=4, help="on the episodes of an iteration")
    ppo.add_argument("--shift", type=number,
                     help="a network whose actions have become more or less likely by more than "
                          "this share, in the mean, has no more updates in an iteration")
    ppo.add_argument("--std", type=number, default=0.5, help="of the actions, at the start")
    ppo.add_argument("--test-agents", type=count, default=256)
    options = parser.parse_args(given)
    if options.inhibition and not options.gap:
        parser.error("--inhibition: expected --gap beside it, as there is no darkness without")
    if options.inhibition and (options.deepr or options.paper):
        parser.error("--inhibition: expected neither --deepr nor --paper, as DEEP R would rewire "
                     "the input that inhibits")
    dark = DARK if options.gap else {}
    return pair.with_setting(options, QUICK | dark, PAPER | dark)


# ---------------------------------------------------------------------------------------- a network
class Policy(LSNN):
    """An LSNN whose three readouts are the mean of the action and the worth of what it sees."""

    def __init__(self, options: argparse.Namespace, regular: int, adaptive: int) -> None:
        super().__init__(INPUTS + bool(options.inhibition), regular, adaptive, 3, beta=1.8,
                         tau_adapt=options.tau_adapt,
                         tau_out=max(5.0, options.hold) if options.hold > 1 else 20.0)
        with torch.no_grad():
            self.readout.weight.mul_(0.3)
        if options.inhibition:
            self.inhibit_in_sleep(options.inhibition)
        self.log_std = nn.Parameter(torch.full((2,), options.std).log())

    def inhibit_in_sleep(self, thresholds: float) -> None:
        """Makes the last input inhibit all neurons, by weights that do not learn."""
        weight = self.neurons.weight_ih_l0
        learns = torch.ones_like(weight)
        learns[:, -1] = 0
        with torch.no_grad():
            weight[:, -1] = -thresholds * self.neurons.threshold_l0
        weight.register_hook(lambda gradient: gradient * learns)

    def log_probability(self, action: Tensor, mean: Tensor) -> Tensor:
        """Of actions (..., 2), without the constant."""
        return (-0.5 * ((action - mean) / self.log_std.exp()).square() - self.log_std).sum(-1)


def network(options: argparse.Namespace, adapts: bool) -> Policy:
    """Neurons of which some adapt or none; the same first weights with a seed."""
    torch.manual_seed(options.seed)
    adaptive = options.adaptive if adapts else 0
    return Policy(options, options.regular + options.adaptive - adaptive, adaptive)


def rates(seen: Tensor, inhibits: bool = False) -> Tensor:
    """Spikes per ms (B, I) of observations (B, 8); inhibits: whether the last input is that of
    sleep."""
    place = torch.exp(-0.5 * ((seen[:, 1:3, None] - CENTRES) / WIDTH).square()).flatten(1)
    flags = torch.cat([seen[:, 3:5], seen[:, 5:7] / 2 + 0.5], 1).repeat_interleave(PER_FLAG, 1)
    found = PEAK * torch.cat([place, flags], 1) * seen[:, :1]
    return torch.cat([found, seen[:, 7:]], 1) if inhibits else found


# ---------------------------------------------------------------------------------------- PPO
class Episodes(NamedTuple):
    """Episodes of B agents, of D actions."""

    x: Tensor  # (T, B, I) input spikes
    action: Tensor  # (D, B, 2)
    reward: Tensor  # (D, B)
    value: Tensor  # (D, B) what it was worth, by the network
    log_probability: Tensor  # (D, B) of the action
    dark_rate: Tensor  # (D, B) spikes per ms in the dark after its first action, nan elsewhere
    at: Tensor  # (D, B, 2) where the agent was
    goal: Tensor  # (B, 2)
    radius: float  # of the goals


@torch.no_grad()
def play(net: Policy, options: argparse.Namespace, B: int, gap: float,
         random: torch.Generator) -> Episodes:
    """Whole episodes, each with a new goal."""
    arena = Arena(B, random, options.places, options.hold, gap, options.radius)
    state: LSNNState | None = None
    kept: list[tuple[Tensor, ...]] = []
    was_dark = torch.zeros(B, dtype=torch.bool)
    for _ in range(options.ms // options.hold):
        seen = arena.observe()
        shown = functional.poisson(rates(seen, bool(options.inhibition))[None], options.hold,
                                   generator=random).numbers()
        y, state, fired = net(shown, state, return_rates=True)
        is_dark = seen[:, 0] == 0
        dark_rate = fired.mean((0, 2)).where(is_dark & was_dark, torch.nan)
        was_dark = is_dark
        mean, value = y[-1, :, :2], y[-1, :, 2]
        action = mean + net.log_std.exp() * torch.randn(B, 2, generator=random)
        at = arena.at
        reward = arena.move(action)
        kept.append((shown, action, reward, value, net.log_probability(action, mean), dark_rate,
                     at))
    x, *others = zip(*kept, strict=True)
    return Episodes(torch.cat(x), *(torch.stack(values) for values in others), arena.goal,
                    arena.radius)


def advantages(reward: Tensor, value: Tensor, gamma: float) -> Tensor:
    """How much better (D, B) each action was than expected: temporal differences, summed over what
    follows with the weights (gamma TRACE)^n. What follows the last action is worth what it was
    worth there."""
    after = torch.cat([value[1:], value[-1:]])
    difference = reward + gamma * after - value
    found, running = torch.zeros_like(reward), torch.zeros_like(reward[0])
    for step in reversed(range(len(reward))):
        running = difference[step] + gamma * TRACE * running
        found[step] = running
    return found


def ppo_loss(ratio: Tensor, advantage: Tensor) -> Tensor:
    """The clipped objective of Schulman et al. (2017), to be made small."""
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - NEAR, 1 + NEAR) * advantage).mean()


# -------------------------------------------------------------------------------------------- a run
class Run(Pair):
    """Both networks in arenas with the same goals."""

    means = "goals", "rate"
    is_shared = True

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options, network)

    def bar(self, mean: Values) -> str:
        """Goals and rate."""
        return f"{mean['goals']:.1f} goals an episode, {1000 * mean['rate']:.0f} Hz"

    def step(self) -> Values:
        """New episodes of each network, and some steps of its optimizer on them. Of several
        processes each plays all episodes, whose draws hang together, and learns from its share."""
        options = self.options
        gap = {name: self.gap(name) for name in self.nets}
        seed = int(torch.randint(2**31, (), generator=self.random))
        episodes, better, took = {}, {}, {}
        for name in self.nets:
            net = self.policy(name)
            episodes[name] = play(net, options, options.batch, gap[name],
                                  torch.Generator().manual_seed(seed))
            better[name] = advantages(episodes[name].reward, episodes[name].value, options.gamma)
            took[name] = later_goals(episodes[name].reward, options.hold, gap[name], options.ms)
            self.keep_best(name, took[name], gap[name])

        mine = processes.share(options.batch)

        def losses(name: str) -> tuple[Tensor, Tensor, Values]:
            net, past = self.policy(name), episodes[name]
            y, _, rates = net(past.x[:, mine], return_rates=True)
            y = y[options.hold - 1::options.hold]
            ratio = (net.log_probability(past.action[:, mine], y[..., :2])
                     - past.log_probability[:, mine]).exp()
            advantage = (better[name] - better[name].mean()) / (better[name].std() + 1e-6)
            worth = 0.5 * (y[..., 2] - better[name][:, mine]
                           - past.value[:, mine]).square().mean()
            items = y.shape[1]
            rate = processes.mean(rates[0].mean(0), items)
            shift = processes.mean((ratio - 1).abs().mean(), items)
            return (processes.mean(ppo_loss(ratio, advantage[:, mine]) + worth, items),
                    options.reg * (rate - TARGET_RATE).square().mean(),
                    {"goals": goals_of(past.reward), "gap": gap[name], "later": took[name],
                     "rate": rate.mean().item(), "shift": shift.item()})

        rate = training.learning_rate(self.done(), options.lr)
        values: Values = {}
        learning = list(self.nets)
        for _ in range(options.updates):
            values |= self.learn(rate, losses, learning)
            learning = [name for name in learning if options.shift is None
                        or values[self.column(name, "shift")] <= options.shift]
        return values

    def gap(self, name: str) -> float:
        """ms of darkness in the next iteration of this network."""
        longest, hold = GAPS[-1] * self.options.gap, self.options.hold
        shortest = min(INHIBITED, longest) if self.options.inhibition else 0.0
        if not longest or not self.history:
            return shortest
        took, gap = (self.history[-1][self.column(name, value)] for value in ("later", "gap"))
        if took < LEARNED:
            gap += hold
        elif took > LOST:
            gap -= hold
        return min(longest, max(gap, shortest))

    def keep_best(self, name: str, took: float, gap: float) -> None:
        """Keeps the weights that bridged the longest darkness: a policy may forget it again. took:
        ms to goals after the first."""
        best = self.carried.setdefault("best", {})
        if gap and gap >= best.get(name, {}).get("gap", 0) and took < LEARNED:
            best[name] = {"gap": gap, "iteration": len(self.history),
                          "weights": weights_of(self.nets[name])}

    def take_best(self) -> dict[str, dict[str, Any]]:
        """Gives each network the weights that were kept, if any; what is known of them."""
        best = self.carried.get("best", {})
        for name, kept in best.items():
            self.nets[name].load_state_dict(kept["weights"], strict=False)
        return {name: {key: best[name][key] for key in ("gap", "iteration")} if name in best else {}
                for name in self.nets}

    def policy(self, name: str) -> Policy:
        """The network of that name."""
        net = self.nets[name]
        assert isinstance(net, Policy)
        return net


def goals_of(reward: Tensor) -> float:
    """Goals that an agent reached, in the mean."""
    return (reward > 0.5).sum(0).float().mean().item()


def times(reward: Tensor, hold: int, gap: float) -> tuple[list[float], list[int]]:
    """Mean ms from one goal to the next, without the stillness between them, and how many agents
    came to the n-th goal."""
    pause = sum(after_a_goal(hold, gap)) * hold
    took: list[list[float]] = [[] for _ in range(GOALS)]
    for agent in reward.t() > 0.5:
        at = hold * (agent.nonzero()[:GOALS, 0] + 1)
        since = torch.diff(at, prepend=at.new_zeros(1))
        since[1:] -= pause
        for n, ms in enumerate(since.tolist()):
            took[n].append(ms)
    return [sum(ms) / len(ms) for ms in took if ms], [len(ms) for ms in took if ms]


def later_goals(reward: Tensor, hold: int, gap: float, episode: float) -> float:
    """Mean ms to all goals but the first, without the gap; those of an episode where there is
    none."""
    ms, agents = times(reward, hold, gap)
    if not agents[1:]:
        return float(episode)
    return sum(a * b for a, b in zip(ms[1:], agents[1:], strict=True)) / sum(agents[1:])


def by_darkness(net: Policy, options: argparse.Namespace) -> dict[str, float]:
    """Mean ms to all goals of an episode but the first, without the gap, by the ms of the gap."""
    found = {}
    for part in GAPS:
        gap = round(part * options.gap / options.hold) * options.hold
        random = torch.Generator().manual_seed(options.seed + 1_000_000)
        reward = play(net, options, options.test_agents, gap, random).reward
        found[str(gap)] = later_goals(reward, options.hold, gap, options.ms)
    return found


def test(run: Run) -> tuple[dict[str, dict[str, Any]], dict[str, Episodes]]:
    """What each network needs to its n-th goal, in new arenas with the whole gap, and some of these
    episodes, also of the network before training; with a gap, also what it needs with others. The
    weights are those that bridged the longest darkness in training, where there was any."""
    options = run.options
    found, shown = run.take_best(), {}
    fresh = network(options, True)
    for name, net in {"before": fresh, **{name: run.policy(name) for name in run.nets}}.items():
        random = torch.Generator().manual_seed(options.seed + 1_000_000)
        episodes = play(net, options, options.test_agents, options.gap, random)
        shown[name] = episodes
        if name != "before":
            ms, agents = times(episodes.reward, options.hold, options.gap)
            found[name] |= {"goals": goals_of(episodes.reward), "ms": ms, "agents": agents}
            if options.gap:
                found[name]["dark_hz"] = 1000 * episodes.dark_rate.nanmean().item()
                found[name]["later"] = by_darkness(net, options)
    return found, shown


def finish(run: Run, results: Path, drawing: Path) -> None:
    """Tests, writes the results, draws."""
    found, shown = test(run)
    training.write_results(run, results, found=found)
    picture(shown, run.history, found, bool(run.options.gap), drawing)
    print("ms to the first goal and from each to the next, without the gap (goals an episode)")
    for name, row in found.items():
        print(f"  {name:5s}" + ", ".join(f"{ms:.0f}" for ms in row["ms"])
              + f" ({row['goals']:.1f})")
    if run.options.gap:
        print("spikes per second of a neuron in the dark, after its first action: "
              + ", ".join(f"{name} {row['dark_hz']:.1f}" for name, row in found.items()))
        print("ms to all goals but the first, by the ms of darkness after each")
        for name, row in found.items():
            learned = (f" (of iteration {row['iteration']}, which learned {row['gap']:.0f})"
                       if "gap" in row else "")
            print(f"  {name:5s}" + ", ".join(f"{gap}: {ms:.0f}" for gap, ms in
                                             row["later"].items()) + learned)


def main(given: list[str] | None = None) -> None:
    """Trains, tests, draws."""
    run_task(arguments(given), Run, __file__, finish)


if __name__ == "__main__":
    main()
