"""The documentation names what is there: tests, options, statistics, files; and its examples work."""

import ast
import inspect
import math
import re
from dataclasses import fields
from functools import cache
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import torch as th
import yaml
from stable_baselines3.common import atari_wrappers
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trust import PPO, TRPO, PPOPenalty
from sb3_trust.algorithms import statistics
from sb3_trust.zoo import ALGORITHMS as ZOO_ALGORITHMS
from sb3_trust.zoo import hyperparams_file
from tests.worlds import ACTION_SPACES, world

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PEERS = {PPO: stable_baselines3.PPO, PPOPenalty: stable_baselines3.PPO, TRPO: sb3_contrib.TRPO}
OF_THE_ZOO = {"n_timesteps", "n_envs", "normalize"}
STATISTICS = [
    kind
    for kind in vars(statistics).values()
    if isinstance(kind, type) and issubclass(kind, statistics.UpdateStatistics)
]

of_each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def code_blocks(document, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.DOTALL | re.MULTILINE)


def prose(document):
    """A document without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)


def added(algorithm):
    """The constructor arguments that the peer does not have."""
    ours, theirs = (inspect.signature(kind).parameters for kind in (algorithm, PEERS[algorithm]))
    return [name for name in ours if name not in theirs]


def added_options(algorithm):
    """The rows of README's second table of options that are about an algorithm's arguments: name, default."""
    table = (ROOT / "README.md").read_text().split("### Added options")[1].split("## Saved models")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([\w, ]+) \| `(.+?)` \|", table, re.MULTILINE)
    return {
        name: default for name, of, default in rows if of == "all" or algorithm.__name__ in of.split(", ")
    }


# ---- what is named exists -------------------------------------------------------------------------------


@cache
def names_of_tests(file):
    return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_test_that_is_named_exists():
    found = [
        (document.name, file, name)
        for document in DOCUMENTS
        for file, name in re.findall(r"(tests/\w+\.py)(?:::(\w+))?", document.read_text())
    ]
    assert len(found) > 40
    missing = [
        entry
        for entry in found
        if not (ROOT / entry[1]).is_file() or (entry[2] and entry[2] not in names_of_tests(ROOT / entry[1]))
    ]
    assert not missing


def test_each_of_the_details_has_a_row_with_a_test():
    text = (ROOT / "docs" / "ppo-details.md").read_text()
    rows = [
        [cell.strip() for cell in row.split("|")] for row in re.findall(r"^\| (\d.*) \|$", text, re.MULTILINE)
    ]
    assert [int(row[0]) for row in rows] == list(range(1, 38))
    assert all(len(row) == 5 and all(row) and re.search(r"`tests/\w+\.py::\w+`", row[4]) for row in rows)


def anchors(document):
    """The headings of a document as GitHub makes anchors of them."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@of_each_document
def test_every_relative_link_points_to_something(document):
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        path, _, anchor = link.partition("#")
        target = (document.parent / path) if path else document
        if "://" not in link and not (target.exists() and (not anchor or anchor in anchors(target))):
            dead.append(link)
    assert not dead


def test_the_layout_names_the_modules():
    """Every file of the package is in docs/design.md, by its name or by a pattern there."""
    (layout,) = (b for b in code_blocks(ROOT / "docs" / "design.md", "text") if b.startswith("sb3_trust/"))
    patterns = [Path(word).name for word in re.findall(r"[\w*/]+\.py", layout)]
    folders = [ROOT / "sb3_trust" / name for name in ("algorithms", "engines")]
    files = [file for folder in folders for file in folder.glob("*.py") if file.name != "__init__.py"]
    assert len(files) > 30
    assert not [file.name for file in files if not any(file.match(pattern) for pattern in patterns)]


