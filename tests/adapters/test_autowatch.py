"""A script that knows nothing of fanin, started the way `fanin run` starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import torch

from fanin.capture import watch
from fanin.examine import load_trial
from fanin.trial import Role, SourceLine

START = "import torch; from fanin.autowatch import install; install('torch'); torch.set_num_threads(1)\n"
"""What our sitecustomize does once torch has been imported; here it is the script's first line."""

MODEL = """
from torch import nn
def build():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))  # constructed
    nn.init.normal_(model[2].weight, std=0.5)  # drawn
    return model
def train(model, steps=4, loss_fn=nn.CrossEntropyLoss()):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_fn(model(torch.randn(8, 4)), torch.randint(3, (8,)))
        loss.backward()
        optimizer.step()
"""

IMPORTS = 60
"""Seconds that a script may take: all of it is importing torch."""


@dataclass(frozen=True)
class Script:
    """A script that was run."""

    path: Path
    trial: Path
    done: subprocess.CompletedProcess[str]

    def line(self, text: str) -> SourceLine:
        """Where this text stands."""
        (number,) = [n for n, line in enumerate(self.path.read_text().splitlines(), 1) if text in line]
        return SourceLine(str(self.path), number)


def run(folder: Path, body: str, steps: int = 3) -> Script:
    path, trial = folder / "train.py", folder / "trial"
    path.write_text(START + MODEL + dedent(body))
    environment = {**os.environ, "FANIN_TRIAL": str(trial), "FANIN_STEPS": str(steps)}
    done = subprocess.run(
        [sys.executable, "-W", "error", path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=IMPORTS,
        check=False,
        cwd=folder,
    )
    return Script(path, trial, done)


def test_a_script_that_trains_leaves_a_trial_with_its_lines(tmp_path: Path) -> None:
    body = """
        model = build().double().float()
        nn.MSELoss()(torch.ones(2), torch.zeros(2))
        model.eval()(torch.ones(1, 4))
        with torch.no_grad():
            model.train()(torch.ones(1, 4))
        nn.Linear(4, 4).requires_grad_(False)(torch.ones(1, 4))
        train(model)
    """
    script = run(tmp_path, body)
    assert (script.done.returncode, script.done.stderr) == (0, "")
    trial = load_trial(script.trial)
    assert trial.complete
    assert [step.index for step in trial.steps] == [0, 1, 2]
    assert all(step.loss > 0 for step in trial.steps)
    assert trial.start is not None
    assert list(trial.start.of(Role.ACTIVATION_INPUT)) == ["1.relu_input_0"]
    assert [layer.calls for layer in trial.spec.layers] == [1, 1]
    first, second = trial.spec.layer("0"), trial.spec.layer("2")
    assert first.inputs == ("",)
    assert first.parameters[0].source == script.line("# constructed")
    assert second.parameters[0].source == script.line("# drawn")


def test_a_training_that_is_killed_after_the_last_watched_step_is_complete(tmp_path: Path) -> None:
    script = run(tmp_path, "import os; train(build()); os._exit(9)")
    assert script.done.returncode == 9
    assert load_trial(script.trial).complete


def test_a_training_that_fails_fails_as_it_would_without_us(tmp_path: Path) -> None:
    script = run(tmp_path, "model = build(); train(model, steps=1); model(torch.ones(2, 5))")
    assert script.done.returncode == 1
    assert "RuntimeError: mat1 and mat2 shapes cannot be multiplied" in script.done.stderr
    assert "training goes on" not in script.done.stderr
    trial = load_trial(script.trial)
    assert trial.complete
    assert len(trial.steps) == 1


def test_a_script_that_never_trains_leaves_neither_trial_nor_error(tmp_path: Path) -> None:
    script = run(tmp_path, "build().eval()(torch.ones(2, 4)); nn.MSELoss()(torch.ones(2), torch.zeros(2))")
    assert (script.done.returncode, script.done.stdout, script.done.stderr) == (0, "", "")
    assert not script.trial.exists()


def test_a_trial_that_exists_is_left_alone_and_training_goes_on(tmp_path: Path) -> None:
    with watch(torch.nn.Linear(2, 2), trial=tmp_path / "trial"):
        pass
    script = run(tmp_path, "train(build()); print('trained')")
    assert (script.done.returncode, script.done.stdout) == (0, "trained\n")
    assert "fanin cannot watch Sequential" in script.done.stderr
    assert load_trial(script.trial).steps == ()


def test_a_compiled_model_trains_and_is_seen_as_far_as_possible(tmp_path: Path) -> None:
    body = """
        import warnings; warnings.simplefilter("ignore")
        train(torch.compile(build(), backend="eager"))
        print("trained")
    """
    script = run(tmp_path, body)
    assert (script.done.returncode, script.done.stdout) == (0, "trained\n"), script.done.stderr
    trial = load_trial(script.trial)
    assert len(trial.steps) == 3
    assert trial.start is not None
    assert len(trial.start.of(Role.WEIGHT_GRAD)) == 2
    assert trial.spec.notes
