"""The demonstration's functions compute, and refuse whatever is not theirs."""

import json

import pytest

from minimind_jax.serving.demo_tools import TOOLS, calculate, call, convert_unit, current_time


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("(2 + 3) * 4", "20"),
        ("7 / 2", "3.5"),
        ("-2 ** 2 + 10 % 4 // 1", "-2"),
        ("0.1 + 0.2", "0.3"),
        ("2**64", str(2**64)),
    ],
)
def test_calculate(expression, value):
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("__import__('os').getcwd()", "only numbers"),
        ("x", "only numbers"),
        ("'a' * 9", "only numbers"),
        ("True + 1", "only numbers"),
        ("1 +", "no arithmetic expression"),
        ("", "no arithmetic expression"),
        ("1 / 0", "division by zero"),
        ("9 ** 9 ** 9", "too large"),
        ("2.0 ** 5000", "out of range"),
        ("(-8) ** 0.5", "no real number"),
        ("1" * 201, "more than 200 characters"),
        ("-" * 150 + "1" + "(" * 40, "no arithmetic expression"),
    ],
)
def test_calculate_refuses(expression, message):
    with pytest.raises(ValueError, match=message):
        calculate(expression)


def test_convert_unit():
    assert convert_unit(3, "km", "m") == "3000 m"
    assert convert_unit(98.6, "fahrenheit", "celsius") == "37 celsius"
    assert convert_unit(0, "celsius", "kelvin") == "273.15 kelvin"
    with pytest.raises(ValueError, match="km is a length, kg a mass"):
        convert_unit(3, "km", "kg")
    with pytest.raises(ValueError, match="unknown unit 'parsec'"):
        convert_unit(3, "parsec", "kg")


def test_current_time():
    assert current_time(8).endswith("+08:00")
    with pytest.raises(ValueError, match="between -24 and 24"):
        current_time(99)


def test_calls():
    assert json.loads(call("calculate", '{"expression": "1 + 1"}')) == {"result": "2"}
    assert "error" in json.loads(call("calculate", "{}"))
    assert "error" in json.loads(call("calculate", '{"expression": 3}'))
    assert "error" in json.loads(call("calculate", "[]"))
    assert "error" in json.loads(call("convert_unit", '{"value": "x", "from_unit": "m", "to_unit": "m"}'))
    assert "error" in json.loads(call("convert_unit", '{"value": 1, "from_unit": [], "to_unit": "m"}'))
    assert "error" in json.loads(call("current_time", '{"utc_offset_hours": "8"}'))
    assert "no function 'rm'" in json.loads(call("rm", "{}"))["error"]
    assert [tool["function"]["name"] for tool in TOOLS] == ["calculate", "current_time", "convert_unit"]
