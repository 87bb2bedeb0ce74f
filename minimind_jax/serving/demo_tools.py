"""Three harmless functions that chats offer a model: in the terminal with --tools, and on the web page."""

from __future__ import annotations

import ast
import datetime
import json
import math
import operator
from collections.abc import Callable
from typing import Any

_MAX_POWER = 10_000  # bits of a power's result, about
_MAX_LENGTH = 200  # characters of an expression

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: lambda base, exponent: _power(base, exponent),
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}

# Unit -> (quantity, factor to the base unit, offset in base units).
_UNITS: dict[str, tuple[str, float, float]] = {
    "mm": ("length", 0.001, 0.0),
    "cm": ("length", 0.01, 0.0),
    "m": ("length", 1.0, 0.0),
    "km": ("length", 1000.0, 0.0),
    "inch": ("length", 0.0254, 0.0),
    "foot": ("length", 0.3048, 0.0),
    "mile": ("length", 1609.344, 0.0),
    "g": ("mass", 0.001, 0.0),
    "kg": ("mass", 1.0, 0.0),
    "pound": ("mass", 0.45359237, 0.0),
    "celsius": ("temperature", 1.0, 273.15),
    "fahrenheit": ("temperature", 5 / 9, 459.67 * 5 / 9),
    "kelvin": ("temperature", 1.0, 0.0),
}


def calculate(expression: str) -> str:
    """The value of an arithmetic expression. Raises ValueError where it is anything else, or too large."""
    if len(expression) > _MAX_LENGTH:
        raise ValueError(f"the expression has more than {_MAX_LENGTH} characters")
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except SyntaxError:
        raise ValueError("this is no arithmetic expression") from None
    except (ZeroDivisionError, OverflowError) as e:
        raise ValueError(str(e)) from None
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def current_time(utc_offset_hours: float = 0.0) -> str:
    """The time now, such as 2025-03-01 18:30:00+08:00. Raises ValueError for an offset that no clock has."""
    if not -24 < utc_offset_hours < 24:
        raise ValueError("utc_offset_hours must lie between -24 and 24")
    zone = datetime.timezone(datetime.timedelta(hours=utc_offset_hours))
    return datetime.datetime.now(zone).isoformat(sep=" ", timespec="seconds")


def convert_unit(value: float, from_unit: str, to_unit: str) -> str:
    """A length, mass or temperature in another unit. Raises ValueError for units that do not belong together."""
    for unit in (from_unit, to_unit):
        if unit not in _UNITS:
            raise ValueError(f"unknown unit {unit!r}: there are {', '.join(_UNITS)}")
    (quantity, factor, offset), (other, to_factor, to_offset) = _UNITS[from_unit], _UNITS[to_unit]
    if quantity != other:
        raise ValueError(f"{from_unit} is a {quantity}, {to_unit} a {other}")
    return f"{(value * factor + offset - to_offset) / to_factor:.10g} {to_unit}"


def call(name: str, arguments: str) -> str:
    """Runs a function by its name with a JSON object of arguments; its result, or an error, as a JSON object."""
    function = _FUNCTIONS.get(name)
    if function is None:
        return _result(error=f"no function {name!r}: there are {', '.join(_FUNCTIONS)}")
    try:
        return _result(result=function(**json.loads(arguments)))
    except RecursionError:
        return _result(error="the arguments are nested too deeply")
    except (TypeError, ValueError, AttributeError) as e:  # also arguments of other names and types
        return _result(error=str(e))


def _result(**fields: str) -> str:
    text = json.dumps(fields, ensure_ascii=False)
    return text.encode(errors="replace").decode()  # an error may quote an argument that is no text, a lone surrogate


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_value(node.operand))
    raise ValueError("only numbers, + - * / // % ** and brackets are allowed")


def _power(base: Any, exponent: Any) -> Any:
    if abs(exponent) * math.log2(abs(base) + 2) > _MAX_POWER:
        raise ValueError("the result is too large")
    value = base**exponent
    if isinstance(value, complex):
        raise ValueError("the result is no real number")
    return value


def _signature(name: str, description: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


_FUNCTIONS: dict[str, Callable[..., str]] = {
    "calculate": calculate,
    "current_time": current_time,
    "convert_unit": convert_unit,
}
TOOLS = [
    _signature(
        "calculate",
        "Computes an arithmetic expression",
        {"expression": {"type": "string", "description": "such as (2 + 3) * 4"}},
        ["expression"],
    ),
    _signature(
        "current_time",
        "Tells date and time",
        {"utc_offset_hours": {"type": "number", "description": "time zone, such as 8; 0 is UTC"}},
        [],
    ),
    _signature(
        "convert_unit",
        "Converts a length, mass or temperature",
        {
            "value": {"type": "number"},
            "from_unit": {"type": "string", "description": "such as km, mile, kg, pound, celsius"},
            "to_unit": {"type": "string"},
        },
        ["value", "from_unit", "to_unit"],
    ),
]
