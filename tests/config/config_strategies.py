"""Random valid configurations, read off the models so that a new key is covered without a word here."""

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from tpdist.config.parts import Part

# what means more than text to some reader of YAML, beside random text
TRICKY = [
    "yes",
    "no",
    "null",
    "1e-3",
    "0x1F",
    "010",
    "1:30",
    "2024-01-01",
    "true",
    "a: b",
    "# a",
    "- a",
    " a ",
    "'",
    "~",
]
TEXT = st.sampled_from(TRICKY) | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1)
NAME = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
LARGEST = 2**63 - 1
# the few keys whose values have to fit other keys
FIXED: dict[str, st.SearchStrategy[Any]] = {
    "cell": st.sampled_from(["elman", "gru", "mrnn"]),
    "activation": st.none(),
    "tied": st.just(False),
    "closing": st.just(False),
    "edge_free": st.just(False),
    "mesh": st.none(),
    "workers": st.just(1),
    "relaxation": st.integers(1, LARGEST),
    "loss_on": st.just("prediction"),
    "penalty": st.sampled_from(["l2", "l2+kl"]),
    "weight": st.floats(1e-6, 1e6),
    "run.name": NAME,
    "visit": st.none(),
    "method.name": st.sampled_from(["bptt", "pm", "admm", "alm", "costate"]),
    "sweep": st.none()
    | st.fixed_dictionaries(
        {},
        optional={
            "grid": st.dictionaries(st.sampled_from(["method.h_steps", "run.name"]), st.lists(TEXT, min_size=1)),
            "seeds": st.lists(st.integers(0, 9), min_size=1),
        },
    ),
}


def values(annotation: Any, metadata: tuple[Any, ...] = ()) -> st.SearchStrategy[Any]:
    """Values, as YAML would give them, that a field of this type takes."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [m for more in arguments[1:] for m in (more.metadata if isinstance(more, FieldInfo) else [more])]
        return values(arguments[0], (*metadata, *inner))
    if origin in (Union, types.UnionType):
        return st.one_of([values(option, metadata) for option in arguments])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple and arguments[-1] is ...:
        return st.lists(values(arguments[0]), max_size=3)
    if origin is tuple:
        return st.tuples(*map(values, arguments)).map(list)
    if origin is dict:
        return st.dictionaries(TEXT, values(arguments[1]), max_size=3)
    if annotation is type(None):
        return st.none()
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return parts(annotation)
    low: Any = next((m.ge for m in metadata if isinstance(m, Ge)), None)
    above = next((m.gt for m in metadata if isinstance(m, Gt)), None)
    below: Any = next((m.lt for m in metadata if isinstance(m, Lt)), None)
    top: Any = next((m.le for m in metadata if isinstance(m, Le)), None)
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        return st.integers(-LARGEST if low is None else low, LARGEST if top is None else top)
    if annotation is float:
        return st.floats(
            low if above is None else above,
            top if below is None else below,
            exclude_min=above is not None,
            exclude_max=below is not None,
            allow_nan=False,
            allow_infinity=False,
        )
    assert annotation is str, annotation
    return TEXT if any(isinstance(m, MinLen) for m in metadata) else st.text(max_size=5)


def parts(part: type[Part]) -> st.SearchStrategy[dict[str, Any]]:
    """Mappings with any of the keys of `part`."""
    keys: dict[str, Any] = {}
    for name, field in part.model_fields.items():
        dotted = f"{part.__name__.lower()}.{name}"
        fixed = FIXED.get(dotted, FIXED.get(name))
        keys[name] = values(field.annotation, tuple(field.metadata)) if fixed is None else fixed
    return st.fixed_dictionaries({}, optional=keys)
