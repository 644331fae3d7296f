"""A page about a run of a stranger: nothing of the run acts in it."""

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sb3_trust import PPO
from sb3_trust.report import pictures
from sb3_trust.report.page import write_report
from sb3_trust.report.ratios import embedded
from sb3_trust.report.shown import MAX_TEXT, shown
from tests.pages import Page
from tests.runs import make_run, write_yaml
from tests.strangers import Evil, with_entries, written


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "ppo", PPO)


@pytest.fixture
def copied(original, tmp_path, monkeypatch):
    """A copy of a run; figures of it are made, but not painted."""
    monkeypatch.setattr(pictures, "_painted", lambda figure: b"")
    return Path(shutil.copytree(original, tmp_path / "run"))


ATTACK = "</script></style><script>pwned=1</script><img src=x onerror=pwned=1>\"'><!--"


def test_nothing_of_a_run_becomes_markup(copied):
    write_yaml(copied, "args.yml", {"algo": ATTACK, "env": ATTACK, "seed": ATTACK, ATTACK: 1})
    write_yaml(copied, "config.yml", {ATTACK: ATTACK, "gamma": [{ATTACK: ATTACK}]})
    (copied / "evaluation.json").write_text(json.dumps({"mean": ATTACK}))
    lines = (copied / "updates.csv").read_text().splitlines()
    quoted = '"' + ATTACK.replace('"', '""') + '"'
    names = lines[0].split(",")
    row = lines[1].split(",")
    row[names.index("rollback_reason")] = quoted
    rows = [",".join(row), *lines[2:]]
    (copied / "updates.csv").write_text("\n".join([f"{lines[0]},{quoted}", *(f"{r},1" for r in rows)]) + "\n")
    with_attack = Page(write_report(copied))
    for tag, attributes in with_attack.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
    assert len(with_attack.all("script")) == 2 and with_attack.all("style") == [{}]
    assert all(image["src"].startswith("data:image/png;base64,") for image in with_attack.all("img"))
    assert with_attack.text("head").count("pwned=1") >= 6  # shown as text
    assert with_attack.text("statistics").count("onerror") == 2
    assert json.loads(embedded({"a": ATTACK})) == {"a": ATTACK} and "<" not in embedded({"a": ATTACK})


def test_nothing_of_a_run_is_executed(copied, ran):
    evil = f"!!python/object/apply:os.mkdir ['{ran}']\n"
    for name in ("args.yml", "config.yml"):
        (copied / "Env" / name).write_text(evil)
    model = copied / "CartPole-v1.zip"
    with zipfile.ZipFile(model) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    written(with_entries(members, gamma=pickle.dumps(Evil(ran))), model)
    with (copied / "trust_region.npz").open("wb") as file:
        np.savez(file, format=np.array([Evil(ran)], dtype=object))
    page = Page(write_report(copied))
    assert page.text("settings").count(evil.strip()) == 2  # shown as it is
    assert "holds more than plain settings" in page.text("settings")
    assert "trust_region.npz cannot be read" in page.text("clip")
    assert page.text("head").startswith("A run on CartPole-v1") or "PPO" in page.text("head")


def test_settings_that_unfold_without_end_are_cut(copied):
    bomb = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30))
    for name in ("args.yml", "config.yml"):
        (copied / "Env" / name).write_text(f"a0: &a0 [1]\n{bomb}\nalgo: *a29\nenv: *a29\nseed: *a29\n")
    page = Page(write_report(copied))
    assert len(page.text("head")) < 6000 and "Algorithm [[[[…], […]," in page.text("head")
    assert len(page.text("settings")) < 100_000


TUPLE, PAIRS = "!!python/tuple", "!!python/object/apply:collections.OrderedDict"
ENDLESS = {
    "merges": ("{{<<: [{}]}}", "{x: 1}", "seed: 1"),
    "keys": (TUPLE + " [{}]", "1", "? *a5\n: 1"),
    "pairs": (TUPLE + " [{}]", "1", f"algo: {PAIRS} [[[*a5, 1]]]"),
}


@pytest.mark.parametrize("case", ENDLESS)
def test_settings_that_multiply_as_they_are_read_are_refused(case, copied):
    form, first, last = ENDLESS[case]
    bomb = [f"a{i}: &a{i} " + form.format(", ".join([f"*a{i - 1}"] * 9)) for i in range(1, 6)]
    (copied / "Env" / "args.yml").write_text("\n".join([f"a0: &a0 {first}", *bomb, last]) + "\n")
    assert "holds more than plain settings" in Page(write_report(copied)).text("settings")


def test_monitor_files_are_files(copied):
    (copied / "2.monitor.csv").symlink_to("/dev/zero")
    page = Page(write_report(copied))
    assert "2.monitor.csv is not a regular file" in page.text("learning")


def test_a_link_in_the_folder_does_not_say_where_the_page_goes(copied, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (copied / "report.html").symlink_to(victim)
    with pytest.raises(FileExistsError, match="is a link"):
        write_report(copied)
    assert victim.read_text() == "mine"
    assert write_report(copied, copied / "report.html") and "<html" in victim.read_text()


@pytest.mark.parametrize("value", ["nan", "inf", "1e400", "-1e300", "x", ""])
def test_numbers_of_any_kind_leave_a_page(value, copied):
    for path in (copied / "updates.csv", *copied.glob("*.monitor.csv")):
        lines = path.read_text().splitlines()
        width = lines[-1].count(",") + 1
        path.write_text("\n".join([*lines[:-1], ",".join([value] * width)]) + "\n")
    page = Page(write_report(copied))
    assert "Time steps 640" in page.text("head") and "Hyperparameters" in page.text("settings")


def test_values_stay_short_whatever_they_are():
    itself = [1]
    itself.append(itself)
    bomb = ["lol"] * 10
    for _ in range(40):
        bomb = [bomb] * 10
    for value in (itself, bomb, {"a": bomb}, "x" * 10**6, 10**10**4, {i: i for i in range(10**5)}):
        assert 0 < len(shown(value)) <= MAX_TEXT + 1
    assert shown({"a": [1, 0.1, None, True], "b": ("x",)}) == "{a: [1, 0.1, None, True], b: (x)}"
    assert shown(float("nan")) == "nan" and shown(1e-7) == "1e-07" and shown(64.0) == "64"
