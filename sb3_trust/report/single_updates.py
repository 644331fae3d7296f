"""The sections about single updates: the clip objective, which the reader moves, and what lay along steps."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from sb3_trust.plots import clipped_surrogate, kl_per_action_dimension, line_search_trace, surrogate_landscape
from sb3_trust.report.pictures import picture
from sb3_trust.report.ratios import BINS_PER_UNIT, DEFAULT_EPSILON, counts, embedded, evenly, usable_epsilon
from sb3_trust.report.run import Run
from sb3_trust.report.sections import Section, problem
from sb3_trust.report.shown import count, number, shown
from sb3_trust.trust_region.record import TRUST_REGION_FILE, RecordedUpdate, TrustRegionRecord

HOW_TO_RECORD = (
    f"There is no {TRUST_REGION_FILE} with an update in this folder. To record updates, train with sb3-trust "
    "train --trust-region-record, or with the callback TrustRegionRecorder(folder) of sb3_trust."
)
ONLY_THE_OBJECTIVE = " Without recorded ratios only the objective is drawn."
MAX_UPDATES = 200  # in the interactive figure
MAX_DIMENSIONS = 20  # of actions, in a description
LEAD = (
    "PPO maximises the mean of min(rA, clip(r, 1 - ε, 1 + ε)A), where r is the new probability of an action "
    "over the old one and A its advantage. Move ε and change the sign of A: the red part is where the "
    "objective is flat, so that a sample there no longer moves the policy. "
)
SAMPLES = "The samples are recorded ones of the run, with the ratios that they had when the update was over."
NOT_CLIPPED = " {algorithm} did not clip in this run: this is what a clip would have made of the samples."


def fill_clip(section: Section, run: Run) -> None:
    """The clip objective as an interactive figure, with the run's own ratios where they are recorded."""
    section.lead, section.notes = LEAD, problem(run, TRUST_REGION_FILE)
    updates = evenly(run.record.updates, MAX_UPDATES) if run.record else []
    ranges = [found for value in run.column("clip_range") if (found := usable_epsilon(value)) is not None]
    clips = bool(ranges)
    if run.record and updates:
        section.lead += SAMPLES
        # of other algorithms the record has the usual range, of a PPO that does not clip an infinite one
        clips = run.record.algorithm == "PPO" and any(usable_epsilon(update.clip_range) for update in updates)
        if not clips:
            section.lead += NOT_CLIPPED.format(algorithm=shown(run.record.algorithm))
        section.choices = [f"{u.update:,} ({u.num_timesteps:,} time steps)" for u in updates]
    elif not section.notes:
        section.notes = [HOW_TO_RECORD + ONLY_THE_OBJECTIVE]
    section.clip_data = embedded(
        {
            "binsPerUnit": BINS_PER_UNIT,
            "epsilon": ranges[0] if ranges else DEFAULT_EPSILON,
            "isOwn": clips,
            "updates": [_update(update, clips) for update in updates],
        }
    )


def _update(update: RecordedUpdate, clips: bool) -> dict[str, Any]:
    """What the script reads of an update: its number, clip range and ratios."""
    epsilon = usable_epsilon(update.clip_range) if clips else None
    return {"update": update.update, "epsilon": epsilon, **counts(update.ratios, update.advantages)}


def fill_steps(section: Section, run: Run) -> None:
    """What lay along the steps of the first and of the last recorded update."""
    section.notes = problem(run, TRUST_REGION_FILE)
    record = run.record
    if record is None or not record.updates:
        section.notes = section.notes or [HOW_TO_RECORD]
        return
    section.lead = (
        f"{len(record.updates):,} of {count(record.n_updates, 'update')} recorded; shown are the first and "
        "the last of them. The policy's parameters are moved along the update's own step, and objective and "
        "KL divergence are evaluated on all samples of its rollout."
    )
    ends = [record.updates[0], *([record.updates[-1]] if len(record.updates) > 1 else [])]
    for update in ends:
        _add_landscape(section, update)
    for update in ends:
        _add_clipped(section, update)
    for update in ends:
        _add_line_search(section, update)
    _add_dimensions(section, record)


def _add_dimensions(section: Section, record: TrustRegionRecord) -> None:
    last = record.updates[-1]
    if len(last.kl_per_dimension) < 2:
        return
    sizes = ", ".join(
        f"{i}: {number(value)}" for i, value in enumerate(last.kl_per_dimension[:MAX_DIMENSIONS])
    )
    alt = f"KL divergence of each action dimension, stacked, by update. At update {last.update}: {sizes}."
    title = "KL divergence of each action dimension"
    section.pictures.append(picture(partial(kl_per_action_dimension, record), title, alt))


def _add_landscape(section: Section, update: RecordedUpdate) -> None:
    x, taken = update.profile.fractions, update.accepted_fraction
    gain, linear = (float(np.interp(taken, x, y)) for y in (update.profile.surrogate, update.profile.linear))
    limit = update.limit if np.isfinite(update.limit) else update.target_kl
    alt = (
        f"Along the step of update {update.update}, of which {number(taken)} was taken: there the surrogate "
        f"improves by {number(gain)}, its linear model by {number(linear)}; the KL divergence is "
        f"{number(update.kl)}, limit or target {number(limit)}."
    )
    caption = (
        "The objective and the KL divergence along the step, their models, and the point that was taken."
    )
    title = f"Along the step of update {update.update:,}"
    section.pictures.append(picture(partial(surrogate_landscape, update), title, alt, caption))


def _add_clipped(section: Section, update: RecordedUpdate) -> None:
    flat = (update.ratios - 1) * np.sign(update.advantages) > update.clip_range
    share = f"{flat.mean():.1%}" if len(flat) else "none"
    alt = (
        f"The clipped objective at update {update.update} for clip range {number(update.clip_range)}, and "
        f"the ratios of {count(len(flat), 'sample')} below it, {share} of them where it is flat."
    )
    title = f"Ratios of update {update.update:,}"
    section.pictures.append(picture(partial(clipped_surrogate, update), title, alt))


def _add_line_search(section: Section, update: RecordedUpdate) -> None:
    search = update.line_search
    if search is None:
        return
    outcome = "accepted the last" if search.accepted.any() else "accepted none"
    tried = count(len(search.fractions), "point")
    alt = f"The line search of update {update.update} tried {tried} and {outcome}."
    caption = (
        "The points that the line search tried, in order, against the limit and the improvement it needs."
    )
    title = f"Line search of update {update.update:,}"
    drawn = partial(line_search_trace, update)
    section.pictures.append(picture(drawn, title, alt, caption))
