import zipfile

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_trust import PPO, TRPO, PPOPenalty, TrustRegionRecorder, UpdateRecorder
from sb3_trust.trust_region import read_trust_region
from tests.worlds import ACTION_SPACES, World, model_of

th.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """Each test starts from the same random state."""
    np.random.seed(0)
    th.manual_seed(0)


@pytest.fixture
def ran(tmp_path):
    """A path that exists once something was run; nothing may have run by the end of a test."""
    path = tmp_path / "ran"
    yield path
    assert not path.exists()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The members of a saved model."""
    path = tmp_path_factory.mktemp("saved") / "model.zip"
    model_of("box", PPO).learn(128).save(path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder with all files of a run, for each algorithm."""
    folders = {}
    for algorithm in (TRPO, PPO, PPOPenalty):
        folder = folders[algorithm.__name__] = tmp_path_factory.mktemp(algorithm.__name__)
        env = make_vec_env(lambda: World(ACTION_SPACES["multi_binary"]), 2, seed=0, monitor_dir=str(folder))
        kwargs = {"line_search_shrinking_factor": 0.9} if algorithm is TRPO else {"learning_rate": 3e-3}
        model = algorithm("MlpPolicy", env, n_steps=64, batch_size=64, seed=3, device="cpu", **kwargs)
        model.learn(6 * 128, callback=[UpdateRecorder(folder), TrustRegionRecorder(folder)])
    return folders


@pytest.fixture(scope="session")
def update(runs):
    """The update of TRPO whose line search tried the most points."""
    updates = read_trust_region(runs["TRPO"]).updates
    return max(updates, key=lambda u: len(u.line_search.fractions))
