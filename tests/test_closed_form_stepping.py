"""Steps without copies are the steps of ``DummyVecEnv``, and are taken nowhere else."""

import copy

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from sb3_trust.vector_env import stepping
from tests.worlds import ACTION_SPACES, DICT, PERCEPTRONS, VECTOR, World, world

BOX = ACTION_SPACES["box"]


class Reusing(World):
    """Returns the same observation array and the same info dictionary each time."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.kept, self.info = np.zeros(4, np.float32), {}

    def reset(self, **kwargs):
        self.kept[...] = super().reset(**kwargs)[0]
        return self.kept, {"seed": kwargs.get("seed")}

    def step(self, action):
        observation, *rest, _ = super().step(action)
        self.kept[...] = observation
        self.info["step"] = self._step
        return self.kept, *rest, self.info


def assert_same_infos(ours, theirs):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        assert mine["TimeLimit.truncated"] == other["TimeLimit.truncated"]
        if "episode" in other:
            assert {k: v for k, v in mine["episode"].items() if k != "t"} == {
                k: v for k, v in other["episode"].items() if k != "t"
            }
        if "terminal_observation" in other:
            np.testing.assert_array_equal(mine["terminal_observation"], other["terminal_observation"])


def both(make, n_envs=3):
    vectors = [make(n_envs) for _ in range(2)]
    for vector in vectors:
        vector.seed(4)
    observations = [vector.reset() for vector in vectors]
    np.testing.assert_array_equal(*observations)
    return vectors


@pytest.mark.parametrize("kind", PERCEPTRONS)
def test_steps_are_those_of_the_environment(kind):
    action_space, observation_space, *_ = PERCEPTRONS[kind]
    ours, theirs = both(lambda n: world(action_space, observation_space, n))
    step = stepping(ours, watched=False)
    assert step != ours.step
    action_space.seed(0)
    returned, ends, truncations = [], 0, 0
    for _ in range(30):
        actions = np.array([action_space.sample() for _ in range(3)])
        mine, other = step(actions), theirs.step(actions)
        for ours_part, theirs_part in zip(mine[:3], other[:3], strict=True):
            np.testing.assert_array_equal(ours_part, theirs_part)
            assert ours_part.dtype == theirs_part.dtype and ours_part.shape == theirs_part.shape
        assert_same_infos(mine[3], other[3])
        returned.append([(part, part.copy()) for part in mine[:3]])
        ends += int(mine[2].sum())
        truncations += sum(info["TimeLimit.truncated"] for info in mine[3])
    assert ends == 12 and truncations == 6
    for part, as_it_was in (pair for step in returned for pair in step):
        np.testing.assert_array_equal(part, as_it_was)  # later steps have not written to it
    assert [info.keys() for info in ours.reset_infos] == [info.keys() for info in theirs.reset_infos]


def test_an_environment_that_uses_its_arrays_again_is_seen_as_by_dummy_vec_env():
    ours, theirs = both(lambda n: DummyVecEnv([lambda: Reusing(BOX)] * n))
    step = stepping(ours, watched=False)
    for _ in range(30):
        actions = np.zeros((3, 3), np.float32)
        mine, other = step(actions), theirs.step(actions)
        for ours_part, theirs_part in zip(mine[:3], other[:3], strict=True):
            np.testing.assert_array_equal(ours_part, theirs_part)
        assert_same_infos(copy.deepcopy(mine[3]), other[3])
        assert [info["step"] for info in mine[3]] == [info["step"] for info in other[3]]


def test_steps_and_resets_of_the_vector_may_alternate():
    ours, theirs = both(lambda n: world(BOX, VECTOR, n))
    step, actions = stepping(ours, watched=False), np.zeros((3, 3), np.float32)
    for _ in range(4):
        step(actions), theirs.step(actions)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    np.testing.assert_array_equal(step(actions)[0], theirs.step(actions)[0])
    np.testing.assert_array_equal(ours.step(actions)[0], theirs.step(actions)[0])


def test_an_attribute_that_is_set_later_is_seen():
    vector = world(BOX, VECTOR, 2)
    vector.reset()
    step = stepping(vector, watched=False)
    vector.envs[0] = gym.wrappers.TransformReward(vector.envs[0], lambda reward: 1000.0)
    assert step(np.zeros((2, 3), np.float32))[1][0] == 1000.0


class Sub(DummyVecEnv):
    pass


def overriding(name):
    vector = world(BOX)
    original = getattr(vector, name)
    setattr(vector, name, lambda *args: original(*args))
    return vector


OTHERS = {
    "subclass": lambda: Sub([lambda: World(BOX)]),
    "normalize": lambda: VecNormalize(world(BOX)),
    "monitor": lambda: VecMonitor(world(BOX)),
    "stack": lambda: VecFrameStack(world(BOX), 2),
    "transpose": lambda: VecTransposeImage(world(BOX, spaces.Box(0, 255, (6, 6, 3), np.uint8))),
    "dict": lambda: world(BOX, DICT),
    **{
        name: (lambda name=name: overriding(name))
        for name in ("step", "step_async", "step_wait", "_save_obs", "_obs_from_buf")
    },
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_vector_steps_by_itself(name):
    vector = OTHERS[name]()
    assert stepping(vector, watched=False) == vector.step


def test_environments_in_processes_step_by_themselves():
    vector = make_vec_env(
        lambda: World(BOX), 1, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"}
    )
    try:
        assert stepping(vector, watched=False) == vector.step
    finally:
        vector.close()


def test_a_watched_vector_steps_by_itself():
    vector = world(BOX)
    assert stepping(vector, watched=True) == vector.step
