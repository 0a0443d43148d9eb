# SPDX-License-Identifier: Apache-2.0
"""Configuration: what is misspelt or makes no sense is an error that names its place."""

import os
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ksentinel.config import (
    CollectorConfig,
    Config,
    ControlConfig,
    EnforceConfig,
    IncidentConfig,
    NoiseConfig,
    PrivacyConfig,
    RulesConfig,
    StoreConfig,
)
from ksentinel.errors import ConfigError

WHOLE = """\
collector:
  idle_seconds: 1.5
  ring_megabytes: 64
  sample: 0.5
  calls_a_second: 100
incident:
  agree_seconds: 10
  quiet_seconds: 20.5
  fold_seconds: 30
noise:
  alerts_an_hour: 0
  alerts_a_day: 9
  max_triples: 11
  longest_mute_seconds: 60
rules:
  paths: [/etc/rules, more.yml]
privacy:
  redact: false
store:
  max_alerts: 7
  max_events: 8
  max_suppressed: 9
control:
  socket: /run/k/k.sock
  group: wheel
enforce:
  file: /etc/ksentinel/enforce.yml
  mode: permissive
  on_exit: hold
  hold_seconds: 12
  two_key_seconds: 13
  over_seconds: 14
  proof_seconds: 15
  sentence_seconds: 16
  denials_a_second: 17
"""


@pytest.fixture
def load(tmp_path):
    """Return a function that loads a text, or bytes."""

    def load_text(text):
        path = tmp_path / "k.yml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return Config.load(path)

    return load_text


def test_whole(load):
    """Every key there is."""
    assert load(WHOLE) == Config(
        CollectorConfig(1.5, 64, 0.5, 100),
        IncidentConfig(10.0, 20.5, 30.0),
        NoiseConfig(0, 9, 11, 60.0),
        RulesConfig(("/etc/rules", "more.yml")),
        PrivacyConfig(redact=False),
        StoreConfig(7, 8, 9),
        ControlConfig("/run/k/k.sock", "wheel"),
        EnforceConfig("/etc/ksentinel/enforce.yml", "permissive", "hold", 12.0, 13.0, 14.0, 15.0, 16.0, 17),
    )


@pytest.mark.parametrize("text", ["off", '"off"', "false"])
def test_off(load, text):
    """To YAML a plain off is a truth value; here it is what it says."""
    assert load(f"enforce: {{mode: {text}}}").enforce.mode == "off"


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "---\n", "null"])
def test_defaults(load, text):
    """Nothing said is everything by default."""
    assert load(text) == Config()


def test_part(load):
    """What isn't named keeps its default."""
    assert load("incident: {agree_seconds: 5}").incident == IncidentConfig(agree_seconds=5.0)


