"""Configuration is composed in one order, and unknown keys are errors."""

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pupujepa.config import ConfigError, compose, from_yaml, to_yaml


@dataclass(frozen=True)
class Inner:
    width: int = 1
    probabilities: tuple[float, ...] = (0.5, 0.25)


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    name: str = "run"
    cache: str | None = None


def test_later_layers_win(tmp_path):
    """defaults < preset < file < command line."""
    file = tmp_path / "mine.yaml"
    file.write_text("inner:\n  width: 3\nname: file\n")
    config = compose(Outer, presets=[{"inner": {"width": 2}, "cache": "p"}], file=file, overrides=["name=line"])
    assert config == Outer(Inner(width=3), name="line", cache="p")


def test_round_trip_through_yaml():
    """from_yaml is the inverse of to_yaml, nested tuples and nulls included."""
    config = Outer(Inner(width=7, probabilities=(0.1, 0.9)), name="x")
    assert from_yaml(Outer, to_yaml(config)) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inner.widht=2", r"unknown key inner\.widht; did you mean inner\.width\?"),
        ("nmae=2", r"unknown key nmae; did you mean name\?"),
        ("zzz=2", "known keys here: cache, inner, name"),
        ("inner.width=wide", r"'wide'.*'inner\.width'"),
        ("name", "has no '='"),
    ],
)
def test_a_wrong_override_is_refused_with_its_remedy(override, message):
    """A misspelt key must never be ignored."""
    with pytest.raises(ConfigError, match=message):
        compose(Outer, overrides=[override])


def test_missing_file_offers_the_nearest(tmp_path):
    """A wrong preset name is answered with the presets that exist."""
    (tmp_path / "demo.yaml").write_text("name: demo\n")
    with pytest.raises(ConfigError, match="did you mean demo"):
        compose(Outer, file=tmp_path / "demp.yaml")


@dataclass(frozen=True)
class Typed:
    text: str = ""
    maybe: str | None = None
    steps: int = 1
    rate: float = 0.5
    flag: bool = False
    rates: tuple[float, ...] = ()
    texts: list[str] = field(default_factory=list)
    corpora: dict[str, Inner] = field(default_factory=dict)
    anything: Any = None


TYPED = [
    "2024_10_01",
    "0123",
    "1e3",
    "on",
    "off",
    "no",
    "1:30",
    "shards/a #1/train",
    "[live] x",
    "[x",
    "@x",
    "%x",
    "a\tb",
]
TYPED += [
    "",
    "'",
    '"a"',
    "null",
    "~",
    "true",
    "a: b",
    "2024-10-01",
    "0x10",
    "1_000",
    ".5",
    "nan",
    "*a",
    "&a",
    "!t",
    "x=y",
]


@pytest.mark.parametrize("text", TYPED)
def test_a_text_key_takes_the_text_as_typed(text):
    """Whatever YAML would make of it; and config.yaml gives the same text back."""
    config = compose(Typed, overrides=[f"text={text}"])
    assert config.text == text
    assert from_yaml(Typed, to_yaml(config)) == config


