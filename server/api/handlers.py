"""Stage 0, registration: gRPC handlers of a service, made from its descriptor.

Messages are parsed here and not by gRPC, and errors become statuses here: a message that does not parse, our
own errors and unexpected ones all end in a code of `status.py`, never in UNKNOWN with the text of a stack.
CancelledError passes through: a handler that swallowed it would leak the call.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from server.api.status import abort, as_adapterd_error
from server.core import ANYONE, Tenant
from server.errors import InvalidInput, Unimplemented

Context = grpc.aio.ServicerContext[Any, Any]
Caller = Callable[[Context], Tenant]

KINDS: dict[tuple[bool, bool], Callable[..., grpc.RpcMethodHandler[Any, Any]]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def service_handler(
    service: ServiceDescriptor, servicer: object, caller: Caller, *, name: str = "", open_methods: Collection[str] = ()
) -> grpc.GenericRpcHandler:
    """One handler for all methods of `service`; `servicer` has a coroutine method of the same name for each.

    It is given the message, the context and who calls. A method whose caller streams receives an async iterator of
    messages; one that streams answers with `context.write`.

    caller         who makes a call; raises Unauthenticated
    name           that callers know the service by, if it is not that of its descriptor
    open_methods   those that need no credentials
    """
    handlers = {
        method.name: _handler(
            method, getattr(servicer, method.name), _anyone if method.name in open_methods else caller
        )
        for method in service.methods
    }
    return grpc.method_handlers_generic_handler(name or service.full_name, handlers)


def refusing_handler(name: str, methods: Mapping[str, str]) -> grpc.GenericRpcHandler:
    """Methods of a service that are not offered, each with the reason."""

    def refusing(why: str) -> grpc.RpcMethodHandler[Any, Any]:
        async def refuse(request: Any, context: Context) -> Any:
            raise Unimplemented(why)

        return grpc.unary_unary_rpc_method_handler(_ending_in_status(refuse))

    return grpc.method_handlers_generic_handler(name, {method: refusing(why) for method, why in methods.items()})


def _anyone(context: Context) -> Tenant:
    return ANYONE


def _handler(
    method: MethodDescriptor, call: Callable[..., Awaitable[Any]], caller: Caller
) -> grpc.RpcMethodHandler[Any, Any]:
    parse = _parser(method)

    async def read_and_call(incoming: Any, context: Context) -> Any:
        tenant = caller(context)  # before anything that was sent is looked at
        message = _parsed(incoming, parse) if method.client_streaming else parse(incoming)
        return await call(message, context, tenant)

    make = KINDS[method.client_streaming, method.server_streaming]
    return make(_ending_in_status(read_and_call), None, GetMessageClass(method.output_type).SerializeToString)


def _parser(method: MethodDescriptor) -> Callable[[bytes], Message]:
    message_class = GetMessageClass(method.input_type)

    def parse(data: bytes) -> Message:
        try:
            return message_class.FromString(data)
        except DecodeError as error:
            raise InvalidInput(
                f"{len(data)} bytes are not a {method.input_type.full_name}; use the protos of adapterd.v1"
            ) from error

    return parse


async def _parsed(incoming: AsyncIterator[bytes], parse: Callable[[bytes], Message]) -> AsyncIterator[Message]:
    async for data in incoming:
        yield parse(data)


def _ending_in_status(
    call: Callable[[Any, Context], Awaitable[Any]],
) -> Callable[[Any, Context], Awaitable[Any]]:
    async def guarded(request: Any, context: Context) -> Any:
        try:
            return await call(request, context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await abort(context, as_adapterd_error(error))

    return guarded
