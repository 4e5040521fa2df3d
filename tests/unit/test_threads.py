"""OpenMP's threads are told how to wait before torch loads OpenMP, and a user's own setting stays."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from harness.threads import SPIN_COUNT, limit_spinning

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"GOMP_SPINCOUNT": str(SPIN_COUNT)}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ],
)
def test_a_setting_of_the_users_own_stays(monkeypatch, before, after):
    monkeypatch.setattr(os, "environ", dict(before))
    limit_spinning()
    assert os.environ == after


def test_every_command_limits_spinning_before_a_library_is_loaded():
    """The parser, the first thing after `limit_spinning`, finds the setting there and torch not imported."""
    code = """
import os, sys
import harness.cli
def build_parser(only):
    assert "torch" not in sys.modules
    print(os.environ.get("GOMP_SPINCOUNT"))
    raise SystemExit(0)
harness.cli.build_parser = build_parser
for verb in ("run", "train", "bot"):
    harness.cli.main([verb])
"""
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(SPIN_COUNT)] * 3
