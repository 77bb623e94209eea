"""`tokenzoo calibrate`: what it writes is a preset; what cannot be calibrated is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from tokenzoo.cli import cli
from tokenzoo.zoo.plugins import load_zoo


def test_what_is_found_is_a_preset(tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    arguments = ["--method", "fitprune", "--tasks", "attribute", "--limit", "2", "--budget", "50%", "--preset", "mine"]
    result = CliRunner().invoke(cli, ["calibrate", *arguments, "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0 and f"--registry {out} compare --methods fitprune@mine" in result.output
    method = load_zoo((), (str(out),)).build("fitprune@mine").reducers[0]
    table = method.parameters["delete"]
    assert len(table) == 12 and sum(table) > 0 and method.parameters["tokens"] == 144
    assert "2 questions of attribute" in out.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "fastv"], "'fastv' has nothing to calibrate. Choose from: "),
        (["--method", "vtw+fitprune"], "is several methods"),
        (["--method", "fitprune", "--budget", "36 tokens"], "--budget is a share of the FLOPs"),
        (["--method", "fitprune", "--budget", "much"], "is no budget"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(cli, ["calibrate", *arguments])
    assert result.exit_code and message in str(result.exception)
