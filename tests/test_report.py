"""The page about a run: what it says, what it does without, and that nothing of the run can act in it."""

import base64
import hashlib
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sb3_trust import PPO, TRPO, InvalidArgument
from sb3_trust.plots import read_updates
from sb3_trust.report import page as report_page
from sb3_trust.report import pictures
from sb3_trust.report.command import report
from sb3_trust.report.page import write_report
from sb3_trust.report.ratios import BINS_PER_UNIT, counts, evenly
from sb3_trust.trust_region.record import read_trust_region
from tests.pages import SECTIONS, Page
from tests.runs import make_run

NO_PICTURE = b"\x89PNG"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        "ppo": make_run(folder / "ppo", PPO),
        "trpo": make_run(folder / "trpo", TRPO, "Pendulum-v1", records=False),
    }


@pytest.fixture
def copied(runs, tmp_path):
    """A copy of a run, to be damaged."""
    return Path(shutil.copytree(runs["ppo"], tmp_path / "run"))


@pytest.fixture
def quick(monkeypatch):
    """Figures are made, but not painted."""
    monkeypatch.setattr(pictures, "_painted", lambda figure: NO_PICTURE)


# ---- what the page says ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "title"), [("ppo", "PPO on CartPole-v1"), ("trpo", "TRPO on Pendulum-v1")])
def test_the_page_has_every_section_of_a_run(name, title, runs, tmp_path):
    page = Page(write_report(runs[name], tmp_path / "page.html"))
    head = page.text("head")
    updates = read_updates(runs[name])
    assert head.startswith(title)
    for fact in ("Seed 3", "Time steps 640", "Evaluated return 123.5 ± 7", "Updates 5"):
        assert fact in head
    assert page.sections == SECTIONS
    assert f"mean {updates['kl'].mean():.4g}, largest {updates['kl'].max():.4g}" in page.text("kl")
    limits = "The run set no target_kl" if name == "ppo" else "0 of 5 updates had a KL divergence (mean over"
    assert limits in page.text("kl")
    for panel in ("Explained variance", "Entropy", "Clipping" if name == "ppo" else "Step fraction"):
        assert panel in page.text("statistics")
    assert ("Clipping" in page.text("statistics")) == (name == "ppo")
    assert "No update was rolled back" in page.text("statistics")
    assert "batch_size 64 64" in page.text("settings") and "frame (1, 2)" in page.text("settings")
    import stable_baselines3

    assert f"Stable-Baselines3 {stable_baselines3.__version__} " in page.text("versions")
    assert "cannot be" not in page.html


def test_figures_are_in_the_page_for_both_backgrounds_and_described(runs, tmp_path):
    page = Page(write_report(runs["trpo"], tmp_path / "page.html"))
    images, dark = page.all("img"), page.all("source")
    assert len(images) == len(dark) >= 8
    for image, other in zip(images, dark, strict=True):
        assert base64.b64decode(image["src"].split(",")[1]).startswith(b"\x89PNG")
        assert other["media"] == "(prefers-color-scheme: dark)" and other["srcset"] != image["src"]
        assert len(image["alt"]) > 30
    (kl,) = (image["alt"] for image in images if image["alt"].startswith("KL divergence"))
    values = read_updates(runs["trpo"])["kl"]
    assert f"from {values[0]:.4g} to {values[-1]:.4g}" in kl


