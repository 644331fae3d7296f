"""What is kept of single updates is bounded, and the file holds it; who is told of updates."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import stable_baselines3

from sb3_trust import NPG, PPO, REINFORCE, TRPO, InvalidArgument, TrustRegionRecorder
from sb3_trust.trust_region import RecordedUpdate, TrustRegionRecord, read_trust_region
from sb3_trust.trust_region.record import write_trust_region
from tests.recording import BATCH, recorded
from tests.worlds import model_of

# ---- what is kept is bounded -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "max_updates", "expected", "stride"),
    [(1, 64, list(range(1, 12)), 1), (3, 64, [1, 4, 7, 10], 3), (1, 4, [1, 5, 9], 4), (2, 3, [1, 5, 9], 4)],
)
def test_kept_updates_are_evenly_spread(every, max_updates, expected, stride, tmp_path):
    recorder = TrustRegionRecorder(tmp_path, every=every, max_updates=max_updates)
    _, record, _ = recorded(tmp_path, "discrete", REINFORCE, 11, recorder)
    assert [update.update for update in record.updates] == expected
    assert (record.n_updates, record.stride) == (11, stride)


def test_the_file_goes_on_with_the_run_and_is_new_with_a_new_one(tmp_path):
    recorder = TrustRegionRecorder(tmp_path, every=2)
    model, record, _ = recorded(tmp_path, "box", TRPO, 2, recorder)
    assert [u.update for u in record.updates] == [1]
    model.learn(2 * BATCH, callback=TrustRegionRecorder(tmp_path, every=2), reset_num_timesteps=False)
    assert [(u.update, u.num_timesteps) for u in read_trust_region(tmp_path).updates] == [(1, 128), (3, 384)]
    model.learn(BATCH, callback=recorder)
    assert [u.update for u in read_trust_region(tmp_path).updates] == [1]


def test_a_rolled_back_update_is_counted_and_not_kept(tmp_path):
    model = model_of("box", PPO)
    train = model.train

    def spoil():
        if model.num_timesteps == 2 * BATCH:
            model.rollout_buffer.advantages[0] = math.nan
        train()

    model.train = spoil
    with pytest.warns(RuntimeWarning):
        model.learn(3 * BATCH, callback=TrustRegionRecorder(tmp_path))
    record = read_trust_region(tmp_path)
    assert [update.update for update in record.updates] == [1, 3] and record.n_updates == 3


def test_a_rolled_back_update_at_the_end_is_counted_too(tmp_path):
    model = model_of("box", PPO)
    train = model.train

    def spoil():
        if model.num_timesteps == 2 * BATCH:
            model.rollout_buffer.advantages[0] = math.nan
        train()

    model.train = spoil
    with pytest.warns(RuntimeWarning):
        model.learn(2 * BATCH, callback=TrustRegionRecorder(tmp_path))
    assert read_trust_region(tmp_path).n_updates == 2
    model.learn(BATCH, callback=TrustRegionRecorder(tmp_path), reset_num_timesteps=False)
    assert [update.update for update in read_trust_region(tmp_path).updates] == [1, 3]


def test_a_policy_that_cannot_move_is_not_kept(tmp_path):
    model = model_of("box", TRPO, engine="autograd")
    for name, parameter in model.policy.named_parameters():
        parameter.requires_grad_("value" in name)
    model.learn(BATCH, callback=TrustRegionRecorder(tmp_path))
    assert read_trust_region(tmp_path).updates == [] and read_trust_region(tmp_path).n_updates == 1


@pytest.mark.parametrize("algorithm", [NPG, TRPO])
def test_no_step_is_a_profile_of_zeros(algorithm, tmp_path):
    _, record, _ = recorded(tmp_path, "box", algorithm, 2, target_kl="lin_0.02")
    last = record.updates[-1]
    assert last.target_kl == 0 and last.line_search is None and last.accepted_fraction == 0
    assert record.updates[0].accepted_fraction > 0
    assert (
        not last.profile.linear.any()
        and not last.profile.quadratic.any()
        and not last.profile.surrogate.any()
    )


# ---- the file --------------------------------------------------------------------------------------------


def flat(value, path=""):
    """The leaves of nested dataclasses and lists by path."""
    if dataclasses.is_dataclass(value):
        parts = vars(value)
    elif isinstance(value, list):
        parts = dict(enumerate(value))
    else:
        return {path: value}
    return {k: v for name, part in parts.items() for k, v in flat(part, f"{path}/{name}").items()}


@pytest.mark.parametrize("algorithm", [TRPO, PPO])
def test_what_is_read_is_what_was_kept(algorithm, tmp_path):
    recorder = TrustRegionRecorder(tmp_path)
    recorded(tmp_path, "multi_binary", algorithm, 4, recorder)
    kept, read = flat(recorder.record), flat(read_trust_region(tmp_path / "trust_region.npz"))
    assert kept.keys() == read.keys() and len(kept) > 50
    for name, value in kept.items():
        assert type(read[name]) is type(value), name
        np.testing.assert_array_equal(read[name], value, err_msg=name)
    with np.load(tmp_path / "trust_region.npz", allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)
    assert [path.name for path in tmp_path.iterdir()] == ["trust_region.npz"]


def test_a_record_of_nothing(tmp_path):
    write_trust_region(tmp_path / "trust_region.npz", TrustRegionRecord("TRPO", "Box"))
    assert read_trust_region(tmp_path) == TrustRegionRecord("TRPO", "Box", 0, 1, [])


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_trust_region(tmp_path)
    path = tmp_path / "trust_region.npz"
    path.write_bytes(b"not an archive")
    with pytest.raises(ValueError, match="not a file of a TrustRegionRecorder"):
        read_trust_region(tmp_path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(ValueError, match="not a file of a TrustRegionRecorder"):
        read_trust_region(tmp_path)
    np.savez(path, format=1)
    with pytest.raises(ValueError, match="not a file of a TrustRegionRecorder"):
        read_trust_region(tmp_path)
    np.savez(path, format=99)
    with pytest.raises(ValueError, match="format 99"):
        read_trust_region(tmp_path)


# ---- listeners -------------------------------------------------------------------------------------------


def test_listeners_are_neither_saved_nor_copied_nor_kept_for_the_next_run(tmp_path):
    class Broken(TrustRegionRecorder):
        def _on_update(self, finished):
            raise RuntimeError("broken")

    model = model_of("box", TRPO)
    with pytest.raises(RuntimeError, match="broken"):
        model.learn(BATCH, callback=Broken(tmp_path))
    assert len(model._listeners) == 1 and copy.deepcopy(model)._listeners == ()
    model.save(tmp_path / "model")
    assert not {"_listeners", "_searched", "_finished"} & set(vars(TRPO.load(tmp_path / "model")))
    model.learn(BATCH)
    assert model._listeners == () and model._searched is None and model._finished is None


def test_without_a_listener_nothing_is_kept(tmp_path):
    model = model_of("box", TRPO)
    model.learn(BATCH)
    assert model._searched is None and model._finished is None
    model._keep_update(model._make_batch(), [], model.last_update)
    assert model._finished is None


def test_bad_arguments_are_named(tmp_path):
    for name, value in {"every": 0, "max_updates": 1, "max_samples": True}.items():
        with pytest.raises(InvalidArgument, match=f"`{name}` must be"):
            TrustRegionRecorder(tmp_path, **{name: value})
    with pytest.raises(InvalidArgument, match="one of sb3-trust's"):
        model_of("box", stable_baselines3.PPO).learn(BATCH, callback=TrustRegionRecorder(tmp_path))


def test_every_field_is_documented():
    for kind in (RecordedUpdate, TrustRegionRecord):
        assert all(f":param {item.name}:" in kind.__doc__ for item in dataclasses.fields(kind))
