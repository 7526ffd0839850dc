"""Continuous integration: the hosted workflow and `.ci/run` call targets that the Makefile has."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def targets():
    """The targets of the Makefile that are meant to be called."""
    return set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split())


def called(text):
    return re.findall(r"\bmake ([a-z-]+)", text)


def test_the_workflow_calls_what_the_makefile_has():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    steps = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    words = [name for step in steps for name in called(step)]
    assert set(words) == {"lint", "docs", "test-all"}
    assert set(words) <= targets()
    assert jobs["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]


def test_every_named_target_has_a_rule():
    rules = {name for line in re.findall(r"^([a-z -]+):(?!=)", MAKEFILE, re.MULTILINE) for name in line.split()}
    assert targets() <= rules


def test_the_checks_of_a_submission_are_all_tests():
    assert called((ROOT / ".ci/run").read_text(encoding="utf-8")) == ["test-all"]


def test_slow_tests_are_left_out_by_make_test_alone():
    assert re.search(r'^test: SELECT := -m "not slow"$', MAKEFILE, re.MULTILINE)
    assert re.search(r'^test-all: SELECT := -m "slow or not slow"$', MAKEFILE, re.MULTILINE)