# ---- what exists is named -------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", PEERS)
def test_every_argument_of_ours_is_in_the_readme(algorithm):
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `")]
    arguments = added(algorithm)
    assert "engine" in arguments
    assert not [name for name in arguments if not any(row.startswith(f"| `{name}`") for row in rows)]


@pytest.mark.parametrize("algorithm", PEERS)
def test_options_of_the_readme_have_their_defaults(algorithm):
    rows = added_options(algorithm)
    assert set(rows) <= set(added(algorithm)) and len(rows) > 3
    defaults = inspect.signature(algorithm).parameters
    assert {n: eval(value, {"math": math}) for n, value in rows.items()} == {
        n: defaults[n].default for n in rows
    }


@pytest.mark.parametrize("kind", STATISTICS)
def test_every_statistic_is_in_the_metrics(kind):
    text = (ROOT / "docs" / "metrics.md").read_text()
    names = {item.name for item in fields(kind)} | kind().log_names()
    # a dictionary of others, logged under their own names
    expected = {f"`model.last_update.{n}`" if n == "of_objective" else f"`train/{n}`" for n in names}
    assert len(expected) > 9
    assert not {name for name in expected if name not in text}


@pytest.mark.parametrize("algorithm", PEERS)
def test_every_argument_of_ours_is_in_a_table_of_the_algorithms(algorithm):
    text = (ROOT / "docs" / "algorithms.md").read_text()
    section = re.search(rf"^## {algorithm.__name__}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)[1]
    assert not [name for name in added(algorithm) if name != "engine" and f"\n| `{name}` |" not in section]


# ---- the examples work ----------------------------------------------------------------------------------


def settings():
    """The entries of README's YAML by the class that its comment names."""
    (block,) = code_blocks(ROOT / "README.md", "yaml")
    classes = {"ppo": PPO, "ppopenalty": PPOPenalty, "trpo": TRPO}
    documents = [(classes[re.match(r"# (\w+)\.yml\n", text)[1]], text) for text in block.split("---\n")]
    return {algorithm: yaml.safe_load(text) for algorithm, text in documents}


@pytest.mark.parametrize("algorithm", PEERS)
def test_settings_of_the_readme_make_a_model(algorithm):
    manager = pytest.importorskip("rl_zoo3.exp_manager").ExperimentManager
    entries = settings()[algorithm]
    assert set(entries) <= {"Pendulum-v1", "CartPole-v1"}
    for env, entry in entries.items():
        given = {name: value for name, value in entry.items() if name not in OF_THE_ZOO}
        model = algorithm(env=env, device="cpu", **manager._preprocess_schedules(dict(given)))
        for name in set(added(algorithm)) & set(given):
            assert getattr(model, name) == given[name]


@pytest.mark.parametrize("algorithm", PEERS)
def test_settings_of_the_readme_show_every_added_option(algorithm):
    defaults = inspect.signature(algorithm).parameters
    (entry,) = settings()[algorithm].values()
    shown = {n for n in added_options(algorithm) if n in entry and entry[n] != defaults[n].default}
    assert shown == set(added_options(algorithm)) - {"objective"}


EXAMPLES = code_blocks(ROOT / "docs" / "algorithms.md", "python")


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_of_the_algorithms_run(number):
    """What they train takes a rollout."""
    names = {"__name__": "example"}
    exec(compile(EXAMPLES[number], f"algorithms.md, example {number}", "exec"), names)
    model = names["model"]
    if model.num_timesteps:
        assert model.last_update.kl > 0 and not model.last_update.rollback_reason
    if getattr(model, "_has_auxiliary_loss", False):
        assert model.last_update.auxiliary_loss > 0
    assert isinstance(model, tuple(PEERS))


def test_there_are_examples_of_an_objective_and_of_an_auxiliary_loss():
    assert any("objective=" in code for code in EXAMPLES) and any(
        "auxiliary_loss" in code for code in EXAMPLES
    )


# ---- details of PPO that are Stable-Baselines3's ---------------------------------------------------------


def test_policies_start_as_the_details_say():
    policy = PPO("MlpPolicy", world(ACTION_SPACES["box"]), device="cpu").policy
    assert type(policy.optimizer) is th.optim.Adam and policy.optimizer.param_groups[0]["eps"] == 1e-5
    assert th.equal(policy.log_std, th.zeros_like(policy.log_std))
    for name, weights in policy.named_parameters():
        if name.endswith("bias"):
            assert not weights.any(), name
        elif name.endswith("weight"):
            rows = weights.detach() if weights.shape[0] <= weights.shape[1] else weights.detach().T
            product = rows @ rows.T
            th.testing.assert_close(product / product[0, 0], th.eye(len(rows)), atol=1e-5, rtol=0)


class Game(gym.Env):
    """What Atari's wrappers ask of a game."""

    observation_space = gym.spaces.Box(0, 255, (210, 160, 3), np.uint8)
    action_space = gym.spaces.Discrete(3)

    def get_action_meanings(self):
        return ["NOOP", "FIRE", "RIGHT"]


def test_atari_is_wrapped_as_the_details_say():
    env = atari_wrappers.AtariWrapper(Game())
    assert env.observation_space.shape == (84, 84, 1)
    wrappers = {}
    while isinstance(env, gym.Wrapper):
        wrappers[type(env).__name__] = env
        env = env.env
    names = ("NoopReset", "MaxAndSkip", "EpisodicLife", "FireReset", "WarpFrame", "ClipReward")
    expected = [name if name == "WarpFrame" else f"{name}Env" for name in names]
    assert list(wrappers)[1:] == expected[::-1]
    assert wrappers["NoopResetEnv"].noop_max == 30 and wrappers["MaxAndSkipEnv"]._skip == 4
    assert [wrappers["ClipRewardEnv"].reward(r) for r in (-7.0, 0.0, 0.5)] == [-1, 0, 1]
    for file in (hyperparams_file(algorithm) for algorithm in ZOO_ALGORITHMS):
        entry = yaml.safe_load(file.read_text())["atari"]
        assert entry["env_wrapper"] == ["stable_baselines3.common.atari_wrappers.AtariWrapper"]
        assert entry["frame_stack"] == 4 and entry["policy"] == "CnnPolicy"


def test_normalisation_clips_as_the_details_say():
    env = VecNormalize(world(ACTION_SPACES["box"]))
    assert env.norm_obs and env.norm_reward
    assert env.normalize_obs(np.full((1, 4), 1e9)).max() == env.normalize_reward(np.array([1e9])).max() == 10
    assert env.normalize_obs(np.full((1, 4), -1e9)).min() == -10
