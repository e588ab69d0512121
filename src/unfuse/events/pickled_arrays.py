"""Safe loading of pickled arrays, without the module pickle.

EventGPT's recordings are ``.npy`` files that hold a pickled dict of arrays. Unpickling an untrusted file runs its code,
and allowing only numpy's own names does not help: a forged dtype makes numpy read raw bytes as object pointers. This
module interprets the opcodes. A global is an inert marker, a call records its arguments, and arrays are built at the
end from bytes with ``np.frombuffer``, for an allowlist of dtypes. No name in the file is ever looked up.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unfuse.errors import EventFileError, UnsafeFileError

_RECONSTRUCT: Final = frozenset({"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"})
_SCALAR: Final = frozenset({"numpy.core.multiarray scalar", "numpy._core.multiarray scalar"})
_NDARRAY: Final = "numpy ndarray"
_DTYPE: Final = "numpy dtype"
_ENCODE: Final = "_codecs encode"
_GLOBALS: Final = _RECONSTRUCT | _SCALAR | {_NDARRAY, _DTYPE, _ENCODE}
"""Protocol 2 writes bytes as a call of ``_codecs.encode``."""

_MAX_OPS: Final = 100_000
_MAX_DEPTH: Final = 8
_OPAQUE: Final = re.compile(r"(?:[SVUMm]|c)(\d{1,6})")
"""Texts, times and complex numbers beside the events: their bytes are skipped, never interpreted."""
_PLAIN_DTYPES: Final = frozenset({"b1", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)), "f2", "f4", "f8"})


@dataclass(frozen=True, slots=True)
class _Global:
    name: str


@dataclass(slots=True)
class _Call:
    """A recorded REDUCE; BUILD adds its state."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


@dataclass(slots=True)
class _Machine:
    source: str
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)


_MARK: Final = object()


def load_pickled_arrays(data: bytes, source: str) -> Any:
    """Interpret one pickle that holds dicts, lists and tuples of plain numpy arrays.

    Args:
        data: the pickle's bytes.
        source: name for messages.

    Returns:
        The same containers, with read-only arrays. Memory stays within a small multiple of the file's size.

    Raises:
        UnsafeFileError: any other global, opcode or dtype; it is named, and nothing was run.
        EventFileError: truncated or inconsistent.
    """
    machine = _Machine(source)
    position = 0
    try:
        for count, (opcode, argument, at) in enumerate(pickletools.genops(data)):
            position = at or 0
            if count >= _MAX_OPS:
                raise UnsafeFileError(
                    f"{source} at byte {position}", found=f"over {_MAX_OPS} opcodes", expected="fewer"
                )
            if opcode.name == "STOP":
                break
            handler = _HANDLERS.get(opcode.name)
            if handler is None:
                raise UnsafeFileError(
                    f"{source} at byte {position}",
                    found=f"pickle opcode {opcode.name}",
                    expected="plain numpy arrays",
                )
            handler(machine, argument)
        (result,) = machine.stack
        return _Builder(source).value(result, 0)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise EventFileError(
            f"{source} at byte {position}",
            found=f"a truncated or corrupt pickle ({type(error).__name__}: {error})",
            expected="a dict of arrays",
        ) from None


def _stack_global(m: _Machine, _: Any) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    _global(m, f"{module} {name}")


def _global(m: _Machine, name: str) -> None:
    if name not in _GLOBALS:
        raise UnsafeFileError(m.source, found=f"the global {name.replace(' ', '.')!r}", expected="plain numpy arrays")
    m.stack.append(_Global(name))


def _reduce(m: _Machine, _: Any) -> None:
    arguments, function = m.stack.pop(), m.stack.pop()
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise UnsafeFileError(m.source, found="a call of something that is no numpy name", expected="plain arrays")
    m.stack.append(_Call(function.name, arguments))


def _build_state(m: _Machine, _: Any) -> None:
    state = m.stack.pop()
    target = m.stack[-1]
    if not isinstance(target, _Call) or target.state is not None:
        raise UnsafeFileError(m.source, found=f"state set on {type(target).__name__}", expected="plain numpy arrays")
    target.state = state


def _push(m: _Machine, argument: Any) -> None:
    m.stack.append(argument)


def _constant(value: Any) -> Callable[[_Machine, Any], None]:
    return lambda m, _: m.stack.append(value)


def _mark(m: _Machine, _: Any) -> None:
    m.stack.append(_MARK)


