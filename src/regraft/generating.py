"""Playing on: a net that predicts the next step is asked again and again, with what it has played before it.

Boulanger-Lewandowski et al. 2012, section 4: each note of the next step is drawn by its own probability, given all steps before. Shapes:
t steps so far, P pitches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from regraft import midi, streams
from regraft.errors import Problem, UserError
from regraft.report import canvas, rolls

if TYPE_CHECKING:
    from regraft.graft import Run

Predict = Callable[[np.ndarray], np.ndarray]  # bool [t, P] -> probabilities [P] that each note sounds at the next step
TEMPOS = (10.0, 1000.0)  # quarters a minute: what MIDI can say, and a player can play
POLYPHONY = 4  # notes at once


def predictor(net: Callable[[Tensor], Tensor]) -> Predict:
    """For a net that answers every step of its input, [1, t + 1, P + 1] -> logits [1, t + 1, P], where each input is the step before the
    one that is asked for, and the first is empty."""

    @torch.inference_mode()
    def predict(history: np.ndarray) -> np.ndarray:
        x = torch.zeros(1, len(history) + 1, history.shape[1] + 1)
        x[0, 1:, :-1], x[..., -1] = torch.from_numpy(history), 1
        return net(x)[0, -1].double().sigmoid().numpy()

    return predict


def sampler(run: Run, steps: int, seed: int) -> Predict:
    """For a Deep Belief Network, whose lowest machine knows frames together: it samples the next one with those before held fast.

    Raises UserError for a run that has no machines, or whose lowest one sees a single frame."""
    from regraft.models import dbn

    lowest = next(iter(dbn.machines(run.chain)), None)
    if lowest is None or lowest.window < 2:
        remedy = "a Deep Belief Network that sees several frames is needed (model=dbn model.window=4); 0 asks the head"
        raise UserError(Problem("--gibbs", steps, remedy))

    @torch.inference_mode()
    def predict(history: np.ndarray) -> np.ndarray:
        frames = torch.from_numpy(history[-(lowest.window - 1) :]).float()
        return dbn.next_frame(lowest, frames[None], steps, seed + len(history))[0].double().clamp(0, 1).numpy()

    return predict


def generate(
    predict: Predict, prime: np.ndarray, steps: int, seed: int, temperature: float = 1.0, polyphony: int = POLYPHONY
) -> np.ndarray:
    """bool [t, P] -> [t + steps, P]: the prime, and so many steps after it; the same for the same seed, however many follow.

    `temperature`: what the odds' logarithms are divided by: below 1 what is likely becomes likelier. Of more notes than `polyphony` the
    likeliest are kept.
    """
    roll = prime.astype(bool)
    for step in range(steps):
        p = predict(roll).clip(1e-9, 1 - 1e-9)
        p = 1 / (1 + np.exp((np.log1p(-p) - np.log(p)) / temperature))
        draws = torch.rand(len(p), generator=streams.generator(seed, "notes", step), dtype=torch.float64).numpy()
        sounds = draws < p
        if sounds.sum() > polyphony:
            sounds[np.argsort(np.where(sounds, -p, 1), kind="stable")[polyphony:]] = False
        roll = np.concatenate([roll, sounds[None]])
    return roll


def write(
    run: Run,
    prime: str,
    seconds: float,
    seed: int,
    out: Path,
    *,
    tempo: float = 80.0,
    temperature: float = 1.0,
    polyphony: int = POLYPHONY,
    gibbs: int = 0,
) -> list[Path]:
    """Have a finished run of task=frames play on from `prime`, a MIDI file or notes; gives back the MIDI file and its picture, in folder
    `out`. `seconds`: of what is played on, at `tempo` quarters a minute. `gibbs`: so many steps of sampling by a Deep Belief
    Network's lowest machine tell each frame, in place of its head; 0: the head.

    Raises UserError for a run that plays nothing, for a prime that can't be read or has other notes than the run, or for numbers that
    can't be.
    """
    for key, number in (("--seconds", seconds), ("--tempo", tempo), ("--temperature", temperature), ("--polyphony", polyphony)):
        if not (math.isfinite(number) and number > 0):
            raise UserError(Problem(key, number, "more than 0 is needed"))
    if gibbs < 0:
        raise UserError(Problem("--gibbs", gibbs, "0 (the head tells each frame) or more steps"))
    if not TEMPOS[0] <= tempo <= TEMPOS[1]:
        raise UserError(Problem("--tempo", tempo, f"{TEMPOS[0]:g} to {TEMPOS[1]:g} quarters a minute can be played"))
    if run.settings.task.KIND != "frames":
        remedy = "it learns no music; a run of task=frames (dataset=chorales) would work"
        raise UserError(Problem(str(run.folder.path), run.settings.task.name, remedy))
    midi.library("--prime")
    step, pitches = _grid(run)
    steps = math.ceil(round(seconds * tempo / 60 * midi.STEPS[step], 6))
    if steps > midi.LONGEST:
        raise UserError(Problem("--seconds", seconds, f"{steps:,} steps; at most {midi.LONGEST:,} are played"))
    given = _prime(prime, step, pitches)
    roll = generate(sampler(run, gibbs, seed) if gibbs else predictor(run.chain), given, steps, seed, temperature, polyphony)
    files = [out / f"generated-{seed}.mid", out / f"generated-{seed}.png"]
    whole = np.zeros((len(roll), midi.PITCHES), dtype=bool)
    whole[:, pitches] = roll
    midi.write(whole, files[0], step, tempo)
    names = [midi.name(each) for each in pitches]
    title = f"Played on by {run.settings.model.name}{', by Gibbs sampling' if gibbs else ''}, seed {seed}"
    canvas.save(rolls.picture(roll, len(given), names, rolls.QUARTERS * midi.STEPS[step], title), files[1])
    return files


def _grid(run: Run) -> tuple[str, list[int]]:
    """The length of a run's steps, and the pitches that its net answers for."""
    step = getattr(run.settings.dataset, "step", None)
    try:
        pitches = [midi.pitch(name) for name in run.classes]
    except ValueError:
        pitches = []
    if step not in midi.STEPS or not pitches:
        raise UserError(Problem(str(run.folder.path), None, "its outputs are no notes; a run of dataset=chorales would work"))
    return step, pitches


def _prime(prime: str, step: str, pitches: list[int]) -> np.ndarray:
    """bool [t, P]"""
    roll = midi.read(Path(prime), step) if _is_file(prime) else midi.notes(prime, "--prime")
    others = sorted(set(np.flatnonzero(roll.any(axis=0)).tolist()) - set(pitches))
    if others:
        names = ", ".join(map(midi.name, others[:5]))
        remedy = f"the net has learnt no {names}; notes from {midi.name(min(pitches))} to {midi.name(max(pitches))} would work"
        raise UserError(Problem("--prime", prime[:100], remedy))
    return roll[:, pitches]


def _is_file(prime: str) -> bool:
    """Whether a prime names a file: what ends as one does, or is one; a long line of notes is too long for a name."""
    try:
        return Path(prime).suffix.lower() in (".mid", ".midi") or Path(prime).is_file()
    except OSError:
        return False
