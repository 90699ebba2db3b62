"""Prints the fields of the Bot API's methods, as aiogram declares them; see `bot_api_schema`."""

import inspect
import json
import types
from typing import Annotated, Any, Union, get_args, get_origin

from aiogram import methods
from aiogram.methods.base import TelegramMethod
from aiogram.types.base import TelegramObject
from pydantic import BaseModel

DEEPEST = 4


def shape(kind: Any, depth: int) -> Any:
    """A type as JSON."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return shape(inside[0], depth)
    if origin in (Union, types.UnionType):
        shapes = [shape(one, depth) for one in inside if one is not type(None)]
        plain = [one for one in shapes if not isinstance(one, str) or "Default" not in one]
        objects = [one for one in plain if isinstance(one, dict)]
        if objects:  # of a choice of objects, the fields of all
            return {name: field for one in objects for name, field in one.items()}
        lists = [one for one in plain if isinstance(one, list)]
        return lists[0] if lists else " or ".join(sorted({str(one) for one in plain}))
    if origin is list:
        return [shape(inside[0], depth)]
    if inspect.isclass(kind) and issubclass(kind, TelegramObject) and depth < DEEPEST:
        return fields(kind, depth + 1)
    return getattr(kind, "__name__", str(kind))


def fields(model: type[BaseModel], depth: int = 0) -> dict[str, Any]:
    """The fields of a method or an object, by the names that the Bot API gives them."""
    return {field.alias or name: shape(field.annotation, depth) for name, field in model.model_fields.items()}


if __name__ == "__main__":
    classes = [getattr(methods, name) for name in methods.__all__]
    found = [
        one for one in classes if inspect.isclass(one) and issubclass(one, TelegramMethod) and one is not TelegramMethod
    ]
    print(json.dumps({one.__api_method__: fields(one) for one in found}))
