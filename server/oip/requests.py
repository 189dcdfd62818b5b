"""What a request of the protocol asks for, as a `PredictRequest`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from adapterd.v1 import inference_pb2 as v1
from server.errors import InvalidInput
from server.oip.answers import LOGITS
from server.oip.tensors import Tensor

Value = bool | int | float | str
Parameters = Mapping[str, Value]

TEXT, TEXT_PAIR, CHOICES = "text", "text_pair", "choices"
INPUT_IDS, ATTENTION_MASK, TOKEN_TYPE_IDS = "input_ids", "attention_mask", "token_type_ids"
INPUTS = (TEXT, TEXT_PAIR, CHOICES, INPUT_IDS, ATTENTION_MASK, TOKEN_TYPE_IDS)
MICRO = 1_000_000
MAX_TIMEOUT = 24 * 3600 * MICRO
LEAST_URGENT = 200  # of the protocol's priorities: 1 is the most urgent, and 0 stands for none, in the middle

TRUNCATIONS = {
    "refuse": v1.TRUNCATION_UNSPECIFIED,
    "longest_first": v1.TRUNCATION_LONGEST_FIRST,
    "only_second": v1.TRUNCATION_ONLY_SECOND,
}
POOLINGS = {"mean": v1.POOLING_MEAN, "cls": v1.POOLING_CLS, "last": v1.POOLING_LAST}


def to_predict(
    model: str, version: str, inputs: Sequence[Tensor], parameters: Parameters, outputs: Sequence[str]
) -> v1.PredictRequest:
    """Raises InvalidInput with the input or parameter that is none."""
    try:
        return _to_predict(model, version, inputs, parameters, outputs)
    except (ValueError, OverflowError) as error:  # of protobuf: half a character, a number beyond its field
        raise InvalidInput(f"the request holds what cannot be sent: {type(error).__name__}") from error


def _to_predict(
    model: str, version: str, inputs: Sequence[Tensor], parameters: Parameters, outputs: Sequence[str]
) -> v1.PredictRequest:
    message = v1.PredictRequest(adapter=model, version=version, inputs=_inputs(inputs))
    for name, value in parameters.items():
        if name.startswith("sequence_"):
            _check_no_sequence(name, value)
        elif name in SETTERS:
            SETTERS[name](message, name, value)
        elif name not in READ_ELSEWHERE:
            raise InvalidInput(f"parameter {name[:64]!r} is not one of {', '.join((*SETTERS, *READ_ELSEWHERE))}")
    message.parameters.return_logits = LOGITS in outputs
    return message


def timeout_s(parameters: Parameters) -> float | None:
    """The time that a request has, as it says itself in microseconds. Raises InvalidInput."""
    if "timeout" not in parameters:
        return None
    micros = _whole("timeout", parameters["timeout"])
    if micros > MAX_TIMEOUT:
        raise InvalidInput(f"parameter 'timeout' is more than {MAX_TIMEOUT} microseconds, a day")
    return micros / MICRO if micros > 0 else None


def _inputs(tensors: Sequence[Tensor]) -> list[v1.Input]:
    by_name = {tensor.name: tensor for tensor in tensors}
    if len(by_name) != len(tensors):
        raise InvalidInput("an input is given twice")
    for name in by_name:
        if name not in INPUTS:
            raise InvalidInput(f"input {name[:64]!r} is not one of {', '.join(INPUTS)}")
    if (TEXT in by_name) == (INPUT_IDS in by_name):
        raise InvalidInput(f"send either {TEXT!r} or {INPUT_IDS!r}")
    return _from_texts(by_name) if TEXT in by_name else _from_ids(by_name)


def _from_texts(by_name: Mapping[str, Tensor]) -> list[v1.Input]:
    for name in (ATTENTION_MASK, TOKEN_TYPE_IDS):
        if name in by_name:
            raise InvalidInput(f"input {name!r} goes with {INPUT_IDS!r}, not with {TEXT!r}")
    inputs = [v1.Input(text=v1.Text(text=text)) for text in by_name[TEXT].texts()]
    if TEXT_PAIR in by_name:
        pairs = by_name[TEXT_PAIR].texts()
        _check_as_many(TEXT_PAIR, len(pairs), len(inputs))
        for message, pair in zip(inputs, pairs, strict=True):
            message.text.text_pair = pair
    if CHOICES in by_name:
        tensor = by_name[CHOICES]
        choices = tensor.texts()
        if len(tensor.shape) not in (1, 2):
            raise InvalidInput(f"input {CHOICES!r} has {len(tensor.shape)} dimensions; send [texts, choices]")
        number = tensor.shape[-1] if len(tensor.shape) == 2 else len(choices)
        _check_as_many(CHOICES, len(choices) // number if number else 0, len(inputs))
        for index, message in enumerate(inputs):
            message.text.choices.extend(choices[index * number : (index + 1) * number])
    return inputs


def _from_ids(by_name: Mapping[str, Tensor]) -> list[v1.Input]:
    """Without the positions that the attention mask leaves out."""
    for name in (TEXT_PAIR, CHOICES):
        if name in by_name:
            raise InvalidInput(f"input {name!r} goes with {TEXT!r}, not with {INPUT_IDS!r}")
    ids = by_name[INPUT_IDS].rows()
    masks = _beside(by_name, ATTENTION_MASK, ids) or [[1] * len(row) for row in ids]
    types = _beside(by_name, TOKEN_TYPE_IDS, ids) or [[] for _ in ids]
    inputs = []
    for row, mask, own in zip(ids, masks, types, strict=True):
        tokens = v1.Tokens()
        try:
            tokens.input_ids.extend(token for token, is_read in zip(row, mask, strict=True) if is_read)
            tokens.token_type_ids.extend(kind for kind, is_read in zip(own, mask, strict=False) if is_read)
        except ValueError as error:
            raise InvalidInput(f"{INPUT_IDS} or {TOKEN_TYPE_IDS} holds a number that is no id of a token") from error
        inputs.append(v1.Input(tokens=tokens))
    return inputs


def _beside(by_name: Mapping[str, Tensor], name: str, ids: list[list[int]]) -> list[list[int]] | None:
    if name not in by_name:
        return None
    rows = by_name[name].rows()
    if [len(row) for row in rows] != [len(row) for row in ids]:
        raise InvalidInput(f"input {name!r} has another shape than {INPUT_IDS!r}")
    return rows


def _check_as_many(name: str, number: int, wanted: int) -> None:
    if number != wanted:
        raise InvalidInput(f"input {name!r} is for {number} texts, {TEXT!r} has {wanted}")


def _check_no_sequence(name: str, value: Value) -> None:
    """Clients send these with their defaults."""
    if value:
        raise InvalidInput(f"parameter {name!r} is {value!r}; sequences are not served, every request stands alone")


# parameters

Setter = Callable[[v1.PredictRequest, str, Value], None]


def _set_priority(message: v1.PredictRequest, name: str, value: Value) -> None:
    """Here larger goes first, and 0 is the default of both."""
    urgency = _whole(name, value)
    if not 0 <= urgency <= LEAST_URGENT:
        raise InvalidInput(f"priority {urgency} is not between 1 (most urgent) and {LEAST_URGENT}; 0 is the default")
    message.priority = LEAST_URGENT // 2 + 1 - urgency if urgency else 0


def _set_top_k(message: v1.PredictRequest, name: str, value: Value) -> None:
    message.parameters.top_k = _int32(name, value)


def _set_threshold(message: v1.PredictRequest, name: str, value: Value) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInput(f"parameter {name!r} is {str(value)[:64]!r}, not a number")
    message.parameters.threshold = value


def _set_truncation(message: v1.PredictRequest, name: str, value: Value) -> None:
    message.parameters.truncation = TRUNCATIONS[_one_of(name, value, TRUNCATIONS)]


def _set_pooling(message: v1.PredictRequest, name: str, value: Value) -> None:
    message.parameters.pooling = POOLINGS[_one_of(name, value, POOLINGS)]


def _set_normalize(message: v1.PredictRequest, name: str, value: Value) -> None:
    if not isinstance(value, bool):
        raise InvalidInput(f"parameter {name!r} is {str(value)[:64]!r}, not true or false")
    message.parameters.normalize = value


def _set_heads(message: v1.PredictRequest, name: str, value: Value) -> None:
    message.heads.extend(part.strip() for part in _text(name, value).split(","))


def _set_sticky_key(message: v1.PredictRequest, name: str, value: Value) -> None:
    message.sticky_key = _text(name, value)


SETTERS: dict[str, Setter] = {
    "priority": _set_priority,
    "top_k": _set_top_k,
    "threshold": _set_threshold,
    "truncation": _set_truncation,
    "pooling": _set_pooling,
    "normalize": _set_normalize,
    "heads": _set_heads,
    "sticky_key": _set_sticky_key,
}
READ_ELSEWHERE = ("timeout", "binary_data_output", "triton_enable_empty_final_response")


def _whole(name: str, value: Value) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInput(f"parameter {name!r} is {str(value)[:64]!r}, not a whole number")
    return value


def _int32(name: str, value: Value) -> int:
    number = _whole(name, value)
    if not -(1 << 31) <= number < 1 << 31:
        raise InvalidInput(f"parameter {name!r} is {number}, which is beyond 32 bits")
    return number


def _text(name: str, value: Value) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"parameter {name!r} is {str(value)[:64]!r}, not a text")
    return value


def _one_of(name: str, value: Value, known: Mapping[str, object]) -> str:
    if value not in known:
        raise InvalidInput(f"parameter {name!r} is {str(value)[:64]!r}, not one of {', '.join(known)}")
    return str(value)
