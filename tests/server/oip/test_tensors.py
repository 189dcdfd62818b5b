from __future__ import annotations

import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2, service_pb2

from adapterd.oip.v2 import inference_pb2 as v2
from server.errors import InvalidInput
from server.oip.requests import to_predict
from server.oip.tensors import BYTES, Tensor, as_json, from_json, from_raw, raw


def messages(of: dict[str, Descriptor]) -> dict[str, Descriptor]:
    found = dict(of)
    for name, message in of.items():
        found |= {f"{name}.{nested}": inner for nested, inner in messages(message.nested_types_by_name).items()}
    return found


def test_every_message_is_the_same_on_the_wire_as_the_public_one() -> None:
    """By number and type: a field that we do not have is one that is ignored."""
    public = messages(dict(service_pb2.DESCRIPTOR.message_types_by_name))
    public |= messages(dict(model_config_pb2.DESCRIPTOR.message_types_by_name))
    own = messages(dict(v2.DESCRIPTOR.message_types_by_name))
    assert len(own) > 40
    for name, message in own.items():
        for field in message.fields:
            other = public[name].fields_by_number.get(field.number)
            assert other is not None, f"{name}.{field.name}"
            assert (other.name, other.type, other.is_repeated) == (field.name, field.type, field.is_repeated), name


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_bytes_survive_the_wire(elements: list[bytes]) -> None:
    data = raw(Tensor("x", BYTES, (len(elements),), elements))
    assert list(from_raw("x", BYTES, [len(elements)], data).elements) == elements


@given(st.sampled_from([BYTES, "INT64", "FP32"]), st.binary(max_size=64), st.lists(st.integers(-2, 9), max_size=4))
def test_any_bytes_are_a_tensor_or_invalid(datatype: str, data: bytes, shape: list[int]) -> None:
    try:
        tensor = from_raw("x", datatype, shape, data)
    except InvalidInput:
        return
    assert raw(tensor) == data


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3),
)


@pytest.mark.parametrize(("datatype", "element"), [("FP32", 3.5e38), ("FP32", 10**400), ("INT32", 1 << 31)])
def test_a_number_that_its_type_cannot_hold_is_refused(datatype: str, element: float) -> None:
    with pytest.raises(InvalidInput, match=f"an element is too large for {datatype}"):
        from_json("x", datatype, [1], [element])


@given(st.sampled_from([BYTES, "INT64", "INT32", "FP32", "FP16", ""]), JSON, st.lists(st.integers(0, 3), max_size=3))
def test_any_json_is_a_tensor_or_invalid(datatype: str, data: object, shape: list[int]) -> None:
    try:
        tensor = from_json("x", datatype, shape, data)
    except InvalidInput:
        return
    assert len(as_json(tensor)) == int(np.prod(shape))


@given(
    st.dictionaries(
        st.sampled_from(["priority", "top_k", "threshold", "truncation", "pooling", "normalize", "heads", "other"]),
        st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    )
)
def test_any_parameters_are_a_request_or_invalid(parameters: dict[str, bool | int | float | str]) -> None:
    try:
        message = to_predict("a", "", [Tensor("text", BYTES, (1,), [b"x"])], parameters, ())
    except InvalidInput:
        return
    assert abs(message.priority) <= 100


@pytest.mark.parametrize(("urgency", "priority"), [(0, 0), (1, 100), (100, 1), (101, 0), (200, -99)])
def test_the_most_urgent_goes_first(urgency: int, priority: int) -> None:
    message = to_predict("a", "", [Tensor("text", BYTES, (1,), [b"x"])], {"priority": urgency}, ())
    assert message.priority == priority
