import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Task(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_UNSPECIFIED: _ClassVar[Task]
    TASK_EMBEDDING: _ClassVar[Task]
    TASK_CLASSIFICATION: _ClassVar[Task]
    TASK_MULTI_LABEL: _ClassVar[Task]
    TASK_REGRESSION: _ClassVar[Task]
    TASK_TOKEN_CLASSIFICATION: _ClassVar[Task]
    TASK_QUESTION_ANSWERING: _ClassVar[Task]
    TASK_MULTIPLE_CHOICE: _ClassVar[Task]
    TASK_FILL_MASK: _ClassVar[Task]
    TASK_CAUSAL_LM: _ClassVar[Task]
    TASK_DEPENDENCY_PARSING: _ClassVar[Task]

class Tier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIER_UNSPECIFIED: _ClassVar[Tier]
    TIER_ORIGIN: _ClassVar[Tier]
    TIER_DISK: _ClassVar[Tier]
    TIER_HOST: _ClassVar[Tier]
    TIER_DEVICE: _ClassVar[Tier]
TASK_UNSPECIFIED: Task
TASK_EMBEDDING: Task
TASK_CLASSIFICATION: Task
TASK_MULTI_LABEL: Task
TASK_REGRESSION: Task
TASK_TOKEN_CLASSIFICATION: Task
TASK_QUESTION_ANSWERING: Task
TASK_MULTIPLE_CHOICE: Task
TASK_FILL_MASK: Task
TASK_CAUSAL_LM: Task
TASK_DEPENDENCY_PARSING: Task
TIER_UNSPECIFIED: Tier
TIER_ORIGIN: Tier
TIER_DISK: Tier
TIER_HOST: Tier
TIER_DEVICE: Tier

class Adapter(_message.Message):
    __slots__ = ("name", "digest", "method", "task", "labels", "model_type", "hidden_size", "num_parameters", "host_bytes", "device_bytes", "tier", "is_pinned", "loaded_at", "last_used_at", "error", "heads", "composition", "disk_bytes", "versions")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    MODEL_TYPE_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    IS_PINNED_FIELD_NUMBER: _ClassVar[int]
    LOADED_AT_FIELD_NUMBER: _ClassVar[int]
    LAST_USED_AT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    COMPOSITION_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    method: str
    task: Task
    labels: _containers.RepeatedScalarFieldContainer[str]
    model_type: str
    hidden_size: int
    num_parameters: int
    host_bytes: int
    device_bytes: int
    tier: Tier
    is_pinned: bool
    loaded_at: _timestamp_pb2.Timestamp
    last_used_at: _timestamp_pb2.Timestamp
    error: str
    heads: _containers.RepeatedScalarFieldContainer[str]
    composition: str
    disk_bytes: int
    versions: _containers.RepeatedCompositeFieldContainer[Version]
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., method: _Optional[str] = ..., task: _Optional[_Union[Task, str]] = ..., labels: _Optional[_Iterable[str]] = ..., model_type: _Optional[str] = ..., hidden_size: _Optional[int] = ..., num_parameters: _Optional[int] = ..., host_bytes: _Optional[int] = ..., device_bytes: _Optional[int] = ..., tier: _Optional[_Union[Tier, str]] = ..., is_pinned: _Optional[bool] = ..., loaded_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_used_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., error: _Optional[str] = ..., heads: _Optional[_Iterable[str]] = ..., composition: _Optional[str] = ..., disk_bytes: _Optional[int] = ..., versions: _Optional[_Iterable[_Union[Version, _Mapping]]] = ...) -> None: ...

