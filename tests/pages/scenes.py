"""What pages take for granted, and a reader has: names, files, a job of SageMaker Debugger."""

from __future__ import annotations

import shutil
from pathlib import Path

from pages.blocks import ROOT
from stores.smdebug_trial import unlike_scales

MODEL = '''
import torch
from torch import nn


def build():
    """A network of the reader's own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    for layer in (model[0], model[2]):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    inputs = torch.randn(256, 32)
    return model, (inputs, inputs[:, :10].argmax(dim=1)), nn.CrossEntropyLoss()
'''

SCRIPT = """
import argparse

import torch
from my_model import build

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
model, (inputs, targets), loss_fn = build()
optimizer = torch.optim.SGD(model.parameters(), lr=parser.parse_args().lr)
for _ in range(12):
    optimizer.zero_grad()
    loss_fn(model(inputs), targets).backward()
    optimizer.step()
"""

RULE = """{"DebugRuleConfiguration": {"RuleConfigurationName": "PoorWeightInitialization", "RuleParameters":
{"rule_to_invoke": "PoorWeightInitialization"}}}"""

NAMES = """
import torch
from my_model import build

import fanin

model, batch, loss_fn = build()
(inputs, targets), batches = batch, [batch]
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)


def build_model():
    return build()[0]


def train():
    for _ in range(12):
        optimizer.zero_grad()
        loss_fn(model(inputs), targets).backward()
        optimizer.step()
"""
"""Of the README's fragments."""


def readme(folder: Path) -> str:
    """A network, a script, a rule's configuration, and the examples of this repository."""
    for name, text in (("my_model.py", MODEL), ("train.py", SCRIPT), ("rule.json", RULE)):
        (folder / name).write_text(text, encoding="utf-8")
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    return NAMES


def schemas(folder: Path) -> str:
    """A network."""
    (folder / "model.py").write_text(MODEL, encoding="utf-8")
    return ""


def debugger(folder: Path) -> str:
    """A trial whose activation inputs differ in variance by a factor of 16."""
    debugger_trial(folder / "debug-output")
    return ""


def debugger_trial(folder: Path) -> Path:
    """Ten steps as SageMaker Debugger writes them."""
    return unlike_scales(folder)


SCENES = {"README.md": readme, "docs/schemas.md": schemas, "docs/guides/debugger.md": debugger}
"""By page."""

IN_BUCKETS = ("README.md", "docs/guides/debugger.md")
"""Pages that name a job at s3://."""
