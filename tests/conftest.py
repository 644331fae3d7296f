import zipfile

import numpy as np
import pytest
import torch as th

from sb3_trust import PPO
from tests.worlds import model_of

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
