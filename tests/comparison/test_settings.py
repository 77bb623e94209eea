"""Settings from options and from YAML; every mistake names its place."""

from __future__ import annotations

import pytest

from tokenzoo import UserError
from tokenzoo.comparison.amounts import Amount
from tokenzoo.comparison.settings import Settings, from_options, read_config, write_config


def config(tmp_path, text):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return path


def test_a_saved_config_is_read_back(tmp_path):
    settings = from_options({"methods": "aim,fastv:K=3,R=0.75,a+b", "retention": "25%,0.5", "price": ["vicuna-7b@a100"]})
    assert settings.methods == ["aim", "fastv:K=3,R=0.75", "a+b"]
    write_config(settings, tmp_path / "saved.yaml")
    assert read_config(tmp_path / "saved.yaml", {}) == settings


def test_options_override_the_file(tmp_path):
    path = config(tmp_path, "methods: aim\nlimit: 7\nretention: [25%, 50%]\n")
    settings = read_config(path, {"limit": "3"})
    assert settings.limit == 3 and settings.retention == [0.25, 0.5]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("methods: aim\nlimits: 3\n", ":2: limits: there is no such key here; choose from methods, model"),
        ("methods: aim\nretention:\n  - 25%\n  - 120%\n", ":4: retention.1: '120%' is not above 0"),
        ("methods: [aim\nlimit: 3\n", ":2: did not find expected ',' or ']'"),
        ("- aim\n", ":1: a config is a mapping"),
        ("model: embedded\n", ":1: methods: field required"),
        ("methods: aim\n\nlimit: none\n", ":3: limit: "),
        ("methods: aim\nbudget: lots\n", ":2: budget.0: 'lots' is no budget"),
        ("methods: []\n", ":1: methods: "),
        ("methods: aim\nlimit: 3\n\nlimit: 4\n", ":4: 'limit' stands here a second time (first in line 2)"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path, text, says):
    path = config(tmp_path, text)
    with pytest.raises(UserError) as error:
        read_config(path, {})
    assert f"{path}{says}" in str(error.value)


@pytest.mark.parametrize(
    ("text", "quantity", "value", "share", "hardware"),
    [
        ("33%", "flops", 0.33, True, ""),
        ("2.5T", "flops", 2.5e12, False, ""),
        ("36 tokens", "tokens", 36, False, ""),
        ("25%tokens", "tokens", 0.25, True, ""),
        ("20ms@a100", "ms", 20, False, "a100"),
    ],
)
def test_budgets(text, quantity, value, share, hardware):
    found = Amount.parse(text)
    assert (found.quantity, found.value, found.share, found.hardware) == (quantity, value, share, hardware)
    assert Settings(methods="aim", budget=text).amounts == [found]


WRONG = ["nan", "inf", "1e999", "-1", "0", "0%", "101%", "1e9 tokens", "1e30", "", "20ms", "20%ms@a100", "9" * 5000, "T", "1e5e5"]


@pytest.mark.parametrize("text", WRONG)
def test_budgets_that_cannot_be(text):
    with pytest.raises(UserError, match="--budget"):
        from_options({"methods": "aim", "budget": text})


@pytest.mark.parametrize("text", ["", "nan", "0", "1e999", "-25%", "lots", ",", "25%,,nan"])
def test_retentions_that_cannot_be(text):
    with pytest.raises(UserError, match="--retention"):
        from_options({"methods": "aim", "retention": text})