@pytest.mark.parametrize(("sample", "calls"), [(0, 0), (1, (1 << 32) - 1)])
def test_extremes(load, sample, calls):
    """Everything or nothing of what is usual; no limit, or none that is ever met."""
    collector = load(f"collector: {{sample: {sample}, calls_a_second: {calls}}}").collector

    assert (collector.sample, collector.calls_a_second) == (sample, calls)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "incidents: {}",
            r"k\.yml:1:1: has no section incidents \(it has collector, incident, noise, rules, privacy, store, control, enforce\)",
        ),
        (
            "incident:\n  agree_second: 5",
            r"k\.yml:2:3: \[incident\] has no agree_second \(it has agree_seconds,",
        ),
        (
            "incident: {agree_seconds: soon}",
            r"k\.yml:1:12: \[incident\] agree_seconds: Expected `float`, got `str`",
        ),
        ("incident: {agree_seconds: true}", r"agree_seconds: Expected `float`, got `bool`"),
        ("store: {max_alerts: 0}", r"k\.yml:1:9: \[store\] max_alerts is 0 \(say a number from 1"),
        ("store: {max_events: 1000000001}", r"k\.yml:1:9: \[store\] max_events is 1000000001 \(say"),
        ("store: {max_events: 1.5}", r"max_events: Expected `int`, got `float`"),
        ("incident: {agree_seconds: 0}", r"k\.yml:1:12: \[incident\] agree_seconds is 0"),
        ("incident: {agree_seconds: -1}", "agree_seconds is -1"),
        ("noise: {alerts_an_hour: -1}", r"k\.yml:1:9: \[noise\] alerts_an_hour is -1 \(say a number up to"),
        ("noise: {alerts_a_day: 1000000001}", r"\[noise\] alerts_a_day is 1000000001"),
        ("noise: {max_triples: 0}", r"\[noise\] max_triples is 0"),
        ("incident: {agree_seconds: .nan}", "agree_seconds is nan"),
        ("incident: {agree_seconds: .inf}", "agree_seconds is inf"),
        ("incident: {agree_seconds: 1.0e+300}", r"agree_seconds is 1e\+300"),
        ("incident: [1]", r"k\.yml:1:1: \[incident\] Expected `object`, got `array`"),
        ("incident: 5", r"\[incident\] Expected `object`, got `int`"),
        (
            "collector: {ring_megabytes: 3}",
            r"k\.yml:1:13: \[collector\] ring_megabytes is 3, no power of two",
        ),
        ("collector: {ring_megabytes: 0}", "no power of two"),
        ("collector: {ring_megabytes: -4}", "no power of two"),
        ("collector: {ring_megabytes: 1073741824}", "no power of two up to 1024"),
        ("collector: {ring_megabytes: 16.5}", "Expected `int`, got `float`"),
        (
            "collector:\n  sample: 1.01",
            r"k\.yml:2:3: \[collector\] sample is 1\.01 \(say a share from 0 to 1",
        ),
        ("collector: {sample: -0.1}", r"sample is -0\.1"),
        ("collector: {sample: .nan}", "sample is nan"),
        ("collector: {sample: all}", "sample: Expected `float`, got `str`"),
        (
            "collector: {calls_a_second: -1}",
            r"k\.yml:1:13: \[collector\] calls_a_second is -1 \(say 0 for no limit, or 5000",
        ),
        (
            "enforce: {mode: enforced}",
            r"k\.yml:1:11: \[enforce\] mode is 'enforced' \(say off, permissive, enforce",
        ),
        ("enforce: {mode: true}", "mode: Expected `str`, got `bool`"),
        ("enforce: {on_exit: close}", r"\[enforce\] on_exit is 'close' \(say open, hold"),
        ("enforce: {denials_a_second: -1}", r"\[enforce\] denials_a_second is -1"),
        ("enforce: {hold_seconds: 0}", r"\[enforce\] hold_seconds is 0"),
        ("enforce: {hold_seconds: 4.9}", r"\[enforce\] hold_seconds is 4.9: .* \(say 5 or more\)"),
        ("enforce: {two_key_seconds: 1}", r"\[enforce\] two_key_seconds is 1: .* \(say 5 or more\)"),
        ("enforce: [1]", "enforce"),
        ("collector: {calls_a_second: 4294967296}", "calls_a_second is 4294967296"),
        ("collector: {calls_a_second: 0.5}", "calls_a_second: Expected `int`, got `float`"),
        ("rules: {paths: /etc/rules}", "paths: Expected `array`, got `str`"),
        ("rules: {paths: [5]}", "paths: Expected `str`, got `int`"),
        ("privacy: {redact: 'no'}", "redact: Expected `bool`, got `str`"),
        (
            "privacy: {redact: true}\nprivacy: {}",
            r"k\.yml:2:1: privacy stands here a second time, first in line 1",
        ),
        ("privacy:\n  redact: true\n  redact: false", r"k\.yml:3:3: redact stands here a second time"),
        ("5: 6", r"has no section 5"),
        ("[]", "is no mapping of sections"),
        ("false", "is no mapping of sections"),
        ("0", "is no mapping of sections"),
        ("''", "is no mapping of sections"),
        ("text", "is no mapping of sections"),
    ],
)
def test_wrong(load, text, says):
    """Unknown names, wrong types, and values that make no sense."""
    with pytest.raises(ConfigError, match=says):
        load(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("incident: {", r"k\.yml:1:\d+: is no YAML: "),
        ("incident:\n\tagree_seconds: 5", r"k\.yml:2:1: is no YAML: "),
        ("a: b\n c: d", r"k\.yml:2:3: is no YAML: "),
        ("? [a]\n: b", r"k\.yml.*(is no YAML|has no section)"),
        ("? {a: b}\n: c", r"k\.yml.*(is no YAML|has no section)"),
        (
            "a: !!python/object/apply:os.system [id]",
            r"k\.yml:1:4: is no YAML: could not determine a constructor",
        ),
        ("a: 2001-99-99", r"k\.yml: is no YAML: month must be"),
        ("a: !!int x", r"k\.yml: is no YAML: "),
        ("--- {}\n--- {}", r"k\.yml:2:1: is no YAML: "),
        ("a: \0", r"k\.yml: is no YAML: unacceptable character"),
        (b"incident: \xff", r"k\.yml: is no YAML: .*can't decode byte 0xff in position 10"),
        (b"\xff\xfea\0", r"k\.yml: is no YAML: .*can't decode"),
        ("[" * 50000, r"k\.yml:1:9: nests deeper than 8 levels"),
        ("a: " + "9" * 5000, r"k\.yml: is no YAML: "),
        ("#" * ((1 << 16) + 1), r"k\.yml: is larger than 65536 bytes"),
    ],
)
def test_no_yaml(load, text, says):
    """What is no YAML says where, in one line."""
    with pytest.raises(ConfigError, match=says) as caught:
        load(text)

    assert str(caught.value).isprintable()


