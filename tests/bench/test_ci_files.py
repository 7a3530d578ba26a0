"""The GitHub Action, the workflow and the GitLab job: valid YAML, shell that does what it says."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from flashvl_bench.gate import cli as gate

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

ROOT = Path(__file__).resolve().parents[2]
ACTION = ROOT / ".github" / "actions" / "gate" / "action.yml"
WORKFLOW = ROOT / ".github" / "workflows" / "gate.yml"
GITLAB = ROOT / "docs" / "ci" / "gitlab-ci.yml"


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def shells() -> list[tuple[str, str]]:
    """Every piece of shell, with where it stands."""
    found = []
    for path, steps in (
        (ACTION, load(ACTION)["runs"]["steps"]),
        (WORKFLOW, load(WORKFLOW)["jobs"]["gate"]["steps"]),
    ):
        found += [(f"{path.name}: {s['name']}", s["run"]) for s in steps if "run" in s]
    job = load(GITLAB)["gate"]
    return [*found, ("gitlab", "\n".join([*job["before_script"], *job["script"]]))]


@pytest.mark.parametrize(("where", "text"), shells(), ids=[where for where, _ in shells()])
def test_shell_parses_and_takes_no_expression(where: str, text: str) -> None:
    """What GitHub would paste into a script is code that a pull request could write."""
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "${{" not in text


def test_the_workflow_gives_the_action_inputs_it_has() -> None:
    inputs = load(ACTION)["inputs"]
    assert all(set(each) == {"description", "default"} for each in inputs.values())
    steps = [s for s in load(WORKFLOW)["jobs"]["gate"]["steps"] if "gate" in s.get("uses", "")]
    assert [ROOT / step["uses"] for step in steps] == [ACTION.parent, ACTION.parent]
    assert all(set(step.get("with", {})) <= set(inputs) for step in steps)


def test_every_input_reaches_the_shell_and_every_variable_comes_from_one() -> None:
    action = load(ACTION)
    environment: dict[str, str] = {}
    for step in action["runs"]["steps"]:
        used = set(re.findall(r"\$\{?([A-Z_]+)", step["run"])) - {
            "RUNNER_TEMP", "GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT",
        }  # fmt: skip
        assert used == set(step["env"])
        environment |= step["env"]
    assert {re.findall(r"inputs\.(\w+)", value)[0] for value in environment.values()} == set(
        action["inputs"]
    )


@pytest.mark.parametrize("status", [0, 1, 2])
def test_the_gate_step_passes_on_arguments_and_status(status: int, tmp_path: Path) -> None:
    """With a flashvl-bench that writes down what it was called with."""
    (step,) = [s for s in load(ACTION)["runs"]["steps"] if s.get("id") == "gate"]
    program = tmp_path / "flashvl-bench"
    program.write_text(
        f'#!/bin/bash\nprintf "%s\\n" "$@" > {tmp_path}/called\necho summary >> {tmp_path}/'
        f"flashvl-gate.md\nexit {status}\n"
    )
    program.chmod(0o755)
    given = {
        "BASE": "main; rm -rf x", "HEAD_REF": "HEAD", "REPOSITORY": "a b", "CASES": "cases.py",
        "BUILD": "make -C 'x y'", "IMPORT_PATH": ".", "LEAST": "0.1", "STATIC": "true",
        "MORE": "--samples 2",
    }  # fmt: skip
    environment = {
        **given, "PATH": f"{tmp_path}:{os.environ['PATH']}", "RUNNER_TEMP": str(tmp_path),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "steps.md"),
        "GITHUB_OUTPUT": str(tmp_path / "output"),
    }  # fmt: skip
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert (tmp_path / "called").read_text().splitlines() == [
        "gate", "--base", "main; rm -rf x", "--head", "HEAD", "--repository", "a b", "--path", ".",
        "--markdown", f"{tmp_path}/flashvl-gate.md", "--cases", "cases.py", "--build",
        "make -C 'x y'", "--least", "0.1", "--static", "--samples", "2",
    ]  # fmt: skip
    assert (tmp_path / "steps.md").read_text() == "summary\n"
    assert (tmp_path / "output").read_text() == f"summary={tmp_path}/flashvl-gate.md\n"


def test_the_command_has_the_options_the_files_use() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    gate.arguments(commands)
    options = {o for action in commands.choices["gate"]._actions for o in action.option_strings}
    for path in (ACTION, GITLAB):
        used = set(re.findall(r"(?<![\w-])(--[a-z-]+)", path.read_text()))
        assert used - {"--quiet", "--index-url"} <= options
