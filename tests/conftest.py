import numpy as np
import pytest
import torch as th

th.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """Each test starts from the same random state."""
    np.random.seed(0)
    th.manual_seed(0)
