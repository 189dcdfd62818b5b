"""Stage 0, reflection: what tools are told of the services, each under the name that callers know it by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool

from adapterd.oip.v2 import inference_pb2 as v2
from server.api import oip


def reflection_pool(services: Sequence[str]) -> DescriptorPool:
    """What reflection shows: the given services' files, and the protocol's under its public name."""
    pool = DescriptorPool()
    known = descriptor_pool.Default()
    added: set[str] = set()

    def add(name: str) -> None:
        if name in added:
            return
        added.add(name)
        proto = FileDescriptorProto()
        known.FindFileByName(name).CopyToProto(proto)
        for dependency in proto.dependency:
            add(dependency)
        pool.Add(proto)

    for service in services:
        add(known.FindFileContainingSymbol(service).name)
    pool.Add(_public(v2.DESCRIPTOR.serialized_pb))
    return pool


def _public(serialized: bytes) -> FileDescriptorProto:
    own, public = v2.DESCRIPTOR.package, oip.PUBLIC_NAME.rpartition(".")[0]
    proto = FileDescriptorProto.FromString(serialized)
    proto.package = public
    for message in _messages(proto):
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(own, public)
    for method in proto.service[0].method:
        method.input_type = method.input_type.replace(own, public)
        method.output_type = method.output_type.replace(own, public)
    return proto


def _messages(proto: Any) -> list[Any]:
    found = list(proto.message_type)
    for message in found:
        found.extend(message.nested_type)
    return found