@pytest.mark.usefixtures("quick")
def test_the_page_refers_to_nothing_outside(runs, tmp_path):
    for name in runs:
        page = Page(write_report(runs[name], tmp_path / "page.html"))
        for _, attributes in page.elements:
            for key in ("src", "srcset", "href", "data", "action", "poster"):
                assert attributes.get(key, "#").startswith(("#", "data:"))
        assert (
            "://" not in page.html
            and "@import" not in page.html
            and "url(" not in page.html.replace("url(#stripes)", "")
        )
        (policy,) = (m["content"] for m in page.all("meta") if m.get("http-equiv"))
        assert "default-src 'none'" in policy
        digest = base64.b64encode(hashlib.sha256(page.scripts[-1].encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in policy


@pytest.mark.usefixtures("quick")
def test_rolled_back_updates_are_listed(copied, tmp_path):
    lines = (copied / "updates.csv").read_text().splitlines()
    names, row = lines[0].split(","), lines[2].split(",")
    row[names.index("rollbacks")], row[names.index("rollback_reason")] = "1", "non-finite gradient"
    (copied / "updates.csv").write_text("\n".join([*lines[:2], ",".join(row), *lines[3:]]) + "\n")
    page = Page(write_report(copied))
    assert "1 update rolled back" in page.text("statistics")
    assert "2 non-finite gradient" in page.text("statistics")
    assert any(image["alt"].startswith("Rollbacks of each update") for image in page.all("img"))


@pytest.mark.usefixtures("quick")
def test_the_interactive_figure_has_the_recorded_ratios(runs, tmp_path):
    page = Page(write_report(runs["ppo"], tmp_path / "page.html"))
    data = json.loads(page.scripts[0])
    record = read_trust_region(runs["ppo"])
    assert (
        [update["update"] for update in data["updates"]]
        == [u.update for u in record.updates]
        == [*range(1, 6)]
    )
    assert len(page.all("option")) == 5
    for found, update in zip(data["updates"], record.updates, strict=True):
        assert found["epsilon"] == update.clip_range == 0.2
        assert sum(found["positive"][1::2]) == (update.advantages > 0).sum() > 0
        assert sum(found["negative"][1::2]) == (update.advantages < 0).sum() > 0
    without = Page(write_report(runs["trpo"], tmp_path / "page.html"))
    assert json.loads(without.scripts[0])["updates"] == []
    assert "TrustRegionRecorder(folder)" in without.text("clip") and not without.all("select")


@pytest.mark.parametrize("clip_range", [0.05, math.inf])
@pytest.mark.usefixtures("quick")
def test_a_clip_range_is_called_the_runs_only_if_it_is(clip_range, tmp_path):
    page = Page(write_report(make_run(tmp_path / "run", PPO, clip_range=clip_range)))
    own = [update["epsilon"] for update in json.loads(page.scripts[0])["updates"]]
    assert own == [clip_range if clip_range < 1 else None] * 5
    assert ("PPO did not clip in this run" in page.text("clip")) == (clip_range > 1)
    assert "cannot be" not in page.html


def test_counts_give_the_exact_share_beyond_every_step_of_the_slider():
    rng = np.random.default_rng(0)
    ratios, advantages = np.exp(rng.normal(0, 0.4, 5000)), rng.normal(size=5000)
    ratios[:3], advantages[3:5], ratios[5], advantages[6] = (np.inf, 0.0, 9.0), 0.0, np.nan, np.nan
    found = counts(ratios, advantages)
    assert found["zero"] == 2 and found["unusable"] == 2
    known = ~np.isnan(ratios)
    for epsilon in (0.01, 0.1, 0.2, 0.205, 0.6):
        for name, sign in (("positive", 1), ("negative", -1)):
            bins, numbers = np.array(found[name]).reshape(-1, 2).T
            bound = round((1 + sign * epsilon) * BINS_PER_UNIT)
            stopped = numbers[bins >= bound].sum() if sign > 0 else numbers[bins < bound].sum()
            expected = known & (sign * advantages > 0) & ((ratios - 1) * sign > epsilon)
            assert stopped == expected.sum() > 0
    assert evenly(range(1000), 3) == [0, 500, 999] and evenly([1, 2], 3) == [1, 2]


# ---- runs that are not whole -----------------------------------------------------------------------------


def damage(folder, name, content):
    for path in folder.rglob(name):
        path.unlink() if content is None else path.write_bytes(content)


PARTIAL = {
    "no updates": ("updates.csv", None, "kl", "There is no updates.csv"),
    "no update yet": ("updates.csv", b"update,num_timesteps,kl,kl_max\n", "kl", "no updates.csv with"),
    "empty updates": ("updates.csv", b"", "statistics", "There is no updates.csv with an update"),
    "foreign updates": ("updates.csv", b"a,b\n1,2\n", "kl", "updates.csv cannot be read: ValueError"),
    "no evaluation": ("evaluation.json", None, "head", "no evaluation.json in the folder"),
    "broken evaluation": ("evaluation.json", b"[1", "head", "JSONDecodeError"),
    "infinite evaluation": ("evaluation.json", b'{"mean":1e999,"std":0,"returns":[]}', "head", "not finite"),
    "no monitor": ("*monitor.csv", None, "learning", "No training episode is recorded here"),
    "empty monitor": ("*monitor.csv", b"", "learning", "No training episode is recorded here"),
    "no episode": ("*monitor.csv", b'#{"t_start": 1.0}\nr,l,t\n', "learning", "No training episode"),
    "broken monitor": ("*monitor.csv", b"nonsense\n", "learning", "monitor.csv cannot be read"),
    "no settings": ("*.yml", None, "settings", "Hyperparameters of the saved model"),
    "no model": ("*.zip", None, "versions", "no saved model that records the versions"),
    "broken model": ("*.zip", b"PK\x05\x06" + bytes(18), "settings", "the saved model cannot be read"),
    "broken record": ("trust_region.npz", b"PK", "clip", "trust_region.npz cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", PARTIAL)
@pytest.mark.usefixtures("quick")
def test_a_partial_run_has_a_page_that_says_what_is_missing(case, copied):
    pattern, content, section, note = PARTIAL[case]
    damage(copied, pattern, content)
    page = Page(write_report(copied))
    assert note in page.text(section)
    assert page.sections == SECTIONS and "CartPole-v1" in page.text("head")


@pytest.mark.usefixtures("quick")
def test_a_row_that_was_not_written_to_its_end_is_left_out(copied):
    content = (copied / "updates.csv").read_bytes()
    (copied / "updates.csv").write_bytes(content[:-200])
    page = Page(write_report(copied))
    assert "Updates 4" in page.text("head") and "Over 4 updates" in page.text("kl")


def test_what_is_no_run_is_refused(runs, tmp_path, capsys):
    for folder, says in ((tmp_path / "missing", "there is no folder"), (tmp_path, "has none of them")):
        with pytest.raises(InvalidArgument, match=says):
            write_report(folder)
        with pytest.raises(SystemExit) as ended:
            report([str(folder)])
        assert ended.value.code == 2 and says in capsys.readouterr().err
    with pytest.raises(SystemExit):
        report([str(runs["ppo"].parent)])
    assert f"runs in it: {runs['ppo']}, {runs['trpo']}" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.usefixtures("quick")
def test_the_page_is_written_whole_or_not_at_all(copied, monkeypatch, capsys):
    path = write_report(copied)
    before = path.read_bytes()
    assert path == copied / "report.html"
    write_report(copied)
    assert path.read_bytes() == before  # nothing of the moment is in it
    monkeypatch.setattr(report_page, "render", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(copied)
    monkeypatch.setattr(report_page, "render", lambda run: "page")
    with pytest.raises(SystemExit) as ended:
        report([str(copied), "-o", str(copied / "no" / "page.html")])
    assert ended.value.code == 1 and "No such file or directory" in capsys.readouterr().err
    assert path.read_bytes() == before and not list(copied.glob(".*"))


def test_the_command_needs_no_zoo_and_says_where_the_page_is(copied, tmp_path):
    script = "import sys; sys.modules['rl_zoo3'] = None; from sb3_trust.__main__ import main; main()"
    command = [sys.executable, "-c", script, "report", str(copied), "--output", str(tmp_path / "page.html")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == f"Report:  {tmp_path / 'page.html'}\n"
    assert Page(tmp_path / "page.html").text("head").startswith("PPO on CartPole-v1")
    assert not (copied / "report.html").exists()


@pytest.mark.usefixtures("quick")
def test_the_front_door_has_the_command(copied, capsys):
    pytest.importorskip("rl_zoo3")
    from sb3_trust.zoo.cli import run

    run(["report", str(copied)])
    assert capsys.readouterr().out == f"Report:  {copied / 'report.html'}\n"


# ---- parts ---------------------------------------------------------------------------------------------


def test_all_files_of_the_page_are_in_the_package():
    tomllib = pytest.importorskip("tomllib")
    root = Path(__file__).parent.parent
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    files = [path for path in (root / "sb3_trust" / "report").iterdir() if path.suffix not in (".py", "")]
    assert {path.suffix for path in files} == {".html", ".css", ".js"}
    assert all(any(file.match(pattern) for pattern in patterns["sb3_trust"]) for file in files)
