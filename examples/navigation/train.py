"""Navigation, a task of the LSNN paper: find a hidden goal, and then go back to it at once.

An agent in a disc sees where it is, by spikes of neurons with tuning curves, but not the goal. When
it reaches the goal it is put to a random place. The goal stays where it is for an episode, and its
place is another in the next; so it has to be learned by the network's activity, with weights that
stay as they are. Trains with PPO an LSNN of 280 regular and 120 adaptive neurons, whose readout is
the action and its worth, and beside it 400 neurons without adaptation; both are then measured by
the milliseconds to their n-th goal.

    python examples/navigation/train.py              four places, three minutes: both networks
                                                     learn it
    python examples/navigation/train.py --gap 200    darkness after each goal, which memory has to
                                                     outlast; 12 minutes a network
    python examples/navigation/train.py --gap 300 --inhibition 200
                                                     the same, and a current inhibits all neurons
                                                     in the dark, so that nothing but thresholds
                                                     remembers
    python examples/navigation/train.py --paper      a goal anywhere, 20 % of the synapses; hours

With darkness, networks also learn to say where the goal is, once they have been there. The arena is
an environment of gymnasium too, lsnn_ext/Navigation-v0 (arena.py). A checkpoint is kept in --out,
every minute and after Ctrl-C; --resume goes on from it. A run that is given --iterations comes to
the same result, bit for bit with the same --threads, whenever it was ended and resumed.
"""
import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # examples/
from common import pair, processes, training
from common.pair import Pair, run_task
from common.training import Values, count, number
from lsnn_ext import LSNN, LSNNState, functional
from navigation.arena import Arena
from navigation.measures import Episodes, goals_of, later_goals, place_error_after_dark, times
from navigation.plots import picture
from navigation.ppo import advantages, clipped_objective, mean_where

PER_VALUE, WIDTH, PEAK = 20, 0.12, 0.3  # neurons, width of a tuning curve, spikes per ms at its top
PER_FLAG = 10  # neurons of each of reward, wall and the two parts of the last action
CENTRES = torch.linspace(-1.1, 1.1, PER_VALUE)
INPUTS = 2 * PER_VALUE + 4 * PER_FLAG
TARGET_RATE = 0.02
TAU_MEM = 20.0  # ms
# In training a network's gap begins with one action, or with INHIBITED ms where a current inhibits.
# After an iteration in which the place was said with an error below LEARNED it is an action longer,
# after one with an error above LOST an action shorter.
LEARNED, LOST, INHIBITED = 0.5, 0.6, 200
LONGEST_HOLD = 20  # ms beside an inhibition: the readout's time constant has to end in the dark too
GAPS = (0, 1 / 3, 0.5, 1, 1.5, 2)  # darkness in the test, in parts of --gap
QUICK = {"places": 4, "ms": 2000, "gamma": 0.98, "batch": 32, "lr": 2e-3, "clip": 0.5, "reg": 5.0,
         "shift": None, "radius": 0.3, "place": 0.0, "minutes": 6.0}
DARK = {"shift": 0.3, "radius": 0.2, "place": 0.3, "clip": 1.5, "ms": 3000, "minutes": 25.0}
PAPER = {"places": 0, "gamma": 0.99, "deepr": 0.2, "minutes": 240.0}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    pair.task_options(parser, "navigation_out")
    task = parser.add_argument_group("task and network")
    task.add_argument("--places", type=int, help="of the goal, on a ring; 0: anywhere")
    task.add_argument("--radius", type=number, help="of the goal")
    task.add_argument("--gap", type=number, default=0.0,
                      help="ms of darkness and stillness after a goal; in training a network's "
                           "grows to as much as it learns")
    task.add_argument("--inhibition", type=number, default=0.0, metavar="THRESHOLDS",
                      help="current that inhibits all neurons in the dark, but for its last "
                           "action, in which their membranes come back")
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
    ppo.add_argument("--place", type=number, metavar="WEIGHT",
                     help="of what the network says of the goal's place, in the loss")
    ppo.add_argument("--std", type=number, default=0.5, help="of the actions, at the start")
    ppo.add_argument("--test-agents", type=count, default=256)
    options = parser.parse_args(given)
    if options.gap % options.hold:
        parser.error(f"--gap: expected whole actions, of {options.hold} ms, got {options.gap:g}")
    if options.inhibition and options.gap < INHIBITED:
        parser.error(f"--inhibition: expected --gap of {INHIBITED} or more beside it, as membranes "
                     f"outlast a shorter darkness, got {options.gap:g}")
    if options.inhibition and options.hold > LONGEST_HOLD:
        parser.error(f"--inhibition: expected --hold of {LONGEST_HOLD} at most beside it, as the "
                     f"readout of longer actions outlasts the darkness, got {options.hold}")
    if options.inhibition and (options.deepr or options.paper):
        parser.error("--inhibition: expected neither --deepr nor --paper, as DEEP R would rewire "
                     "the input that inhibits")
    quick = QUICK | (DARK if options.gap else {})
    return pair.with_setting(options, quick, quick | PAPER)


