"""What travels along the path of a request: plain data that every stage shares. No torch, no grpc."""

from __future__ import annotations

import itertools
import re
from asyncio import Future
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import translate
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from server.composition import Leaf, Node
from server.primitives import AdapterSpec

BASE = "base"  # the reserved adapter name that asks for the base model alone


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who calls, and what that one may do. Patterns are globs over names, "acme-*"; of a limit 0 means none.

    adapters            names that are its own: it may ask for them, and change them if it `can_load`
    shared              others' names that it may ask for; "base" is the base model alone
    credentials         sha256 of each of its bearer tokens, hex
    subjects            common or alternative names of its client certificates
    weight              of its share of the device while others wait too
    max_in_flight       requests
    host_bytes, device_bytes   what its adapters may take in memory, beyond what batches are using
    max_pins            adapters that it may keep pinned
    can_observe         it may see metrics and the console, which name all tenants: an operator
    index               its place in the ledger; given by `Tenants`
    """

    name: str
    adapters: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    credentials: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    weight: float = 1.0
    max_in_flight: int = 0
    max_requests_per_s: float = 0.0
    max_tokens_per_s: float = 0.0
    host_bytes: int = 0
    device_bytes: int = 0
    max_pins: int = 0
    can_load: bool = False
    can_train: bool = False
    can_observe: bool = False
    index: int = 0

    @property
    def may_use_all(self) -> bool:
        return "*" in self.adapters or "*" in self.shared

    def owns(self, name: str) -> bool:
        return _matches(self.adapters, name)

    def may_use(self, name: str) -> bool:
        return _matches(self.adapters, name) or _matches(self.shared, name)


@lru_cache(maxsize=4096)
def _pattern(globs: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, globs)))


def _matches(globs: tuple[str, ...], name: str) -> bool:
    return bool(globs) and _pattern(globs).match(name) is not None


# Everybody, where no tenants are declared.
ANYONE = Tenant("anyone", adapters=("*",), can_load=True, can_train=True, can_observe=True, index=1)


class Truncation(Enum):
    REFUSE = "refuse"
    LONGEST_FIRST = "longest_first"
    ONLY_SECOND = "only_second"


class Pooling(Enum):
    CLS = "cls"
    MEAN = "mean"
    LAST = "last"


@dataclass(frozen=True, slots=True)
class TextInput:
    """`choices` are second segments of a multiple-choice question, each read with the text on its own."""

    text: str
    text_pair: str | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenInput:
    """Token ids, special tokens included. `token_type_ids` is empty or as long as `input_ids`."""

    input_ids: tuple[int, ...]
    token_type_ids: tuple[int, ...] = ()


Input = TextInput | TokenInput


@dataclass(frozen=True, slots=True)
class Parameters:
    """How to read inputs and shape results. None means the task's own default."""

    top_k: int | None = None
    threshold: float | None = None
    truncation: Truncation = Truncation.REFUSE
    pooling: Pooling = Pooling.MEAN
    normalize: bool = False
    return_logits: bool = False
    return_tokens: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One adapter or composition, 1..N inputs.

    deadline      on the clock of `time.monotonic`, None means no limit
    heads         names of the heads that answer instead of the usual one
    skip_layers   layers without adapters
    sticky_key    requests of equal keys are answered by the same version of an adapter
    priority      among the tenant's own requests; larger goes first
    version       digest that has to answer, or its first digits
    size_bytes    of the message
    """

    adapter: str
    inputs: tuple[Input, ...]
    parameters: Parameters = Parameters()
    deadline: float | None = None
    heads: tuple[str, ...] = ()
    skip_layers: tuple[int, ...] = ()
    sticky_key: str = ""
    priority: int = 0
    tenant: Tenant = ANYONE
    version: str = ""
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Encoding:
    """A tokenized input of T tokens.

    `offsets`, `segments` and `tokens` are empty for inputs that came as token ids. `segments` is 0 for tokens of the
    text, 1 for the pair, -1 for special tokens; offsets count code points of the token's own segment.
    """

    input_ids: tuple[int, ...]
    token_type_ids: tuple[int, ...]
    source: Input
    offsets: tuple[tuple[int, int], ...] = ()
    segments: tuple[int, ...] = ()
    tokens: tuple[str, ...] = ()
    word_ids: tuple[int | None, ...] = ()
    word_starts: tuple[int, ...] = ()  # first token of each word and the token behind the last, for parsers
    is_truncated: bool = False

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, slots=True)
class BaseInfo:
    """What identifies the resident base and bounds its inputs."""

    name: str
    model_type: str
    hidden_size: int
    num_layers: int
    fingerprint: str  # sha256 over configuration and weights, hex
    max_tokens: int
    vocab_size: int
    type_vocab_size: int
    embedding_size: int = 0  # 0: as hidden_size
    num_heads: int = 1
    intermediate_size: int = 0
    pad_token_id: int = 0
    mask_token_id: int | None = None
    layers_per_group: int = 1  # ALBERT's inner_group_num: layer i is layer i % n of group i // n
    has_pooler: bool = True


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an adapter is. Two checkpoints with the same digest give the same answers.

    name      as registered; not part of the digest
    digest    sha256 over configuration, tensors, head and base fingerprint, hex
    method    short, for tables: "bottleneck", "lora", "prefix_tuning", "union", "fusion", "none" for a head alone, ...
    """

    name: str
    digest: str
    method: str
    model_type: str
    hidden_size: int
    num_parameters: int


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A verified, lowered adapter in host memory.

    weights   torch tensor [spec.num_elements], compute dtype, CPU (pinned where there is a GPU). `Any`, because this
              module stays free of torch.
    """

    manifest: Manifest
    spec: AdapterSpec
    weights: Any
    size_bytes: int

    @property
    def digest(self) -> str:
        return self.manifest.digest


@dataclass(frozen=True, slots=True)
class Branch:
    """One result of a sample.

    node   tree whose leaves are indices of the target's parts; None for the base alone
    head   index of the part whose head answers, and of that head among the part's; None for pooled token vectors.
           Not its name: two names of one adapter share its slot
    """

    node: Node | None
    head: tuple[int, int] | None


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """What a sample goes through: every adapter and fusion that takes part, and one branch per result.

    digest   of the adapter; of a composition, sha256 over its tree with the digests of its parts
    """

    digest: str
    parts: tuple[Adapter, ...]
    branches: tuple[Branch, ...]
    skip_layers: frozenset[int] = frozenset()


def target_of(adapter: Adapter | None) -> Target:
    """A single adapter with its own head, or the base alone."""
    if adapter is None:
        return Target(BASE, (), (Branch(None, None),))
    head = own_head(adapter)
    return Target(adapter.digest, (adapter,), (Branch(Leaf(0), None if head is None else (0, head)),))


def own_head(adapter: Adapter) -> int | None:
    """Index of the head that answers unless a request names another."""
    head = adapter.spec.head
    return None if head is None else adapter.spec.all_heads.index(head)


class TargetLease(Protocol):
    """The right to use every part of a target in host memory. Release once.

    names     of each branch: its adapters as an expression, and its head, empty for pooled vectors
    version   name and digest, where several digests answer requests for that name
    """

    target: Target
    names: tuple[tuple[str, str], ...]
    version: tuple[str, str] | None

    def release(self) -> None: ...


class HostLease(Protocol):
    """The right to use an adapter in host memory. Release once, or use as a context manager."""

    adapter: Adapter | None  # None: the base alone

    def release(self) -> None: ...


class SlotLease(Protocol):
    """The right to use a device slot until the batch is done.

    slot      index of the slot; 0 means "no adapter"
    is_fresh  this lease was the one that placed the adapter: it has to be written into the slot first
    """

    adapter: Adapter | None
    slot: int
    is_fresh: bool

    def release(self, *, failed: bool = False) -> None: ...


@dataclass(slots=True, eq=False)
class Sample:
    """One input on its way through the scheduler. `reply` is resolved with a SampleOutput or an error."""

    encoding: Encoding
    target: Target
    pooling: Pooling
    reply: Future[SampleOutput]
    deadline: float | None
    return_hidden: bool = False  # also give token vectors and pooler output (verification)
    tenant: str = ""
    priority: int = 0
    rides_alone: bool = False  # shares its batch with no other
    enqueued_at: float = 0.0

    @property
    def num_tokens(self) -> int:
        return self.encoding.num_tokens

    @property
    def num_rows(self) -> int:
        """Tokens that the last layers compute: each branch of a Parallel has its own."""
        return self.num_tokens * len(self.target.branches)

    @property
    def digest(self) -> str:
        return self.target.digest


_batch_ids = itertools.count(1)


@dataclass(slots=True, eq=False)
class Batch:
    """Samples of one forward pass and the slot lease of each distinct part among their targets, by digest.

    unwritten   digests whose slots the runner has to write first; by default those of fresh leases
    """

    samples: list[Sample]
    leases: Mapping[str, SlotLease]
    unwritten: frozenset[str] = None  # type: ignore[assignment]
    id: int = field(default_factory=lambda: next(_batch_ids))

    def __post_init__(self) -> None:
        if self.unwritten is None:
            self.unwritten = frozenset(digest for digest, lease in self.leases.items() if lease.is_fresh)

    @property
    def num_tokens(self) -> int:
        return sum(sample.num_tokens for sample in self.samples)

    @property
    def num_adapters(self) -> int:
        return sum(lease.adapter is not None for lease in self.leases.values())


@dataclass(frozen=True, slots=True)
class BatchInfo:
    id: int
    num_samples: int
    num_tokens: int
    num_adapters: int


@dataclass(frozen=True, slots=True)
class BranchOutput:
    """What the device gave for one result, float32 on the host.

    values    logits [C] or [T, C] of a head (of masked language models only where the tokens are masks), or the pooled
              vector [H] of an adapter without one; of a parser the arc scores [W, W+1]
    relations [W, W+1, C] of a parser, for W words
    hidden    token vectors [T, H], and pooler [H], where they were asked for
    """

    values: NDArray[np.float32]
    relations: NDArray[np.float32] | None = None
    hidden: NDArray[np.float32] | None = None
    pooler: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class SampleOutput:
    """What the device gave for one sample: a result per branch of its target."""

    branches: tuple[BranchOutput, ...]
    batch: BatchInfo
    queue_s: float
    compute_s: float

    @property
    def values(self) -> NDArray[np.float32]:
        """Those of the first branch."""
        return self.branches[0].values


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds per stage; of several inputs the slowest counts."""

    admit_s: float = 0.0
    tokenize_s: float = 0.0
    ready_s: float = 0.0
    queue_s: float = 0.0
    compute_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LabelScore:
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Classification:
    labels: tuple[LabelScore, ...]


