"""A Java object stream as plain values (read only).

Written from the Java Object Serialization Specification, chapter 6 ("Object Serialization Stream
Protocol"). No class that the stream names is ever looked up, let alone instantiated: an object is its
class name and its fields. Whatever bytes come in, the outcome is values or a `StreamError`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

MAGIC = b"\xac\xed\x00\x05"

_NULL, _REFERENCE, _CLASS_DESC, _OBJECT, _STRING, _ARRAY, _CLASS = range(0x70, 0x77)
_BLOCK, _END_BLOCK, _RESET, _BLOCK_LONG, _EXCEPTION, _LONG_STRING, _PROXY_CLASS_DESC, _ENUM = range(
    0x77, 0x7F
)
_BLOCKS = (_BLOCK, _BLOCK_LONG)
_BASE_HANDLE = 0x7E0000

_WRITE_METHOD, _SERIALIZABLE, _EXTERNALIZABLE, _BLOCK_DATA = 0x01, 0x02, 0x04, 0x08

_PRIMITIVES = {"B": "b", "C": "H", "D": "d", "F": "f", "I": "i", "J": "q", "S": "h", "Z": "?"}
_ARRAY_DTYPES = {
    kind: np.dtype(code)
    for kind, code in zip("BCDFIJSZ", ("u1", ">u2", ">f8", ">f4", ">i4", ">i8", ">i2", "?"), strict=True)
}

_U16 = struct.Struct(">H")
_I32 = struct.Struct(">i")
_I64 = struct.Struct(">q")
_CLASS_HEAD = struct.Struct(">qBH")  # serialVersionUID, flags, number of fields

_MAX_NESTING = 64
"""Values inside values, not counting Externalizable ones, which are read without recursion."""


class StreamError(ValueError):
    """The bytes are not a Java object stream that we can read; `offset` is where that showed."""

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.offset = offset


class JavaClass:
    """A class as the stream describes it."""

    __slots__ = ("chain", "flags", "name", "object_names", "primitive_names", "primitives")

    def __init__(self, name: str) -> None:
        self.name = name
        self.flags = 0
        self.primitives = struct.Struct(">")
        self.primitive_names: list[str] = []
        self.object_names: list[str] = []
        self.chain: tuple[JavaClass, ...] = (self,)
        """Superclasses, farthest first, then the class itself."""

    @property
    def is_external(self) -> bool:
        """Whether the class wrote itself, without field names."""
        return bool(self.flags & _EXTERNALIZABLE)


class JavaObject:
    """An object: named fields, and what the class wrote by itself (`bytearray` between values)."""

    __slots__ = ("contents", "fields", "java_class", "offset")

    def __init__(self, java_class: JavaClass, offset: int) -> None:
        self.java_class = java_class
        self.offset = offset
        self.fields: dict[str, Any] = {}
        self.contents: list[Any] = []

    @property
    def class_name(self) -> str:
        """Full name, such as `java.util.HashMap` or `a.b.Outer$Inner`."""
        return self.java_class.name

    def field(self, name: str, kind: type[T]) -> T:
        """The value of a field that must be there and of that type.

        Raises:
            StreamError: it is not.
        """
        value = self.fields.get(name)
        if not isinstance(value, kind):
            raise StreamError(f"{self.class_name} has no usable '{name}'", self.offset)
        return value


class JavaEnum:
    """A constant of an enum."""

    __slots__ = ("class_name", "constant")

    def __init__(self, class_name: str, constant: str) -> None:
        self.class_name = class_name
        self.constant = constant


class JavaStream:
    """Iterates over the top-level values of a stream.

    null → None, String → str, enum → `JavaEnum`, object → `JavaObject`, array of primitives → numpy,
    array of objects → list, primitives outside of fields → bytearray.
    """

    def __init__(self, data: bytes) -> None:
        if data[:4] != MAGIC:
            raise StreamError("it does not begin like a Java object stream", 0)
        self._data = data
        self._position = 4
        self._handles: list[Any] = []
        self._nesting = 0

    def __iter__(self) -> Iterator[Any]:
        while self._position < len(self._data):
            items: list[Any] = []
            try:
                self._append_item(items)
            except (IndexError, struct.error) as error:
                # Every index and unpacking below is into `_data`.
                raise StreamError("it ends in the middle of a value", len(self._data)) from error
            yield from items

    def objects(self) -> list[JavaObject]:
        """All objects read so far, at whatever depth."""
        return [value for value in self._handles if isinstance(value, JavaObject)]

    def _append_item(self, items: list[Any]) -> None:
        """Read one value or block; adjacent blocks are one, wherever Java's buffer was full."""
        tag = self._data[self._position]
        if tag in _BLOCKS:
            self._position += 1
            size = self._byte() if tag == _BLOCK else self._length()
            if not (items and isinstance(items[-1], bytearray)):
                items.append(bytearray())
            items[-1] += self._take(size)
        elif tag == _RESET:
            self._position += 1
            self._handles.clear()
        else:
            items.append(self._value())

    def _value(self) -> Any:  # noqa: PLR0911 - one return per kind of value
        offset = self._position
        tag = self._data[offset]
        self._position = offset + 1
        if tag == _NULL:
            return None
        if tag == _REFERENCE:
            return self._reference()
        if tag == _OBJECT:
            item = self._open_object()
            if item.java_class.is_external:
                self._read_external(item)
            else:
                self._read_fields(item)
            return item
        if tag == _STRING:
            return self._keep(self._utf(self._unpack(_U16)))
        if tag == _ARRAY:
            return self._array()
        if tag == _ENUM:
            return self._enum()
        if tag == _LONG_STRING:
            return self._keep(self._utf(self._unpack(_I64)))
        if tag == _CLASS:
            return self._keep(self._class())
        kind = (
            "an exception that QuPath met while saving" if tag == _EXCEPTION else f"unknown mark 0x{tag:02x}"
        )
        raise StreamError(f"it holds {kind} where a value should be", offset)

    def _open_object(self) -> JavaObject:
        offset = self._position - 1
        return self._keep(JavaObject(self._class(), offset))

    def _read_fields(self, item: JavaObject) -> None:
        self._enter()
        for java_class in item.java_class.chain:
            if java_class.primitive_names:
                values = java_class.primitives.unpack_from(self._data, self._position)
                self._position += java_class.primitives.size
                item.fields.update(zip(java_class.primitive_names, values, strict=True))
            for name in java_class.object_names:
                item.fields[name] = self._value()
            if java_class.flags & _WRITE_METHOD:
                self._read_contents(item.contents)
        self._nesting -= 1

    def _read_contents(self, contents: list[Any]) -> None:
        while self._data[self._position] != _END_BLOCK:
            self._append_item(contents)
        self._position += 1

    def _read_external(self, outermost: JavaObject) -> None:
        """Read what Externalizable objects wrote; they may nest as deep as a hierarchy of annotations."""
        unfinished = [outermost]
        while unfinished:
            contents = unfinished[-1].contents
            tag = self._data[self._position]
            if tag == _END_BLOCK:
                self._position += 1
                unfinished.pop()
            elif tag == _REFERENCE:
                self._position += 1
                contents.append(self._reference())
            elif tag == _OBJECT:
                self._position += 1
                inner = self._open_object()
                contents.append(inner)
                if inner.java_class.is_external:
                    unfinished.append(inner)
                else:
                    self._read_fields(inner)
            else:
                self._append_item(contents)

    def _array(self) -> Any:
        offset = self._position - 1
        name = self._class().name
        kind = name[1:2]
        if name[:1] != "[" or (kind not in _ARRAY_DTYPES and kind not in ("L", "[")):
            raise StreamError(f"it holds an array of the unknown kind '{name}'", offset)
        if kind in _ARRAY_DTYPES:
            size = self._length()
            dtype = _ARRAY_DTYPES[kind]
            return self._keep(np.frombuffer(self._take(size * dtype.itemsize), dtype))
        values: list[Any] = self._keep([])
        size = self._length()
        if size > len(self._data) - self._position:  # every value takes at least a byte
            raise StreamError(f"it holds an array of {size} values, more than the file has bytes", offset)
        self._enter()
        for _ in range(size):
            values.append(self._value())
        self._nesting -= 1
        return values

    def _enum(self) -> JavaEnum:
        offset = self._position - 1
        constant = self._keep(JavaEnum(self._class().name, ""))
        name = self._value()
        if not isinstance(name, str):
            raise StreamError(f"a constant of {constant.class_name} has no name", offset)
        constant.constant = name
        return constant

    def _class(self) -> JavaClass:
        """Read a class description that must be there."""
        offset = self._position
        if self._data[offset] == _REFERENCE:
            self._position += 1
            known = self._reference()
            if not isinstance(known, JavaClass):
                raise StreamError("it refers to a class that is none", offset)
            return known
        tag = self._byte()
        if tag != _CLASS_DESC:
            raise StreamError(f"it holds the mark 0x{tag:02x} where a class should be described", offset)
        return self._class_description(offset)

    def _class_description(self, offset: int) -> JavaClass:
        self._enter()
        java_class = JavaClass(self._utf(self._unpack(_U16)))
        _, java_class.flags, field_count = _CLASS_HEAD.unpack_from(self._data, self._position)
        self._position += _CLASS_HEAD.size
        self._keep(java_class)
        codes = ">"
        for _ in range(field_count):
            code = chr(self._byte())
            name = self._utf(self._unpack(_U16))
            if code in _PRIMITIVES and not java_class.object_names:
                codes += _PRIMITIVES[code]
                java_class.primitive_names.append(name)
            elif code in ("L", "["):
                self._value()  # the field's type, a string
                java_class.object_names.append(name)
            else:
                raise StreamError(f"a field of {java_class.name} has the unknown type '{code}'", offset)
        java_class.primitives = struct.Struct(codes)
        self._read_contents([])
        if self._data[self._position] == _NULL:
            self._position += 1
        else:
            java_class.chain = (*self._class().chain, java_class)
        self._check(java_class, offset)
        self._nesting -= 1
        return java_class

    def _check(self, java_class: JavaClass, offset: int) -> None:
        if java_class.is_external and not java_class.flags & _BLOCK_DATA:
            raise StreamError(f"{java_class.name} is written in a form without marks", offset)
        if not java_class.is_external and any(parent.is_external for parent in java_class.chain):
            raise StreamError(f"{java_class.name} is described in contradiction to its parent", offset)
        if len(java_class.chain) > _MAX_NESTING:
            raise StreamError(f"{java_class.name} has more than {_MAX_NESTING} ancestors", offset)

    def _reference(self) -> Any:
        offset = self._position
        handle = _I32.unpack_from(self._data, offset)[0] - _BASE_HANDLE
        self._position = offset + 4
        if not 0 <= handle < len(self._handles):
            raise StreamError("it refers to a value that it does not hold", offset)
        return self._handles[handle]

    def _keep(self, value: T) -> T:
        self._handles.append(value)
        return value

    def _enter(self) -> None:
        self._nesting += 1
        if self._nesting > _MAX_NESTING:
            raise StreamError(f"values are nested more than {_MAX_NESTING} deep", self._position)

    def _byte(self) -> int:
        value = self._data[self._position]
        self._position += 1
        return value

    def _unpack(self, form: struct.Struct) -> int:
        value: int = form.unpack_from(self._data, self._position)[0]
        self._position += form.size
        return value

    def _length(self) -> int:
        size = self._unpack(_I32)
        if size < 0:
            raise StreamError("it holds a negative length", self._position - 4)
        return size

    def _take(self, size: int) -> bytes:
        start = self._position
        if not 0 <= size <= len(self._data) - start:
            raise StreamError("it ends in the middle of a value", len(self._data))
        self._position = start + size
        return self._data[start : start + size]

    def _utf(self, size: int) -> str:
        offset = self._position
        try:
            return decode_modified_utf8(self._take(size))
        except UnicodeDecodeError as error:
            raise StreamError("it holds a text that is not UTF-8", offset) from error


def decode_modified_utf8(encoded: bytes) -> str:
    """Decode Java's UTF-8: NUL takes two bytes, and what lies beyond U+FFFF is a pair of surrogates.

    Raises:
        UnicodeDecodeError: the bytes are no such text.
    """
    try:
        text = encoded.decode("utf-8")
    except UnicodeDecodeError:
        text = encoded.replace(b"\xc0\x80", b"\x00").decode("utf-8", "surrogatepass")
        text = text.encode("utf-16", "surrogatepass").decode("utf-16")
    return text
