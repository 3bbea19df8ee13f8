"""Rule configurations of SageMaker Debugger: what it takes is taken, and what has no effect here is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fanin.cli import main
from fanin.config import Action, configurations, load_configuration, parse_actions
from fanin.errors import FaninError, RuleParameterError, UsageError
from stores.smdebug_writer import TrialWriter

DOCUMENTED: dict[str, Any] = {
    "DebugRuleConfiguration": {
        "RuleConfigurationName": "PoorWeightInitialization",
        "RuleParameters": {
            "rule_to_invoke": "PoorWeightInitialization",
            "activation_inputs_regex": ".*relu_input|.*ReLU_input",
            "threshold": "10.0",
            "distribution_range": "0.001",
            "patience": "5",
            "steps": "10",
        },
    },
    "CollectionConfigurations": [
        {
            "CollectionName": "custom_relu_collection",
            "CollectionParameters": {"include_regex": ".*relu_input|.*ReLU_input", "save_interval": "500"},
        }
    ],
}
"""The example of the documentation."""


def with_parameters(**parameters: str) -> dict[str, Any]:
    """A configuration with these parameters besides."""
    every = {"rule_to_invoke": "PoorWeightInitialization"} | parameters
    return {"DebugRuleConfiguration": {"RuleParameters": every}}


def one(content: object) -> Any:
    """The only rule of a configuration."""
    (found,) = configurations(content)
    return found


def test_the_documented_example() -> None:
    found = one(DOCUMENTED)
    assert (found.name, found.rule.threshold, found.rule.distribution_range) == (
        "PoorWeightInitialization",
        10.0,
        0.001,
    )
    assert (found.rule.patience, found.rule.steps) == (5, 10)
    assert [pattern.pattern for pattern in found.rule.patterns] == [".*relu_input|.*ReLU_input"]
    assert found.collections == {
        "custom_relu_collection": DOCUMENTED["CollectionConfigurations"][0]["CollectionParameters"]
    }
    assert found.notes == (
        "collection custom_relu_collection saves every 500 steps: of the first ones the rule then sees only step 0",
    )


@pytest.mark.parametrize(
    "content",
    [
        DOCUMENTED,
        DOCUMENTED["DebugRuleConfiguration"],
        {"DebugRuleConfigurations": [DOCUMENTED["DebugRuleConfiguration"]]},
        [DOCUMENTED],
        {
            "TrainingJobName": "job",
            "DebugHookConfig": {"CollectionConfigurations": DOCUMENTED["CollectionConfigurations"]},
            "DebugRuleConfigurations": [DOCUMENTED["DebugRuleConfiguration"]],
        },
    ],
)
def test_the_shapes_in_which_it_comes(content: object) -> None:
    assert one(content).rule.threshold == 10.0


def test_defaults_are_the_documented_ones() -> None:
    rule = one(with_parameters()).rule
    assert (rule.threshold, rule.distribution_range, rule.patience, rule.steps) == (10.0, 0.001, 5, 10)


def test_several_rules() -> None:
    content = [with_parameters(threshold="1"), with_parameters(threshold="2")]
    assert [found.rule.threshold for found in configurations(content)] == [1.0, 2.0]


def test_other_rules_of_a_job_are_left_out_and_named() -> None:
    content = [with_parameters(rule_to_invoke="VanishingGradient"), with_parameters(threshold="2")]
    found = one(content)
    assert (found.rule.threshold, found.notes) == (2.0, ("rule VanishingGradient: not in fanin, left out",))
    with pytest.raises(UsageError, match="is not in fanin"):
        list(configurations(content[:1] * 2))


def test_the_collection_that_the_original_ships_malformed() -> None:
    content = DOCUMENTED | {
        "CollectionConfigurations": [{"include_regex": ".*relu_input", "save_interval": "500"}]
    }
    assert list(one(content).collections.values()) == [
        {"include_regex": ".*relu_input", "save_interval": "500"}
    ]


STOP = {"name": "StopTraining", "parameters": {"training_job_prefix": "My-Job"}}
MAIL = {"name": "email", "parameters": {"endpoint": "A.B@c.org"}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        (json.dumps(STOP), (Action("stoptraining", {"training_job_prefix": "My-Job"}),)),
        (
            json.dumps([STOP, MAIL]),
            (
                Action("stoptraining", {"training_job_prefix": "My-Job"}),
                Action("email", {"endpoint": "A.B@c.org"}),
            ),
        ),
        (MAIL, (Action("email", {"endpoint": "A.B@c.org"}),)),
        ('{"name": "sms"}', (Action("sms"),)),
    ],
)
def test_actions_keep_their_parameters_as_they_are(text: Any, expected: tuple[Action, ...]) -> None:
    """The original makes them lower case, so that a job with a capital letter is never stopped."""
    assert parse_actions(text) == expected


def test_actions_of_a_configuration() -> None:
    assert one(with_parameters(action_json=json.dumps(STOP))).actions[0].name == "stoptraining"


def test_what_the_platform_sets_is_said_to_have_no_effect() -> None:
    found = one(with_parameters(base_trial="s3://x", start_step="3", other_trial_0="y"))
    assert found.notes[0].startswith("base_trial, start_step, other_trial_0: not used")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "this is no rule configuration"),
        ([], "this is no rule configuration"),
        (7, "this is no rule configuration"),
        ([[DOCUMENTED]], "this is no rule configuration"),
        ({"DebugRuleConfiguration": 7}, "this is no rule configuration"),
        ({"DebugRuleConfigurations": []}, "this is no rule configuration"),
        ({"DebugRuleConfiguration": {}}, "has no RuleParameters"),
        ({"DebugRuleConfiguration": {"a": 1}}, "has no RuleParameters"),
        ({"RuleParameters": {}}, "this rule of SageMaker Debugger is not in fanin"),
        (with_parameters(rule_to_invoke="VanishingGradient"), "is not in fanin"),
        (with_parameters(rule_to_invoke="Mine", source_s3_uri="s3://x"), "is not in fanin"),
        (with_parameters(treshold="3"), "has no parameter 'treshold'"),
        (with_parameters(threshold="ten"), "cannot use this threshold"),
        (with_parameters(action_json="{"), "action_json holds no action"),
        (with_parameters(action_json='{"name": "explode"}'), "action_json holds no action"),
        (with_parameters(action_json='{"name": "sms", "parameters": 3}'), "action_json holds no action"),
        (DOCUMENTED | {"CollectionConfigurations": 7}, "CollectionConfigurations is no list"),
        (DOCUMENTED | {"CollectionConfigurations": [7]}, "a collection configuration is no object"),
    ],
)
def test_what_is_no_configuration_is_refused(content: object, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        list(configurations(content))
    assert said in caught.value.what
    assert caught.value.next_step or caught.value.expected


def test_a_slip_of_the_pen_is_put_right() -> None:
    with pytest.raises(RuleParameterError) as caught:
        one(with_parameters(treshold="3"))
    assert caught.value.next_step == "did you mean threshold?"


def test_rules_of_ones_own_are_pointed_to_where_they_run() -> None:
    with pytest.raises(UsageError) as caught:
        one(with_parameters(rule_to_invoke="Mine", source_s3_uri="s3://x"))
    assert "fanin.sagemaker.invoke_rule" in caught.value.next_step


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b"\xff", b" " * (2**20 + 1)])
def test_a_file_that_cannot_be_read_is_named(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rule.json"
    path.write_bytes(text)
    with pytest.raises(FaninError, match="cannot be read") as caught:
        load_configuration(path)
    assert caught.value.where == str(path)


# ── on the command line ─────────────────────────────────────────────────────────────────────────────────────────


def fanin(*arguments: str) -> Result:
    """Run the command line."""
    return CliRunner().invoke(main, arguments)


@pytest.fixture
def trial(tmp_path: Path) -> str:
    """A trial whose variances differ 16-fold."""
    rng = np.random.default_rng(0)
    writer = TrialWriter(tmp_path / "trial").collections()
    for step in range(10):
        tensors = {
            "relu_input_0": rng.normal(size=1000),
            "fc2.relu_input_0": 4 * rng.normal(size=1000),
            "gradient/Net_fc.weight": rng.normal(size=100),
            "loss_output_0": 1.0 - 0.05 * step,
        }
        writer.step(step, tensors)
    return str(writer.end().folder)


@pytest.mark.parametrize(("threshold", "code"), [("10.0", 1), ("20", 0)])
def test_judge_takes_a_configuration(threshold: str, code: int, trial: str, tmp_path: Path) -> None:
    path = tmp_path / "rule.json"
    path.write_text(json.dumps(with_parameters(threshold=threshold, action_json=json.dumps(STOP))))
    result = fanin("judge", trial, "--config", str(path))
    assert result.exit_code == code, result.output
    assert "actions stoptraining: not run by judge" in result.stderr
    assert ("FAN001" in result.stdout) is bool(code)


def test_a_configuration_names_the_rules_by_itself(trial: str, tmp_path: Path) -> None:
    path = tmp_path / "rule.json"
    path.write_text(json.dumps(DOCUMENTED))
    result = fanin("judge", trial, "--config", str(path), "--rule", "FAN001")
    assert (result.exit_code, "leave --rule out" in result.stderr) == (2, True)


def test_one_rule_is_asked_at_a_time(trial: str, tmp_path: Path) -> None:
    path = tmp_path / "rule.json"
    path.write_text(json.dumps([with_parameters(), with_parameters()]))
    result = fanin("judge", trial, "--config", str(path))
    assert (result.exit_code, "give one at a time" in result.stderr) == (2, True)


def test_a_configuration_that_is_not_there(trial: str) -> None:
    result = fanin("judge", trial, "--config", "nothing.json")
    assert (result.exit_code, "cannot be read" in result.stderr) == (2, True)
