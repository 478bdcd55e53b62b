"""Sections are read strictly: everything that is wrong is said at once, with file, section, key and what to do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from settings.errors import ConfigError
from settings.sections import Key, Sections
from settings.values import boolean, integer

KEYS = {"port": Key(integer(1, 9), required=True), "loud": Key(boolean), "old": Key(boolean, unused="nobody asks any more")}


def read(text: str) -> tuple[dict[str, object], Sections]:
    found = Sections(text, "a.toml")
    return found.section("door", KEYS), found


def test_values_come_in_their_final_form_and_missing_ones_do_not_come() -> None:
    values, found = read("[door]\nport = 5\n")
    found.check()
    assert values == {"port": 5}
    assert found.warnings == []


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", ["the key 'port' is missing in [door]; add it"]),
        ("door = 1", ["'door' must be a section, [door]"]),
        ("[[door]]\nport = 5", ["'door' must be a section, [door]"]),
        ("[door]\nport = 0", ["'port' in [door] must be a whole number from 1 to 9"]),
        ("[door]\nport = 5\nportt = 1", ["unknown key 'portt' in [door]; did you mean 'port'?"]),
        ("[door]\nport = 5\nzzz = 1", ["unknown key 'zzz' in [door]; known are 'port', 'loud', 'old'"]),
        (
            "[door]\nloud = 1\nx = 2",
            [
                "'loud' in [door] must be true or false, without quotes",
                "unknown key 'x' in [door]; known are 'port', 'loud', 'old'",
                "the key 'port' is missing in [door]; add it",
            ],
        ),
    ],
)
def test_every_problem_is_noted_with_file_section_and_key(text: str, problems: list[str]) -> None:
    _, found = read(text)
    with pytest.raises(ConfigError) as caught:
        found.check()
    assert caught.value.problems == [f"a.toml: {problem}" for problem in problems]
    assert str(caught.value) == "\n".join(caught.value.problems)


@pytest.mark.parametrize("text", ["[door", "port = " + "[" * 5000, "x = " + "9" * 5000, "a = 1\na = 2"])
def test_what_is_not_toml_is_said(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^a\.toml: not TOML: "):
        Sections(text, "a.toml")


def test_a_key_without_effect_is_read_checked_and_warned_of() -> None:
    values, found = read("[door]\nport = 5\nold = true\n")
    assert values == {"port": 5, "old": True}
    assert found.problems == []
    assert found.warnings == ["a.toml: 'old' in [door] has no effect: nobody asks any more; remove the key"]
    assert read("[door]\nport = 5\nold = 1\n")[1].problems != []


def test_known_sections_are_named_and_others_are_problems() -> None:
    found = Sections("[door]\n[dor]\n[x.y]\n", "a.toml")
    assert found.only(["door", "gate", "x"]) == ["door", "x"]
    assert found.only(["z"], "x") == []
    assert found.problems == [
        "a.toml: unknown section [dor]; did you mean [door]?",
        "a.toml: unknown section [x.y]; known are [x.z]",
    ]


def test_a_section_within_another_has_its_whole_name_in_problems() -> None:
    found = Sections("[upstream.server]\nport = 0\n[up]\nx = 1\n", "a.toml")
    found.section("upstream.server", KEYS)
    found.section("up.x", KEYS)
    assert found.section("none.at.all", {}) == {}
    assert found.problems == [
        "a.toml: 'port' in [upstream.server] must be a whole number from 1 to 9",
        "a.toml: 'up.x' must be a section, [up.x]",
    ]


def test_a_file_without_sections_is_read_like_one() -> None:
    found = Sections("port = 0\nx = 1\n", "a.toml")
    assert found.section("", KEYS) == {}
    assert found.problems == [
        "a.toml: 'port' must be a whole number from 1 to 9",
        "a.toml: unknown key 'x'; known are 'port', 'loud', 'old'",
    ]
    found = Sections("", "a.toml")
    found.section("", KEYS)
    assert found.problems == ["a.toml: the key 'port' is missing; add it"]


def test_a_section_that_may_go_says_so() -> None:
    found = Sections("[door]\n", "a.toml")
    found.section("door", KEYS, optional=True)
    found.problem("that is all")
    assert found.problems == [
        "a.toml: the key 'port' is missing in [door]; add it, or remove the section",
        "a.toml: that is all",
    ]


@given(st.text(max_size=100))
def test_any_text_gives_values_or_problems(text: str) -> None:
    for whole in (text, f"[door]\n{text}", f"[door]\nport = {text}"):
        try:
            values, found = read(whole)
            found.only(["door"])
            found.check()
        except ConfigError as error:
            assert error.problems
        else:
            assert "port" in values
