"""`check_arguments`: what it refuses, in which words, and what it lets through."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale import cells, layers, models, ssm
from rnnscale._checks import FloatDType, Fraction, NonEmpty, Range, Size, check_arguments
from rnnscale.cells import Cell, ElmanRNNCell

type Kind = Literal["one", "other"]

KEY = jax.random.key(0)


class Owner:
    @check_arguments
    def __init__(
        self,
        size: Size = 1,
        *,
        leak: Fraction | None = None,
        kind: Kind = "one",
        flag: bool = False,
        pair: Range[float] | float = 0.0,
        sizes: NonEmpty[Size] = (1,),
        cells: Sequence[Cell] = (),
        function: Callable[[Array], Array] = jnp.tanh,
        xs: Float[Array, "*batch 2 3"] | None = None,
        dtype: FloatDType = jnp.float32,
        key: PRNGKeyArray = KEY,
    ):
        self.given = size, sizes


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 0}, "size must be at least 1; got 0"),
        ({"size": True}, "size must be an integer; got True"),
        ({"size": 2.0}, "size must be an integer; got 2.0"),
        ({"size": "3"}, "size must be an integer; got '3'"),
        ({"leak": float("nan")}, "leak must be in (0, 1]; got nan"),
        ({"leak": "x"}, "leak must be a number or None; got 'x'"),
        (
            {"leak": jnp.ones(2)},
            "leak must be a number or None; got an array float32 of shape (2,)",
        ),
        ({"kind": "third"}, "kind must be one of one, other; got 'third'"),
        ({"kind": ["one"]}, "kind must be one of one, other; got ['one']"),
        ({"flag": "yes"}, "flag must be True or False; got 'yes'"),
        ({"flag": 1}, "flag must be True or False; got 1"),
        ({"pair": (1.0, 0.0)}, "pair must be (low, high) with low <= high; got (1.0, 0.0)"),
        ({"pair": (1, 2, 3)}, "pair must be a tuple of 2; got (1, 2, 3)"),
        ({"pair": (1, "a")}, "pair[1] must be a number; got 'a'"),
        ({"pair": "ab"}, "pair must be a tuple of 2 or a number; got 'ab'"),
        ({"sizes": ()}, "sizes must have at least one element; got ()"),
        ({"sizes": [1, 2.5]}, "sizes[1] must be an integer; got 2.5"),
        ({"sizes": 3}, "sizes must be a list or a tuple; got 3"),
        ({"cells": [KEY]}, "cells[0] must be a rnnscale.cells.Cell; got an array key<fry>"),
        ({"cells": [ElmanRNNCell]}, "must be a rnnscale.cells.Cell; got the class ElmanRNNCell"),
        ({"function": "tanh"}, "function must be a function; got 'tanh'"),
        ({"xs": [1.0]}, 'xs must be an array Float[Array, "*batch 2 3"] or None; got [1.0]'),
        ({"xs": jnp.ones((2, 3), int)}, "or None; got an array int32 of shape (2, 3)"),
        ({"dtype": "float31"}, "dtype must be a dtype, such as jnp.float32; got 'float31'"),
        ({"dtype": int}, "dtype must be a floating dtype; got the class int"),
        ({"key": 0}, "key must be one random key, such as jax.random.key(0); got 0"),
        ({"key": jax.random.split(KEY)}, "got an array key<fry> of shape (2,)"),
    ],
)
def test_refuses(given: dict[str, Any], message: str):
    with pytest.raises((TypeError, ValueError)) as caught:
        Owner(**given)
    assert str(caught.value).startswith("Owner: ") and message in str(caught.value)
    assert caught.value.__suppress_context__  # a traceback shows this error only


def test_accepts_what_means_the_same():
    make: Any = Owner
    assert type(make(np.int64(3)).given[0]) is int
    assert make(sizes=[np.int32(2), 3]).given[1] == (2, 3)
    for leak in (1, np.float32(0.5), jnp.asarray(0.5), None):
        make(leak=leak)
    for key in (KEY, jax.random.PRNGKey(0)):
        make(key=key)
        jax.vmap(lambda key: jnp.asarray(make(key=key).given[0]))(jnp.stack([key, key]))
    make(xs=np.ones((4, 2, 3)), flag=np.bool_(True), dtype="bfloat16", pair=(0, 1))


def test_every_public_constructor_checks_its_arguments():
    found = [getattr(part, name) for part in (cells, layers, models, ssm) for name in part.__all__]
    constructors = {
        each.__name__: vars(each)["__init__"]
        for each in found
        if inspect.isclass(each) and issubclass(each, eqx.Module) and not inspect.isabstract(each)
    }
    assert len(constructors) > 50
    unchecked = {name for name, each in constructors.items() if inspect.unwrap(each) is each}
    assert unchecked == {"RecurrentNetwork", "Reservoir"}  # which have abstract fields instead


def test_leaves_missing_and_unknown_arguments_to_python():
    make: Any = Owner
    with pytest.raises(TypeError, match="unexpected keyword argument 'sise'"):
        make(sise=3)
    with pytest.raises(TypeError, match="takes from 1 to 2 positional arguments"):
        make(1, 2)
