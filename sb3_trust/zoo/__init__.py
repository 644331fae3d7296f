"""
The RL Zoo with our algorithms: importing this package registers them.

It is the only place that imports ``rl_zoo3``, and can be given to the Zoo's own scripts:
``python -m rl_zoo3.train --gym-packages sb3_trust.zoo ...``.
"""

try:
    import rl_zoo3  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"the RL Zoo cannot be imported ({error}); install it with: pip install 'sb3-trust[zoo]'"
    ) from error

from sb3_trust.zoo.registration import ALGORITHMS, hyperparams_file, register

register()

__all__ = ["ALGORITHMS", "hyperparams_file", "register"]