BOMBS = {
    "list": "a0: &a0 [x, x]\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}, *a{n}]\n" for n in range(40)),
    "merge": "a0: &a0 {x: y}\n"
    + "".join(f"a{n + 1}: &a{n + 1} {{<<: [{', '.join([f'*a{n}'] * 9)}]}}\n" for n in range(20)),
    "key": "a0: &a0 [x, x]\n"
    + "".join(f"a{n + 1}: &a{n + 1} [*a{n}, *a{n}]\n" for n in range(40))
    + "? *a40\n: x\n",
    "itself": "a: &a [*a]",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_bomb(load, bomb):
    """Aliases that would make a billion values are refused before they do."""
    begun = time.process_time()
    with pytest.raises(ConfigError, match=r"k\.yml:\d+:\d+: \*a\d*: aliases have no use here"):
        load(bomb)

    assert time.process_time() - begun < 1


@pytest.mark.parametrize("kind", ["missing", "directory", "unreadable"])
def test_not_to_be_read(tmp_path, kind):
    """The error says why, and names the file once."""
    path = tmp_path / "k.yml"
    if kind == "directory":
        path.mkdir()
    if kind == "unreadable":
        path.symlink_to(path)
    with pytest.raises(ConfigError, match=r"can't be read: [A-Z][a-z ]+") as caught:
        Config.load(path)

    assert (caught.value.exit_status, str(caught.value).count(os.fspath(path))) == (2, 1)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary()
    | st.text(st.sampled_from("ab{}[]:,-&*!? \n\t#'\"|>%@`0.~<")).map(str.encode)
    | st.lists(st.sampled_from([*WHOLE.splitlines(keepends=True), "  a: b\n", "x"]))
    .map("".join)
    .map(str.encode)
)
def test_any_file(load, text):
    """Any bytes are a configuration or a ConfigError."""
    said = "k.yml: none"
    try:
        load(text)
    except ConfigError as error:
        said = str(error)

    assert "k.yml:" in said
