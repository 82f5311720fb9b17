"""The library's errors pass between processes; the client's have tests of their own."""

import copy
import inspect
import pickle

import pytest

from bytelm import errors

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.BytelmError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_the_same_in_another_process(kind: type[errors.BytelmError]) -> None:
    error = kind("so it is", *(["top_k"] if kind is errors.MethodError else []))
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert str(again) == "so it is"
        assert vars(again) == vars(error)