class Version(_message.Message):
    __slots__ = ("digest", "percent", "tier")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PERCENT_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    digest: str
    percent: int
    tier: Tier
    def __init__(self, digest: _Optional[str] = ..., percent: _Optional[int] = ..., tier: _Optional[_Union[Tier, str]] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "name_prefix", "task", "tier")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    NAME_PREFIX_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    name_prefix: str
    task: Task
    tier: Tier
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., name_prefix: _Optional[str] = ..., task: _Optional[_Union[Task, str]] = ..., tier: _Optional[_Union[Tier, str]] = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("adapters", "next_page_token", "num_adapters", "base")
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    NUM_ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    adapters: _containers.RepeatedCompositeFieldContainer[Adapter]
    next_page_token: str
    num_adapters: int
    base: Base
    def __init__(self, adapters: _Optional[_Iterable[_Union[Adapter, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., num_adapters: _Optional[int] = ..., base: _Optional[_Union[Base, _Mapping]] = ...) -> None: ...

class Base(_message.Message):
    __slots__ = ("name", "model_type", "hidden_size", "num_layers", "fingerprint", "device", "dtype", "max_tokens_per_input")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_TYPE_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_PER_INPUT_FIELD_NUMBER: _ClassVar[int]
    name: str
    model_type: str
    hidden_size: int
    num_layers: int
    fingerprint: str
    device: str
    dtype: str
    max_tokens_per_input: int
    def __init__(self, name: _Optional[str] = ..., model_type: _Optional[str] = ..., hidden_size: _Optional[int] = ..., num_layers: _Optional[int] = ..., fingerprint: _Optional[str] = ..., device: _Optional[str] = ..., dtype: _Optional[str] = ..., max_tokens_per_input: _Optional[int] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ...) -> None: ...

class LoadRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class LoadResponse(_message.Message):
    __slots__ = ("adapter", "previous_digest")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    previous_digest: str
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ..., previous_digest: _Optional[str] = ...) -> None: ...

class UnloadRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UnloadResponse(_message.Message):
    __slots__ = ("host_bytes_freed", "device_bytes_freed", "disk_bytes_freed")
    HOST_BYTES_FREED_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BYTES_FREED_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FREED_FIELD_NUMBER: _ClassVar[int]
    host_bytes_freed: int
    device_bytes_freed: int
    disk_bytes_freed: int
    def __init__(self, host_bytes_freed: _Optional[int] = ..., device_bytes_freed: _Optional[int] = ..., disk_bytes_freed: _Optional[int] = ...) -> None: ...

class PinRequest(_message.Message):
    __slots__ = ("name", "is_pinned")
    NAME_FIELD_NUMBER: _ClassVar[int]
    IS_PINNED_FIELD_NUMBER: _ClassVar[int]
    name: str
    is_pinned: bool
    def __init__(self, name: _Optional[str] = ..., is_pinned: _Optional[bool] = ...) -> None: ...

class PinResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ...) -> None: ...

class PrefetchRequest(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, names: _Optional[_Iterable[str]] = ...) -> None: ...

class PrefetchResponse(_message.Message):
    __slots__ = ("num_begun",)
    NUM_BEGUN_FIELD_NUMBER: _ClassVar[int]
    num_begun: int
    def __init__(self, num_begun: _Optional[int] = ...) -> None: ...

class SetTrafficRequest(_message.Message):
    __slots__ = ("name", "shares")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    name: str
    shares: _containers.RepeatedCompositeFieldContainer[Share]
    def __init__(self, name: _Optional[str] = ..., shares: _Optional[_Iterable[_Union[Share, _Mapping]]] = ...) -> None: ...

class Share(_message.Message):
    __slots__ = ("digest", "percent")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PERCENT_FIELD_NUMBER: _ClassVar[int]
    digest: str
    percent: int
    def __init__(self, digest: _Optional[str] = ..., percent: _Optional[int] = ...) -> None: ...

class SetTrafficResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ...) -> None: ...

class PublishRequest(_message.Message):
    __slots__ = ("name", "path", "content", "percent")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    PERCENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    path: str
    content: bytes
    percent: int
    def __init__(self, name: _Optional[str] = ..., path: _Optional[str] = ..., content: _Optional[bytes] = ..., percent: _Optional[int] = ...) -> None: ...

class PublishResponse(_message.Message):
    __slots__ = ("adapter", "previous_digest")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    previous_digest: str
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ..., previous_digest: _Optional[str] = ...) -> None: ...
