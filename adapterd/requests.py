"""Builds the messages of a call from plain Python values."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypedDict, Unpack

from adapterd.calls import require_size
from adapterd.v1 import adapters_pb2 as admin
from adapterd.v1 import inference_pb2 as v1
from adapterd.v1 import training_pb2 as training

Item = tuple[str, v1.PredictRequest]  # the id that the reply will carry, and the request


class Options(TypedDict, total=False):
    """What a request may say besides its adapter and texts. What is left out takes the task's own default.

    heads          heads that answer instead of the adapter's own: its other heads, or other adapters by name
    skip_layers    layers without adapters
    choices        second segments of a multiple-choice question, for every text
    text_pair      second segment, one per text: the hypothesis of a pair, the context of a question
    tokens         inputs as token ids, special tokens included, instead of texts
    top_k          most labels or answers to return
    threshold      least score of a label, in [0, 1]
    truncation     what to cut off an input that is too long; without it such an input is refused
    pooling        how an adapter without a head makes one vector
    normalize      scale an embedding to unit length
    return_logits, return_tokens    also give the head's raw output, the tokens the model read
    sticky_key     while versions of an adapter share its requests, equal keys are answered by the same one
    priority       among the requests of one tenant larger goes first, -100 to 100
    version        the digest that has to answer, or its first 8 digits or more
    """

    heads: str | Sequence[str]
    skip_layers: Sequence[int]
    choices: Sequence[str]
    text_pair: str | Sequence[str] | None
    tokens: Sequence[Sequence[int]]
    top_k: int | None
    threshold: float | None
    truncation: Literal["longest_first", "only_second"] | None
    pooling: Literal["cls", "mean", "last"] | None
    normalize: bool
    return_logits: bool
    return_tokens: bool
    sticky_key: str
    priority: int
    version: str


def predict_request(adapter: str, text: str | Sequence[str] = (), **options: Unpack[Options]) -> v1.PredictRequest:
    """One adapter or composition, one or more texts. Raises ValueError if texts and pairs differ in number.

    adapter   a name, "base", or an expression: Stack(de, ner), Parallel(a, b)
    """
    return v1.PredictRequest(
        adapter=adapter,
        inputs=[
            *_texts(_several(text), options.get("text_pair"), options.get("choices", ())),
            *(v1.Input(tokens=v1.Tokens(input_ids=ids)) for ids in options.get("tokens", ())),
        ],
        parameters=_parameters(options),
        heads=_several(options.get("heads", ())),
        skip_layers=options.get("skip_layers", ()),
        sticky_key=options.get("sticky_key", ""),
        priority=options.get("priority", 0),
        version=options.get("version", ""),
    )


def stream_messages(
    items: Iterable[Item], max_bytes: int, failures: list[Exception]
) -> Iterator[v1.PredictStreamRequest]:
    """`items` for the wire. Their own error ends them and is kept in `failures`; gRPC would turn it into UNKNOWN."""
    try:
        for item in items:
            yield _stream_request(item, max_bytes)
    except Exception as error:
        failures.append(error)


async def async_stream_messages(
    items: Iterable[Item] | AsyncIterable[Item], max_bytes: int, failures: list[Exception]
) -> AsyncIterator[v1.PredictStreamRequest]:
    try:
        if isinstance(items, AsyncIterable):
            async for item in items:
                yield _stream_request(item, max_bytes)
        else:
            for item in items:
                yield _stream_request(item, max_bytes)
    except Exception as error:
        failures.append(error)


def _stream_request(item: Item, max_bytes: int) -> v1.PredictStreamRequest:
    message = v1.PredictStreamRequest(id=item[0], request=item[1])
    require_size(message, max_bytes)
    return message


def _texts(texts: Sequence[str], text_pair: str | Sequence[str] | None, choices: Sequence[str]) -> list[v1.Input]:
    if text_pair is None:
        return [v1.Input(text=v1.Text(text=text, choices=choices)) for text in texts]
    if choices:
        raise ValueError("text_pair and choices: a choice is the second segment, give one of them")
    pairs = _several(text_pair)
    if len(pairs) != len(texts):
        raise ValueError(f"{len(texts)} texts and {len(pairs)} text_pairs; give one pair per text")
    return [v1.Input(text=v1.Text(text=text, text_pair=pair)) for text, pair in zip(texts, pairs, strict=True)]


def _several(text: str | Sequence[str]) -> Sequence[str]:
    return [text] if isinstance(text, str) else text


def _parameters(options: Options) -> v1.Parameters:
    truncation, pooling = options.get("truncation"), options.get("pooling")
    return v1.Parameters(
        top_k=options.get("top_k"),
        threshold=options.get("threshold"),
        truncation=f"TRUNCATION_{(truncation or 'unspecified').upper()}",
        pooling=f"POOLING_{(pooling or 'unspecified').upper()}",
        normalize=options.get("normalize", False),
        return_logits=options.get("return_logits", False),
        return_tokens=options.get("return_tokens", False),
    )


PIECE_BYTES = 1 << 20


def traffic_request(name: str, shares: Mapping[str, int]) -> admin.SetTrafficRequest:
    """Percentages by digest."""
    return admin.SetTrafficRequest(
        name=name, shares=[admin.Share(digest=digest, percent=percent) for digest, percent in shares.items()]
    )


def publish_messages(name: str, folder: Path, percent: int | None = None) -> Iterator[admin.PublishRequest]:
    """Every file of an adapter's folder, in pieces. Raises FileNotFoundError for one without files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    paths = {path.relative_to(folder).as_posix(): path for path in files}
    shown = {where: path for where, path in paths.items() if not any(p.startswith(".") for p in where.split("/"))}
    if not shown:
        raise FileNotFoundError(f"{folder} holds no files")
    return _published(name, shown, percent)


def _published(name: str, files: Mapping[str, Path], percent: int | None) -> Iterator[admin.PublishRequest]:
    for where, path in files.items():
        is_first = True
        with path.open("rb") as file:
            while (piece := file.read(PIECE_BYTES)) or is_first:
                yield admin.PublishRequest(name=name, path=where, content=piece, percent=percent)
                is_first = False


def train_messages(plan: training.TrainPlan, files: Mapping[str, Path]) -> Iterator[training.TrainRequest]:
    """The plan, then each split's file in pieces. Raises FileNotFoundError for one that is not there."""
    for path in files.values():
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not a file")
    return _train_rows(plan, files)


def _train_rows(plan: training.TrainPlan, files: Mapping[str, Path]) -> Iterator[training.TrainRequest]:
    yield training.TrainRequest(plan=plan)
    for split, path in files.items():
        with path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield training.TrainRequest(rows=training.Rows(split=split, suffix=path.suffix.lower(), content=piece))