@pytest.mark.parametrize(
    "text", ["2024_10_01", "0123", "010", "1e3", "1.10", "on", "off", "1:30", "2024-10-01", "true", "0x10"]
)
def test_a_text_key_of_a_file_takes_its_text(text):
    """A name that looks like a number, a time or a truth value is a name."""
    assert from_yaml(Typed, f"text: {text}  # comment\ntexts: [{text}]\n") == Typed(text=text, texts=[text])
    assert from_yaml(Typed, f"maybe: {text}").maybe == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, text) for text in ("010", "1:30", "2024_10_01", "on", "yes", "2024-10-01", "<<", "=", "nan")),
        *(("1e3", 1000.0), ("-.5", -0.5), ("1.", 1.0), ("0x1F", 31), ("0o17", 15), ("+12", 12), ("'12'", "12")),
        *(("~", None), ("", None), ("TRUE", True)),
    ],
)
def test_a_key_of_any_type_follows_yaml_1_2(text, value):
    """The core schema; a number with a leading zero is text, since some readers take it for octal."""
    found = from_yaml(Typed, f"anything: {text}").anything
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=010", r"command line: '010' is not an integer \(key 'steps'\)"),
        ("steps=1_000", r"'1_000' is not an integer \(key 'steps'\)"),
        ("steps=1e3", r"'1e3' is not an integer \(key 'steps'\)"),
        ("steps=" + "9" * 5000, "is not an integer"),
        ("steps=[x", r"'\[x' is not an integer \(key 'steps'\)"),
        ("rate=nan", r"'nan' is not a number \(key 'rate'\)"),
        ("rate=.nan", r"nan is not finite \(key 'rate'\)"),
        ("rate=-.inf", r"-inf is not finite \(key 'rate'\)"),
        ("rate=1e400", r"inf is not finite \(key 'rate'\)"),
        ("rate=1" + "0" * 400, r"inf is not finite \(key 'rate'\)"),
        ("rates=[1, .inf]", r"inf is not finite \(key 'rates\[1\]'\)"),
        ("rates=[x", r"command line: rates:1: '\[x' is not YAML"),
        ("rates=3", r"'3' is not .*\(key 'rates'\)"),
        ("flag=2", r"'2' is not true or false \(key 'flag'\)"),
        ("corpora.a=5", r"corpora\.a=5 is not a section; its keys: probabilities, width"),
        ("corpora.a.widht=5", r"unknown key corpora\.a\.widht; did you mean corpora\.a\.width\?"),
        ("text=${oc.env:HOME}", r"command line: text calls a resolver.*write the value itself"),
        ("text=s3://${oc.env:KEY,x}/a", "text calls a resolver"),
        ("text=${oc.${maybe}:HOME}", "text calls a resolver"),
        ("texts=['${oc.decode:x}']", "texts.* calls a resolver"),
        ("corpora={a: {width: '${oc.env:HOME}'}}", "a.width calls a resolver"),
        ("anything={a: [{b: '${oc.env:HOME}'}]}", r"anything\.a\[0\]\.b calls a resolver"),
        ("text=\\${oc.env:HOME}", "text calls a resolver"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_its_key(override, message):
    """Numbers are finite and decimal, and no value is taken from the environment, whose secrets would be saved."""
    with pytest.raises(ConfigError, match=message):
        compose(Typed, overrides=[override])


def test_a_key_below_one_of_any_type_is_yaml():
    """Settings that are passed on to DeepSpeed have no declared types."""
    overrides = ["anything.a.b=[1, 2e3]", "anything.a.c=010", "anything.a.d=5"]
    assert compose(Typed, overrides=overrides).anything == {"a": {"b": [1, 2000.0], "c": "010", "d": 5}}


def test_a_value_may_refer_to_another_key():
    """`${key}` is that key's value; to refer is not to call a resolver."""
    assert compose(Typed, overrides=["steps=7", "rate=${steps}", "text=${steps}/${.steps}"]).text == "7/7"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"steps: 1\ntext: [x\n", r"mine\.yaml:2: 'text: \[x' is not YAML"),
        (b"steps: 1\ntext: 'x\n", r"mine\.yaml:2: \"text: 'x\" is not YAML"),
        (b"steps: 1\n\ttext: x\n", r"mine\.yaml:2: 'text: x' is not YAML"),
        (b"text: @x\n", r"mine\.yaml:1: 'text: @x' is not YAML"),
        (b"text: %x\n", r"mine\.yaml:1: 'text: %x' is not YAML"),
        (b"steps: 1\ntext: caf\xe9\n", r"mine\.yaml:2: 'text: caf.' is not UTF-8; save the file as UTF-8"),
        (b"steps: 1\ntext: a\x01\n", r"mine\.yaml:2: .* is not YAML \(a control character\)"),
        (b"steps: 1\nrate: 1\nsteps: 2\n", r"mine\.yaml:3: key steps appears twice"),
        (b"corpora:\n  a: {width: 1,\n    width: 2}\n", r"mine\.yaml:3: key corpora\.a\.width appears twice"),
        (b"rate: 1\nsteps: 010\n", r"mine\.yaml:2: '010' is not an integer \(key 'steps'\)"),
        (b"rate: 1\nsteps: on\n", r"mine\.yaml:2: 'on' is not an integer"),
        (b"rates:\n- 1\n- .nan\n", r"mine\.yaml:3: nan is not finite"),
        (b"text:\n", r"mine\.yaml:1: '' is not text \(key 'text'\)"),
        (b"rate: 1\nstpes: 1\n", r"mine\.yaml:2: unknown key stpes; did you mean steps\?"),
        (b"text: !!python/name:os.system x\n", r"mine\.yaml:1: text has the tag .*drop it"),
        (b"? [a]\n: b\n", r"mine\.yaml:1: a key below the top is not text"),
        (b"steps: 1\ntext: a\xe2\x80\xa8b\n", r"mine\.yaml:2: U\+2028 would cut the line"),
        (b'text: "\\UFFFFFFFF"\n', r"mine\.yaml:1: .* is not YAML"),
        (b"a: &a [*a]\n", "nested too deeply"),
        (b"a: " + b"[" * 5000 + b"\n", "nested too deeply"),
        (
            b"a: &a [x, x, x, x]\nb: &b [*a, *a, *a, *a]\nc: &c [*b, *b, *b, *b]\n"
            b"d: &d [*c, *c, *c, *c]\ne: &e [*d, *d, *d, *d]\nf: &f [*e, *e, *e, *e]\n"
            b"g: &g [*f, *f, *f, *f]\nh: &h [*g, *g, *g, *g]\ni: [*h, *h, *h, *h]\n",
            "expand fewer aliases",
        ),
        (b"- a\n", "must hold a mapping"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, content, message):
    """One sentence names the file, the line and what is there."""
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        compose(Typed, file=file)
    assert "\n" not in str(caught.value)