@dataclass(frozen=True, slots=True)
class MultiLabel:
    labels: tuple[LabelScore, ...]


@dataclass(frozen=True, slots=True)
class Regression:
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """A labelled entity or an answer; offsets count code points of the text (answers: of the context)."""

    text: str
    label: str
    score: float
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class TokenClassification:
    entities: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class QuestionAnswering:
    answers: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Embedding:
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Choice:
    """`index` counts the choices of the input."""

    index: int
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class MultipleChoice:
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True)
class TokenScore:
    text: str
    id: int
    score: float


@dataclass(frozen=True, slots=True)
class Mask:
    """Where a mask stands (as a Span's offsets) and the likeliest tokens for it."""

    start: int
    end: int
    tokens: tuple[TokenScore, ...]


@dataclass(frozen=True, slots=True)
class FillMask:
    masks: tuple[Mask, ...]


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a dependency tree. `head` counts words from 1, 0 is the root; `score` is its probability."""

    text: str
    start: int
    end: int
    head: int
    relation: str
    score: float


@dataclass(frozen=True, slots=True)
class Dependencies:
    words: tuple[Word, ...]


Answer = (
    Classification
    | MultiLabel
    | Regression
    | TokenClassification
    | QuestionAnswering
    | Embedding
    | MultipleChoice
    | FillMask
    | Dependencies
)


@dataclass(frozen=True, slots=True)
class TokenInfo:
    text: str
    id: int
    start: int
    end: int
    label: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """The answer for one input.

    answer     None where `parallel` has several, one per branch
    adapter    of a result in `parallel`: its branch as an expression, and `head`, empty for an embedding
    """

    answer: Answer | None
    num_tokens: int
    is_truncated: bool
    batch: BatchInfo
    logits: NDArray[np.float32] | None = None
    tokens: tuple[TokenInfo, ...] = ()
    parallel: tuple[Result, ...] = ()
    adapter: str = ""
    head: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    adapter: str
    digest: str
    results: tuple[Result, ...]
    timings: Timings


class Tier(Enum):
    """The nearest tier that holds an adapter."""

    ORIGIN = "origin"
    DISK = "disk"
    HOST = "host"
    DEVICE = "device"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which adapters a listing is of; empty fields take any.

    tenant   who may use them
    """

    prefix: str = ""
    task: str = ""
    tier: Tier | None = None
    tenant: Tenant = ANYONE
    contains: str = ""


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """One of several digests under one name, and the percentage of requests that it answers."""

    digest: str
    percent: int
    tier: Tier


@dataclass(frozen=True, slots=True)
class AdapterStatus:
    """What the admin API tells of one registered name.

    method       of what has no manifest yet; a manifest's own wins
    heads        names of all its heads
    composition  the expression that a named composition stands for, or that uses a fusion
    """

    name: str
    tier: Tier
    manifest: Manifest | None = None
    task: str = ""
    labels: tuple[str, ...] = ()
    host_bytes: int = 0
    device_bytes: int = 0
    is_pinned: bool = False
    loaded_at: float | None = None  # unix seconds
    last_used_at: float | None = None
    error: str = ""
    method: str = ""
    heads: tuple[str, ...] = ()
    composition: str = ""
    disk_bytes: int = 0
    versions: tuple[VersionStatus, ...] = ()