def _to_mark(m: _Machine) -> list[Any]:
    at = len(m.stack) - 1
    while m.stack[at] is not _MARK:
        at -= 1
        if at < 0:
            raise IndexError("no mark on the stack")
    items = m.stack[at + 1 :]
    del m.stack[at:]
    return items


def _tuple(m: _Machine, _: Any) -> None:
    m.stack.append(tuple(_to_mark(m)))


def _tuple_of(size: int) -> Callable[[_Machine, Any], None]:
    def handler(m: _Machine, _: Any) -> None:
        if len(m.stack) < size:
            raise IndexError("tuple of too few items")
        items = tuple(m.stack[len(m.stack) - size :])
        del m.stack[len(m.stack) - size :]
        m.stack.append(items)

    return handler


def _list(m: _Machine, _: Any) -> None:
    m.stack.append(_to_mark(m))


def _dict(m: _Machine, _: Any) -> None:
    items = _to_mark(m)
    m.stack.append(dict(zip(items[::2], items[1::2], strict=True)))


def _append(m: _Machine, _: Any) -> None:
    value = m.stack.pop()
    _container(m, list).append(value)


def _appends(m: _Machine, _: Any) -> None:
    items = _to_mark(m)
    _container(m, list).extend(items)


def _setitem(m: _Machine, _: Any) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    _container(m, dict)[key] = value


def _setitems(m: _Machine, _: Any) -> None:
    items = _to_mark(m)
    _container(m, dict).update(zip(items[::2], items[1::2], strict=True))


def _container(m: _Machine, kind: type) -> Any:
    if not isinstance(m.stack[-1], kind):
        raise TypeError(f"items for a {type(m.stack[-1]).__name__}")
    return m.stack[-1]


def _put(m: _Machine, argument: int) -> None:
    m.memo[argument] = m.stack[-1]


def _memoize(m: _Machine, _: Any) -> None:
    m.memo[len(m.memo)] = m.stack[-1]


def _get(m: _Machine, argument: int) -> None:
    m.stack.append(m.memo[argument])


def _nothing(_: _Machine, __: Any) -> None:
    return None


_HANDLERS: Final[dict[str, Callable[[_Machine, Any], None]]] = {
    **dict.fromkeys(("PROTO", "FRAME"), _nothing),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "BUILD": _build_state,
    "MARK": _mark,
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    **dict.fromkeys(
        (
            "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "BINFLOAT",
            "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE",
            "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
            "BINSTRING", "SHORT_BINSTRING", "STRING",
        ),
        _push,
    ),
    "EMPTY_TUPLE": _constant(()),
    "TUPLE": _tuple,
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "LIST": _list,
    "APPEND": _append,
    "APPENDS": _appends,
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "DICT": _dict,
    "SETITEM": _setitem,
    "SETITEMS": _setitems,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _get),
    "MEMOIZE": _memoize,
}  # fmt: skip


