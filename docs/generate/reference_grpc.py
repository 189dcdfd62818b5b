"""docs/reference/grpc.md, from the protos and their comments."""

from __future__ import annotations

import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc
from reference_text import ROOT, page, paragraphs, table

PROTOS = ("v1/inference", "v1/adapters", "v1/replicas", "v1/training", "oip/v2/inference")
FIELD = FieldDescriptorProto
SCALARS = {
    FIELD.TYPE_STRING: "string",
    FIELD.TYPE_BYTES: "bytes",
    FIELD.TYPE_BOOL: "bool",
    FIELD.TYPE_INT32: "int32",
    FIELD.TYPE_INT64: "int64",
    FIELD.TYPE_UINT32: "uint32",
    FIELD.TYPE_UINT64: "uint64",
    FIELD.TYPE_FLOAT: "float",
    FIELD.TYPE_DOUBLE: "double",
}
# Numbers of fields in descriptor.proto, which the places of comments are made of.
MESSAGES, ENUMS, SERVICES, NESTED, FIELDS, METHODS, VALUES = 4, 5, 6, 3, 2, 2, 2
HEAD = ((12,), (2,))  # before the syntax and before the package: what the whole file is


def grpc_page() -> str:
    about = "Every service, message and field. [protocols.md](../protocols.md) says which to use, with examples."
    lines = page("gRPC", "`protos/`", about)
    for file in _files():
        lines += _Section(file).lines()
    return "\n".join(lines)


def _files() -> list[FileDescriptorProto]:
    """With their comments."""
    names = [f"adapterd/{name}.proto" for name in PROTOS]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "all.binpb"
        places = [f"-I{ROOT / 'protos'}", f"-I{Path(protoc.__file__).parent / '_proto'}"]
        code = protoc.main(["protoc", *places, "--include_source_info", f"--descriptor_set_out={target}", *names])
        if code:
            raise SystemExit(code)
        by_name = {file.name: file for file in FileDescriptorSet.FromString(target.read_bytes()).file}
    return [by_name[name] for name in names]


class _Section:
    """What one .proto declares. Another may have messages of the same names, so anchors are made here."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._file = file
        self._comments = {tuple(place.path): place for place in file.source_code_info.location}
        self._is_oip = "oip" in file.package

    def lines(self) -> list[str]:
        file = self._file
        title = "Open Inference Protocol" if self._is_oip else file.service[0].name
        lines = [f"## {title}", "", f"`protos/{file.name}`, package `{file.package}`.", ""]
        lines += [line for path in HEAD for line in self._detached(path)]
        for index in range(len(file.service)):
            lines += self._service(index)
        for index, message in enumerate(file.message_type):
            lines += self._message(message, message.name, (MESSAGES, index))
        for index in range(len(file.enum_type)):
            lines += self._enum(index)
        return lines

    def _service(self, index: int) -> list[str]:
        rows = []
        for number, method in enumerate(self._file.service[index].method):
            request, response = self._type(method.input_type), self._type(method.output_type)
            streams = [
                f"stream of {request}" if method.client_streaming else request,
                f"stream of {response}" if method.server_streaming else response,
            ]
            rows.append([f"`{method.name}`", *streams, self._comment(SERVICES, index, METHODS, number)])
        head = ["RPC", "request", "response", ""]
        return [*paragraphs(self._comment(SERVICES, index)), *table(head, rows)]

    def _message(self, message: DescriptorProto, name: str, path: tuple[int, ...]) -> list[str]:
        lines = [*self._heading(name), *paragraphs(self._comment(*path))]
        rows = []
        for index, field in enumerate(message.field):
            about = self._comment(*path, FIELDS, index)
            if field.HasField("oneof_index") and not field.proto3_optional:
                about = f"One of `{message.oneof_decl[field.oneof_index].name}`. {about}".strip()
            rows.append([f"`{field.name}`", str(field.number), self._kind(message, field), about])
        lines += table(["field", "number", "type", ""], rows) if rows else paragraphs("No fields.")
        for index, nested in enumerate(message.nested_type):
            if not nested.options.map_entry:
                lines += self._message(nested, f"{name}.{nested.name}", (*path, NESTED, index))
        return lines

    def _enum(self, index: int) -> list[str]:
        enum = self._file.enum_type[index]
        rows = [
            [f"`{value.name}`", str(value.number), self._comment(ENUMS, index, VALUES, number)]
            for number, value in enumerate(enum.value)
        ]
        lines = [*self._heading(enum.name), *paragraphs(self._comment(ENUMS, index))]
        return lines + table(["value", "number", ""], rows)

    def _heading(self, name: str) -> list[str]:
        return [f'### <a id="{self._anchor(name)}"></a>{name}', ""]

    def _kind(self, message: DescriptorProto, field: FieldDescriptorProto) -> str:
        entries = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
        if (entry := entries.get(field.type_name.rpartition(".")[2])) is not None:
            return f"map of {self._scalar(entry.field[0])} to {self._scalar(entry.field[1])}"
        kind = self._scalar(field)
        if field.label == FIELD.LABEL_REPEATED:
            return f"repeated {kind}"
        return f"optional {kind}" if field.proto3_optional else kind

    def _scalar(self, field: FieldDescriptorProto) -> str:
        return self._type(field.type_name) if field.type_name else SCALARS[field.type]

    def _type(self, name: str) -> str:
        """A link, for a type of this file."""
        own = f".{self._file.package}."
        if not name.startswith(own):
            return f"`{name.removeprefix('.')}`"
        short = name.removeprefix(own)
        return f"[{short}](#{self._anchor(short)})"

    def _anchor(self, name: str) -> str:
        return f"oip-{name.lower()}" if self._is_oip else name.lower()

    def _comment(self, *path: int) -> str:
        place = self._comments.get(path)
        return " ".join((place.leading_comments or place.trailing_comments).split()) if place is not None else ""

    def _detached(self, path: tuple[int, ...]) -> list[str]:
        place = self._comments.get(path)
        return paragraphs(*place.leading_detached_comments, place.leading_comments) if place is not None else []