# ---------------------------------------------------------------------------------------- a network
class Policy(LSNN):
    """An LSNN whose five readouts are the mean of the action, the worth of what it sees, and where
    it believes the goal to be."""

    def __init__(self, options: argparse.Namespace, regular: int, adaptive: int) -> None:
        super().__init__(INPUTS + bool(options.inhibition), regular, adaptive, 5, beta=1.8,
                         tau_mem=TAU_MEM, tau_adapt=options.tau_adapt,
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


def rates(seen: Tensor) -> Tensor:
    """Spikes per ms (B, I) of observations (B, 8)."""
    place = torch.exp(-0.5 * ((seen[:, 1:3, None] - CENTRES) / WIDTH).square()).flatten(1)
    flags = torch.cat([seen[:, 3:5], seen[:, 5:7] / 2 + 0.5], 1).repeat_interleave(PER_FLAG, 1)
    return PEAK * torch.cat([place, flags], 1) * seen[:, :1]


def sleep_input(sleep: Tensor, hold: int, gap: float) -> Tensor:
    """The number at the input that inhibits, of observations of sleep (B,): 1 in the dark, and in
    its last action as much in the other direction as brings membranes back to where they would be
    without it.

    A current of -1 makes v alpha^n - (1 - alpha^n) of a membrane v in n ms; another one in m ms
    more makes up for what is left of the second term.
    """
    alpha = math.exp(-1 / TAU_MEM)
    inhibited, back = alpha ** (round(gap / hold) * hold - hold), alpha**hold
    return torch.where(sleep < 0, -back * (1 - inhibited) / (1 - back), sleep)


# ---------------------------------------------------------------------------------------- PPO
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
        shown = functional.poisson(rates(seen)[None], options.hold, generator=random).numbers()
        if options.inhibition:
            sleep = sleep_input(seen[:, 7], options.hold, gap)
            shown = torch.cat([shown, sleep[None, :, None].expand(options.hold, -1, 1)], 2)
        y, state, fired = net(shown, state, return_rates=True)
        is_lit = seen[:, 0] > 0
        dark_rate = fired.mean((0, 2)).where(was_dark & ~is_lit, torch.nan)
        was_dark = ~is_lit
        mean, value = y[-1, :, :2], y[-1, :, 2]
        action = mean + net.log_std.exp() * torch.randn(B, 2, generator=random)
        at, moves = arena.at, arena.still == 0
        reward = arena.move(action)
        kept.append((shown, action, reward, value, net.log_probability(action, mean), dark_rate,
                     moves, is_lit, y[-1, :, 3:], at))
    x, *others = zip(*kept, strict=True)
    return Episodes(torch.cat(x), *(torch.stack(values) for values in others), arena.goal,
                    arena.radius)


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
        episodes, better, took, place_error = {}, {}, {}, {}
        for name in self.nets:
            net = self.policy(name)
            episodes[name] = play(net, options, options.batch, gap[name],
                                  torch.Generator().manual_seed(seed))
            better[name] = advantages(episodes[name].reward, episodes[name].value,
                                      episodes[name].moves, options.gamma)
            place_error[name] = place_error_after_dark(episodes[name], options.hold)
            took[name] = later_goals(episodes[name].reward, options.hold, gap[name], options.ms)

        mine = processes.share(options.batch)

        def losses(name: str) -> tuple[Tensor, Tensor, Values]:
            net, past = self.policy(name), episodes[name]
            y, _, fired = net(past.x[:, mine], return_rates=True)
            y = y[options.hold - 1::options.hold]
            ratio = (net.log_probability(past.action[:, mine], y[..., :2])
                     - past.log_probability[:, mine]).exp()
            chosen = better[name][past.moves]  # an action of an agent that stands still is none
            advantage = (better[name] - chosen.mean()) / (chosen.std() + 1e-6)
            policy = mean_where(past.moves, mine, clipped_objective(ratio, advantage[:, mine]))
            worth = 0.5 * (y[..., 2] - better[name][:, mine]
                           - past.value[:, mine]).square().mean()
            place = mean_where(past.knows(), mine, past.place_error(y[..., 3:], mine))
            items = y.shape[1]
            rate = processes.mean(fired[0].mean(0), items)
            shift = processes.mean(mean_where(past.moves, mine, (ratio - 1).abs()), items)
            return (processes.mean(policy + worth + options.place * place, items),
                    options.reg * (rate - TARGET_RATE).square().mean(),
                    {"goals": goals_of(past.reward), "gap": gap[name], "later": took[name],
                     "place_error": place_error[name], "rate": rate.mean().item(),
                     "shift": shift.item()})

        learning_rate = training.learning_rate(self.done(), options.lr)
        values: Values = {}
        learning = list(self.nets)
        for _ in range(options.updates):
            values |= self.learn(learning_rate, losses, learning)
            learning = [name for name in learning if options.shift is None
                        or values[self.column(name, "shift")] <= options.shift]
        return values

    def gap(self, name: str) -> float:
        """ms of darkness in the next iteration of this network."""
        longest, hold = self.options.gap, self.options.hold
        shortest = min(longest, INHIBITED if self.options.inhibition else hold)
        if not longest or not self.history:
            return shortest
        error, gap = (self.history[-1][self.column(name, value)]
                      for value in ("place_error", "gap"))
        if error < LEARNED:
            gap += hold
        elif error > LOST:
            gap -= hold
        return min(longest, max(gap, shortest))

    def policy(self, name: str) -> Policy:
        """The network of that name."""
        net = self.nets[name]
        assert isinstance(net, Policy)
        return net


def tested(net: Policy, options: argparse.Namespace, gap: float) -> Episodes:
    """Episodes in new arenas, the same for all networks."""
    random = torch.Generator().manual_seed(options.seed + 1_000_000)
    return play(net, options, options.test_agents, gap, random)


def test(run: Run) -> tuple[dict[str, dict[str, Any]], dict[str, Episodes]]:
    """What each network needs to its n-th goal, and some of these episodes, also of the network
    before training. With a gap, also by the ms of other gaps the mean ms to all goals of an episode
    but the first, without the gap, and the error of the place that the network says after it."""
    options = run.options
    gaps = sorted({round(part * options.gap / options.hold) * options.hold for part in GAPS})
    found: dict[str, dict[str, Any]] = {}
    shown = {"before": tested(network(options, True), options, options.gap)}
    for name in run.nets:
        later, place_error = {}, {}
        for gap in gaps:
            episodes = tested(run.policy(name), options, gap)
            later[str(gap)] = later_goals(episodes.reward, options.hold, gap, options.ms)
            if gap:
                place_error[str(gap)] = place_error_after_dark(episodes, options.hold)
            if gap == options.gap:
                shown[name] = episodes
        ms, agents = times(shown[name].reward, options.hold, options.gap)
        found[name] = {"goals": goals_of(shown[name].reward), "ms": ms, "agents": agents}
        if options.gap:
            dark = shown[name].dark_rate
            found[name] |= {"gap": run.gap(name), "later": later, "place_error": place_error,
                            "dark_hz": 1000 * dark[~dark.isnan()].mean().item()
                            if not dark.isnan().all() else None}
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
        print("spikes per second of a neuron in the dark, after its first action: " + ", ".join(
            f"{name} none seen" if row["dark_hz"] is None else f"{name} {row['dark_hz']:.2f}"
            for name, row in found.items()))
        print("ms to all goals but the first, by the ms of darkness after each, and the error of "
              "the place said then (1: the same place for all)")
        for name, row in found.items():
            said = {gap: f" ({error:.2f})" for gap, error in row["place_error"].items()}
            print(f"  {name:5s}" + ", ".join(f"{gap}: {ms:.0f}{said.get(gap, '')}"
                                            for gap, ms in row["later"].items())
                  + f"; the training ended with {row['gap']:.0f}")


def main(given: list[str] | None = None) -> None:
    """Trains, tests, draws."""
    run_task(arguments(given), Run, __file__, finish)


if __name__ == "__main__":
    main()
