"""The section with the clip objective, which the reader moves."""

from __future__ import annotations

from sb3_trust.report.ratios import BINS_PER_UNIT, DEFAULT_EPSILON, counts, embedded, evenly, usable_epsilon
from sb3_trust.report.run import Run
from sb3_trust.report.sections import Section, problem
from sb3_trust.trust_region.record import TRUST_REGION_FILE, RecordedUpdate

HOW_TO_RECORD = (
    f"There is no {TRUST_REGION_FILE} with an update in this folder. To record updates, train with the "
    "callback TrustRegionRecorder(folder) of sb3_trust, with the folder of the run."
)
MAX_UPDATES = 200  # in the figure
LEAD = (
    "PPO maximises the mean of min(rA, clip(r, 1 - ε, 1 + ε)A), where r is the new probability of an action "
    "over the old one and A its advantage. Move ε and change the sign of A: the red part is where the "
    "objective is flat, so that a sample there no longer moves the policy. "
)
CLIPPED = "The samples are recorded ones of the run, with the ratios that they had when the update was over."
NOT_CLIPPED = " {algorithm} does not clip: this is what a clip would have made of the samples."


def fill_clip(section: Section, run: Run) -> None:
    """The clip objective as an interactive figure, with the run's own ratios where they are recorded."""
    section.lead, section.notes = LEAD, problem(run, TRUST_REGION_FILE)
    updates = evenly(run.record.updates, MAX_UPDATES) if run.record else []
    ranges = [found for value in run.column("clip_range") if (found := usable_epsilon(value)) is not None]
    clips = bool(ranges)
    if run.record and updates:
        section.lead += CLIPPED
        clips = run.record.algorithm == "PPO"
        if not clips:
            section.lead += NOT_CLIPPED.format(algorithm=run.record.algorithm)
        section.choices = [f"{u.update:,} ({u.num_timesteps:,} time steps)" for u in updates]
    else:
        section.notes = section.notes or [
            HOW_TO_RECORD + " Without recorded ratios only the objective is drawn."
        ]
    start = ranges[0] if ranges else DEFAULT_EPSILON
    section.clip_data = embedded(
        {
            "binsPerUnit": BINS_PER_UNIT,
            "epsilon": start,
            "isOwn": clips,
            "updates": [_update(update, clips) for update in updates],
        }
    )


def _update(update: RecordedUpdate, clips: bool) -> dict:
    """What the script reads of an update: its number, clip range and ratios."""
    epsilon = usable_epsilon(update.clip_range) if clips else None
    return {
        "update": update.update,
        "epsilon": epsilon,
        **counts(update.ratios, update.advantages),
    }
