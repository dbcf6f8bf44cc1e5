"""The arena of the navigation example, and its gymnasium environment."""
import math
from typing import Any

import pytest
import torch

from example_path import generator, needs

needs("matplotlib", "tqdm", "gymnasium")
import gymnasium  # noqa: E402
import numpy as np  # noqa: E402
from gymnasium.utils.env_checker import check_env  # noqa: E402

from navigation import arena  # noqa: E402


@pytest.mark.parametrize("arguments", [{}, {"places": 0, "gap": 50, "hold": 1, "ms": 30}],
                         ids=["quick", "dark"])
@pytest.mark.filterwarnings("error")
def test_gymnasium_accepts_it(arguments: dict[str, Any]) -> None:
    env = gymnasium.make(arena.NAME, **arguments)
    assert isinstance(env.unwrapped, arena.Navigation)
    check_env(env.unwrapped, skip_render_check=True)


def test_the_environment_is_the_arena() -> None:
    env = gymnasium.make(arena.NAME, gap=30, ms=500).unwrapped
    seen, where = env.reset(seed=3)
    twin = arena.Arena(1, generator(), gap=30)
    twin.random.set_state(env.arena.random.get_state())
    twin.goal, twin.at = env.arena.goal.clone(), env.arena.at.clone()
    random, ends, rewards = np.random.default_rng(1), [], 0.0
    for _ in range(50):
        assert np.array_equal(seen, twin.observe()[0].numpy())
        towards = (where["goal"] - twin.at[0].numpy()) + 0.1 * random.standard_normal(2)
        action = np.clip(5 * towards, -1, 1).astype(np.float32)
        seen, reward, ended, cut, where = env.step(action)
        assert reward == float(twin.move(torch.from_numpy(action)[None]))
        ends.append(cut)
        rewards += reward
        assert not ended and np.array_equal(where["goal"], twin.goal[0].numpy())
    assert ends == [False] * 49 + [True] and rewards > 2


def test_a_goal_and_the_dark_after_it() -> None:
    """It is reached, felt in stillness, left in the dark, and looked for from another place."""
    one = arena.Arena(1, generator(), places=4, hold=10, gap=80, radius=0.2)
    assert math.isclose(float(one.goal.norm()), arena.RING, rel_tol=1e-6)
    one.at = one.goal * (1 - (0.2 + 0.25) / arena.RING)
    assert float(one.move(one.goal * 10)) == 0  # by 0.2, at the most
    assert float((one.at - one.goal).norm()) == pytest.approx(0.2 + 0.05, abs=1e-6)
    goal = one.goal.clone()
    assert float(one.move(one.goal)) == 1
    at = one.at.clone()
    for _ in range(arena.FELT // 10):
        seen = one.observe()[0]
        assert seen[[0, 3, 7]].tolist() == [1, 1, 0]  # light, the goal, no sleep
        assert torch.equal(seen[1:3], one.at[0]) and torch.equal(one.at, at)
        assert float((one.at - goal).norm()) < 0.2
        assert float(one.move(torch.ones(1, 2))) == 0
    assert not torch.equal(one.at, at)
    at = one.at.clone()
    for n in range(8):
        seen = one.observe()[0]
        assert not seen[:7].any() and torch.equal(one.at, at)
        assert seen[7] == (1 if n < 7 else -1)  # asleep, and waking at last
        assert float(one.move(torch.ones(1, 2))) == 0
    assert one.observe()[0, [0, 3, 7]].tolist() == [1, 0, 0]
    assert torch.equal(one.observe()[0, 1:3], one.at[0])
    one.move(torch.tensor([[0.1, 0.0]]))
    assert not torch.equal(one.at, at) and torch.equal(one.goal, goal)


def test_a_goal_without_darkness() -> None:
    """It is felt in the next action, from another place."""
    one = arena.Arena(1, generator(), gap=4)  # less than half an action
    one.at = one.goal.clone()
    assert float(one.move(torch.zeros(1, 2))) == 1
    seen = one.observe()[0]
    assert seen[[0, 3, 7]].tolist() == [1, 1, 0] and torch.equal(seen[1:3], one.at[0])
    assert not torch.equal(one.at, one.goal)
    at = one.at.clone()
    one.move(torch.tensor([[0.1, 0.1]]))
    assert one.observe()[0, 3] == 0 and not torch.equal(one.at, at)


def test_the_wall() -> None:
    one = arena.Arena(1, generator())
    one.goal, one.at = torch.tensor([[-0.7, 0.0]]), torch.tensor([[0.95, 0.0]])
    assert float(one.move(torch.tensor([[3.0, 0.0]]))) == pytest.approx(-arena.WALL)
    assert torch.equal(one.at, torch.tensor([[0.95, 0.0]])) and one.observe()[0, 4] == 1
    assert float(one.move(torch.tensor([[-1.0, 0.0]]))) == 0
    assert float(one.at[0, 0]) == pytest.approx(0.75) and one.observe()[0, 4] == 0


def test_places_are_drawn() -> None:
    many = arena.Arena(4000, generator(), places=4)
    shares = [float((many.goal * torch.tensor(place)).sum(-1).gt(0.6).float().mean())
              for place in ((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0))]
    assert all(abs(share - 0.25) < 0.03 for share in shares)
    anywhere = arena.Arena(4000, generator(), places=0)
    assert float(anywhere.goal.norm(dim=1).max()) <= 0.8
    inner = (anywhere.at.norm(dim=1) < 0.5).float().mean()
    assert abs(float(inner) - 0.25) < 0.03  # a quarter of the area