def test_a_saved_configuration_is_named_too(tmp_path):
    """The config.yaml of a run, when it is resumed, exported or listed."""
    (tmp_path / "config.yaml").write_bytes(b"inner:\n  width: 010\n")
    with pytest.raises(ConfigError, match=r"config\.yaml:2: '010' is not an integer \(key 'inner\.width'\)"):
        from_yaml(Outer, tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read now .*mend that"):
        from_yaml(Outer, tmp_path)


def test_an_empty_section_changes_nothing():
    """A file, or a section, whose lines are all comments is empty."""
    assert from_yaml(Outer, "# nothing\n") == from_yaml(Outer, "inner:\n  # width: 3\n") == Outer()


@example("\x85", "a\u2028b\u2029", 1e-7)
@example("???", "\udce9", 1e300)
@example("\\???", "null", 5e-324)
@given(st.text(max_size=20), st.text(max_size=20) | st.none(), st.floats(allow_nan=False, allow_infinity=False))
def test_any_text_survives_the_file(text, maybe, rate):
    """What a run was given is what its config.yaml says when it is resumed."""
    config = Typed(text=text.replace("${", "$"), maybe=maybe and maybe.replace("${", "$"), rate=rate)
    assert from_yaml(Typed, to_yaml(config)) == config


def test_broken_files_end_in_one_sentence(tmp_path):
    """A thousand damaged files: read as something, or refused; never a traceback, never a hang."""
    rng, file = random.Random(0), tmp_path / "mine.yaml"
    whole = to_yaml(Typed("a", "b", 3, 0.1, True, (1.0, 2.0), ["x", "'y'"], {"a": Inner()}, {"k": [1, None]})).encode()
    for _ in range(1000):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(content))
            content[at : at + rng.randint(0, 3)] = rng.choice(
                [bytes([rng.randrange(256)]), b"*a &a", b"{[", b"${oc.env:A}", b"\t", b"!!int "]
            )
        file.write_bytes(content)
        try:
            compose(Typed, file=file)
        except ConfigError as error:
            assert "\n" not in str(error), error