class _Builder:
    """Builds containers and arrays from recorded calls, within a budget.

    A pickle can refer to one object many times; without a budget, a few hundred bytes of nested references would expand
    to more items than memory holds.
    """

    def __init__(self, source: str):
        self._source = source
        self._items = 0
        self._arrays: dict[int, Any] = {}

    def value(self, value: Any, depth: int) -> Any:
        self._items += 1
        if depth > _MAX_DEPTH or self._items > _MAX_OPS:
            raise self._unsafe("containers nested too deep or too large", "a dict of arrays")
        if isinstance(value, _Call):
            if id(value) not in self._arrays:
                build = self._scalar if value.name in _SCALAR else self._array
                self._arrays[id(value)] = build(value, depth)
            return self._arrays[id(value)]
        if isinstance(value, (int, float, str, bytes)) or value is None:
            return value
        if isinstance(value, dict):
            if not all(isinstance(key, (str, int)) for key in value):
                raise self._corrupt("keys that are no names", "x, y, t and p")
            return {str(key): self.value(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(item, depth + 1) for item in value]
        raise self._unsafe(f"a bare {getattr(value, 'name', 'mark')!r}", "a dict of arrays")

    def _array(self, call: _Call, depth: int) -> NDArray[np.generic] | list[Any]:
        if call.name not in _RECONSTRUCT:
            raise self._unsafe(f"a call of {call.name.replace(' ', '.')!r}", "numpy arrays")
        match call.arguments:
            case (_Global(name=name), _, _) if name == _NDARRAY:
                pass
            case _:
                raise self._unsafe("an array of another class", "numpy.ndarray")
        match call.state:
            case (int(), tuple() as shape, _Call() as dtype_call, bool() as fortran, raw):
                pass
            case _:
                raise self._corrupt("an array without its state", "(version, shape, dtype, order, bytes)")
        if not all(type(n) is int and 0 <= n < 2**48 for n in shape) or len(shape) > _MAX_DEPTH:
            raise self._corrupt(f"array shape {shape!r:.80}", "non-negative sizes")
        if isinstance(raw, list):
            # np.save pickles an object array whole; its items become a list here, so that no object array ever exists.
            return [self.value(item, depth + 1) for item in raw]
        dtype = self._dtype(dtype_call, nested=False)
        raw = self._bytes(raw)
        if (size := dtype.itemsize * math.prod(shape)) != len(raw):
            raise self._corrupt(f"{len(raw)} bytes for shape {list(shape)} of {dtype}", f"{size}")
        if not size:
            return np.empty(0, np.uint8)
        return np.frombuffer(raw, dtype=dtype).reshape(shape, order="F" if fortran else "C")

    def _scalar(self, call: _Call, depth: int) -> Any:
        match call.arguments:
            case (_Call() as dtype_call, raw):
                dtype = self._dtype(dtype_call, nested=False)
            case _:
                raise self._unsafe("a scalar of another form", "(dtype, bytes)")
        if len(raw := self._bytes(raw)) != dtype.itemsize or not raw:
            raise self._corrupt(f"{len(raw)} bytes for a scalar of {dtype}", f"{dtype.itemsize}")
        return None if dtype.kind == "V" else np.frombuffer(raw, dtype)[0].item()

    def _bytes(self, raw: Any) -> bytes:
        if isinstance(raw, _Call):
            return self._latin1(raw)
        if not isinstance(raw, bytes):
            raise self._unsafe(f"array contents of type {type(raw).__name__}", "bytes")
        return raw

    def _latin1(self, call: _Call) -> bytes:
        match call:
            case _Call(name=name, arguments=(str() as text, "latin1")) if name == _ENCODE:
                try:
                    return text.encode("latin1")
                except UnicodeEncodeError:
                    pass
        raise self._unsafe(f"a call of {call.name.replace(' ', '.')!r} for array contents", "bytes")

    def _dtype(self, call: _Call, *, nested: bool) -> np.dtype[Any]:
        """Return a dtype from its code and byte order alone; numpy's own ``__setstate__`` is never called."""
        match call.name, call.arguments, call.state:
            case (name, (str() as code, *_), (int(), str() as order, None, None, None, *_)) if name == _DTYPE:
                if code in _PLAIN_DTYPES and order in ("<", ">", "|", "="):
                    return np.dtype(("<" if order == "|" else order) + code)
                if found := _OPAQUE.fullmatch(code):
                    return np.dtype(f"V{int(found[1]) * (4 if code[0] == 'U' else 1)}")
                raise self._unsafe(f"dtype {order}{code!r:.40}", "integers or floats")
            case (
                name,
                (str() as code, *_),
                (int(), str(), None, tuple() as names, dict() as fields, *_),
            ) if name == _DTYPE and not nested:
                return self._record(code, names, fields)
        raise self._unsafe("a dtype that is neither plain nor a flat record", "integers or floats")

    def _record(self, code: str, names: tuple[Any, ...], fields: dict[Any, Any]) -> np.dtype[Any]:
        if not code.startswith("V") or not code[1:].isdecimal() or len(code) > 6 or len(names) > len(fields):
            raise self._unsafe(f"record dtype {code!r:.40}", "fields of integers or floats")
        itemsize = int(code[1:])
        formats, offsets = [], []
        for name in names:
            match fields.get(name):
                case (_Call() as inner, int() as offset, *_) if isinstance(name, str):  # and a title
                    dtype = self._dtype(inner, nested=True)
                    if not 0 <= offset <= itemsize - dtype.itemsize:
                        raise self._unsafe(f"field {name!r:.40} outside its record", "inside it")
                    formats.append(dtype)
                    offsets.append(offset)
                case _:
                    raise self._unsafe("a record field of another form", "(dtype, offset)")
        return np.dtype({"names": list(names), "formats": formats, "offsets": offsets, "itemsize": itemsize})

    def _unsafe(self, found: str, expected: str) -> UnsafeFileError:
        return UnsafeFileError(self._source, found=found, expected=expected)

    def _corrupt(self, found: str, expected: str) -> EventFileError:
        return EventFileError(self._source, found=found, expected=expected)
