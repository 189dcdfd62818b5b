from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TrainRequest(_message.Message):
    __slots__ = ("plan", "rows")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    plan: TrainPlan
    rows: Rows
    def __init__(self, plan: _Optional[_Union[TrainPlan, _Mapping]] = ..., rows: _Optional[_Union[Rows, _Mapping]] = ...) -> None: ...

class TrainPlan(_message.Message):
    __slots__ = ("name", "task", "config", "epochs", "patience", "learning_rate", "batch_size", "seed")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    name: str
    task: str
    config: str
    epochs: int
    patience: int
    learning_rate: float
    batch_size: int
    seed: int
    def __init__(self, name: _Optional[str] = ..., task: _Optional[str] = ..., config: _Optional[str] = ..., epochs: _Optional[int] = ..., patience: _Optional[int] = ..., learning_rate: _Optional[float] = ..., batch_size: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class Rows(_message.Message):
    __slots__ = ("split", "suffix", "content")
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    SUFFIX_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    split: str
    suffix: str
    content: bytes
    def __init__(self, split: _Optional[str] = ..., suffix: _Optional[str] = ..., content: _Optional[bytes] = ...) -> None: ...

class TrainResponse(_message.Message):
    __slots__ = ("queued", "step", "file")
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    queued: Queued
    step: Step
    file: TrainedFile
    def __init__(self, queued: _Optional[_Union[Queued, _Mapping]] = ..., step: _Optional[_Union[Step, _Mapping]] = ..., file: _Optional[_Union[TrainedFile, _Mapping]] = ...) -> None: ...

class Queued(_message.Message):
    __slots__ = ("num_before",)
    NUM_BEFORE_FIELD_NUMBER: _ClassVar[int]
    num_before: int
    def __init__(self, num_before: _Optional[int] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("step", "num_steps", "loss")
    STEP_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    step: int
    num_steps: int
    loss: float
    def __init__(self, step: _Optional[int] = ..., num_steps: _Optional[int] = ..., loss: _Optional[float] = ...) -> None: ...

class TrainedFile(_message.Message):
    __slots__ = ("path", "content")
    PATH_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    path: str
    content: bytes
    def __init__(self, path: _Optional[str] = ..., content: _Optional[bytes] = ...) -> None: ...
