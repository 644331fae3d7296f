"""Files of models are written whole or not at all."""

import io
import os
import signal

import pytest
import stable_baselines3
import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_trust import PPO
from tests.resuming import STEPS, make, python
from tests.worlds import identical, state


def breaking_off(monkeypatch):
    """The disk is full when half of a model has been written."""

    def fail(content, file, *args, **kwargs):
        file.write(b"0" * 5000)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(th, "save", fail)


def test_a_full_disk_leaves_the_last_good_file(tmp_path, monkeypatch):
    model, path = make("box", PPO), tmp_path / "model.zip"
    model.save(path)
    good = path.read_bytes()
    breaking_off(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        model.learn(STEPS).save(path)
    assert path.read_bytes() == good and os.listdir(tmp_path) == ["model.zip"]
    assert model.rng_states is None
    with pytest.raises(OSError, match="No space left"):
        OnPolicyAlgorithm.save(model, path)
    assert path.read_bytes() != good  # SB3's own way does not keep it


def test_a_killed_process_leaves_the_last_good_file(tmp_path):
    path = tmp_path / "model.zip"
    make("box", PPO).save(path)
    good = path.read_bytes()
    script = """
import os, signal, sys, torch
from sb3_trust import PPO
model = PPO.load(sys.argv[1])
def die(content, file, *args, **kwargs):
    file.write(b"0" * 5000)
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = die
model.save(sys.argv[1])
"""
    python([script, str(path)], code=-signal.SIGKILL)
    assert path.read_bytes() == good
    left = [name for name in os.listdir(tmp_path) if name != "model.zip"]
    assert len(left) == 1 and left[0].startswith(".model.zip.")  # it had begun
    assert PPO.load(path).num_timesteps == 0


def test_files_are_named_as_by_sb3(tmp_path):
    model, theirs = make("box", PPO), make("box", stable_baselines3.PPO)
    for index, saved in enumerate((model, theirs)):
        folder = tmp_path / str(index)
        folder.mkdir()
        (folder / "folder.zip").mkdir()
        for name in ("plain", "a.zip", "b.v1"):
            saved.save(str(folder / name))
        for name in ("folder", "new/one"):
            with pytest.warns(UserWarning, match=r"folder|does not exist"):
                saved.save(folder / name)
    ours, reference = ({str(p.relative_to(tmp_path / i)) for p in (tmp_path / i).rglob("*")} for i in "01")
    assert ours == reference and "folder.zip_2" in ours and "new/one.zip" in ours


@pytest.mark.skipif(os.name != "posix", reason="permissions and links of POSIX")
def test_permissions_and_links_are_kept(tmp_path):
    model, path = make("box", PPO), tmp_path / "model.zip"
    before = os.umask(0o027)
    try:
        model.save(path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o604)
    (tmp_path / "latest.zip").symlink_to("model.zip")
    model.learn(STEPS).save(tmp_path / "latest.zip")
    assert path.stat().st_mode & 0o777 == 0o604 and (tmp_path / "latest.zip").is_symlink()
    assert PPO.load(path).num_timesteps == STEPS


def test_file_objects_are_written_to():
    file = io.BytesIO()
    model = make("box", PPO).learn(STEPS)
    model.save(file)
    file.seek(0)
    assert identical(state(model), state(PPO.load(file, device="cpu")))
