"""A pickle interpreter that cannot run code: it moves values on a stack and never resolves a name.

`pickle.Unpickler` with a restricted `find_class` still resolves the copyreg extension registry, calls arbitrary
objects and allocates whatever a length field requests. Here a global is just the pair of strings (module, name);
calling one returns an inert `Stub` unless the pair is in the literal table `_REBUILD`, which builds plain containers
and file-backed tensors.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from sfumato.errors import UserError
from sfumato.foreign import short
from sfumato.interop.lazy import Storage, StoredTensor, view

MAX_PICKLE = 256 << 20  # a structure without tensor values is far smaller; more is an attack or not a checkpoint
MAX_INT_BITS = 4096
MAX_STEPS = 400_000
"""Largest number of opcodes of a program, about a second's work: room for 10,000 tensors of about forty each."""
MAX_TUPLE_KEY = 8
SPARE = 10_000
"""Number of entries that any program may copy: hyperparameters refer to each other."""
MAX_KEY = 1 << 53
"""Larger numbers share their hash with others, which makes a dictionary of them slow."""


class PickleError(UserError):
    """The stream is not a pickle, is damaged, or uses features that no checkpoint needs."""


@dataclass(frozen=True)
class Global:
    """The name of a class or function in a pickle; never imported."""

    module: str
    name: str

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Stub:
    """An inert placeholder for an object of a class that is not rebuilt: its class, arguments, state and items."""

    cls: Any
    args: Any = None
    state: list[Any] = field(default_factory=list)
    items: list[Any] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<Stub of {self.cls.path if isinstance(self.cls, Global) else type(self.cls).__name__}>"


STORAGE_TYPES: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}

DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
} | {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2, "complex64": torch.complex64}


def storage_dtype(kind: object) -> torch.dtype:
    """The element type of a storage class named in a pickle; raises PickleError for anything else."""
    if (
        isinstance(kind, Global)
        and kind.name in STORAGE_TYPES
        and kind.module in ("torch", "torch.storage", "torch.cuda")
    ):
        return STORAGE_TYPES[kind.name]
    raise PickleError(
        f"a tensor is stored as {short(kind)}, which is not a plain torch storage; it cannot be read here"
    )


class _Mark:
    pass


_MARK = _Mark()
_SCALARS = (str, bytes, int, float, bool, type(None), Global)


def _key(value: object) -> Any:
    """A dictionary key that can be hashed without recursion (a deeply nested tuple would overflow the C stack)."""
    parts = value if isinstance(value, tuple) and len(value) <= MAX_TUPLE_KEY else (value,)
    for part in parts:
        if isinstance(part, int | float) and not -MAX_KEY < part < MAX_KEY:
            raise PickleError(f"a dictionary has the key {short(part)}; checkpoints have strings and small numbers")
    if isinstance(value, Stub) or all(isinstance(part, _SCALARS) for part in parts):
        return value
    raise PickleError(
        f"a dictionary key of type {type(value).__name__} in the pickle; checkpoints have strings and numbers"
    )


def _pairs(value: object) -> dict[Any, Any]:
    if isinstance(value, dict):
        return dict(value)
    if not isinstance(value, list | tuple):
        raise PickleError("a dictionary is built from something that is not a list of pairs; the file is damaged")
    out = {}
    for pair in value:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise PickleError("a dictionary is built from something that is not a list of pairs; the file is damaged")
        out[_key(pair[0])] = pair[1]
    return out


def _ordered_dict(*args: Any) -> Any:
    return _pairs(args[0]) if args else {}


def _default_dict(*args: Any) -> Any:
    return _pairs(args[1]) if len(args) > 1 else {}


def _set(*args: Any) -> Any:
    return [_key(value) for value in args[0]] if args and isinstance(args[0], list | tuple) else []


def _size(*args: Any) -> Any:
    return tuple(args[0]) if args and isinstance(args[0], list | tuple) else ()


def _tensor(storage: object, offset: object, shape: object, stride: object, dtype: torch.dtype | None) -> StoredTensor:
    if not isinstance(storage, Storage) or type(offset) is not int:
        raise PickleError("a tensor is rebuilt from something that is not a storage; the file is damaged")
    if not isinstance(shape, list | tuple) or not isinstance(stride, list | tuple):
        raise PickleError(f"a tensor of storage {storage.key} has no proper shape; the file is damaged")
    return view(storage, dtype or storage.dtype, offset, tuple(shape), tuple(stride))


def _tensor_v2(*args: Any) -> Any:
    if len(args) < 4:
        raise PickleError("a tensor is rebuilt from too few arguments; the file is damaged")
    return _tensor(args[0], args[1], args[2], args[3], None)


def _tensor_v3(*args: Any) -> Any:
    if len(args) < 7 or not isinstance(args[6], Global) or args[6].module != "torch" or args[6].name not in DTYPES:
        raise PickleError("a tensor is rebuilt with an unknown element type; it cannot be read here")
    return _tensor(args[0], args[1], args[2], args[3], DTYPES[args[6].name])


def _parameter(*args: Any) -> Any:
    return args[0] if args else None


def _from_type(*args: Any) -> Any:
    """A tensor subclass (function, type, arguments, state): only the result of its function, without state."""
    if len(args) >= 3 and isinstance(args[0], Global) and isinstance(args[2], tuple):
        rebuild = _REBUILD.get(args[0].path)
        if rebuild is not None:
            return rebuild(*args[2])
    return Stub(Global("torch._tensor", "_rebuild_from_type_v2"), args)


def _latin1(*args: Any) -> Any:
    """`_codecs.encode(text, 'latin1')`: how protocol 2 writes bytes."""
    if len(args) == 2 and isinstance(args[0], str) and args[1] in ("latin1", "latin-1"):
        return args[0].encode("latin1", "replace")
    return Stub(Global("_codecs", "encode"), args)


_REBUILD: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": _default_dict,
    "builtins.dict": _ordered_dict,
    "__builtin__.dict": _ordered_dict,
    "builtins.set": _set,
    "__builtin__.set": _set,
    "builtins.frozenset": _set,
    "__builtin__.frozenset": _set,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _tensor_v2,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "_codecs.encode": _latin1,
}
"""The only names whose calls are executed: containers and file-backed tensors. Everything else becomes a Stub."""


def _length(args: tuple[Any, ...]) -> int:
    """An upper bound of the entries or bytes that a call copies; nested arguments are those of tensor subclasses."""
    sizes = (len(arg) for arg in args if isinstance(arg, list | tuple | dict | str | bytes))
    inner = (
        len(part) for arg in args if isinstance(arg, tuple) for part in arg if isinstance(part, list | tuple | str)
    )
    return sum(sizes) + sum(inner)


class _Bounded:
    """A reader of at most `limit` bytes that never allocates more than the data has."""

    def __init__(self, data: Any, start: int, limit: int) -> None:
        self.data, self.position, self.stop = data, start, min(len(data), start + limit)

    def read(self, n: int) -> bytes:
        chunk = bytes(self.data[self.position : min(self.position + max(n, 0), self.stop)])
        self.position += len(chunk)
        return chunk

    def readline(self) -> bytes:
        end = self.data.find(b"\n", self.position, self.stop)
        end = self.stop if end < 0 else end + 1
        line = bytes(self.data[self.position : end])
        self.position = end
        return line

    def tell(self) -> int:
        return self.position


class Machine:
    """One pickle program. `persistent` turns a persistent id into a value (a Storage), or raises PickleError."""

    def __init__(self, persistent: Callable[[Any], Any]) -> None:
        self.persistent = persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0
        self.steps = 0
        self.read: Callable[[], int] = int
        """Number of bytes of the program read so far."""

    def call(self, function: object, args: object) -> Any:
        """The result of a call. All copies together are bounded by the steps taken: each entry was pushed by one."""
        if isinstance(function, Global) and isinstance(args, tuple):
            rebuild = _REBUILD.get(function.path)
            if rebuild is not None:
                self.copied += _length(args)
                if self.copied > self.read() + SPARE:
                    raise PickleError("the pickle repeats its own parts excessively; refusing to expand it")
                return rebuild(*args)
        return Stub(function, args)

    def run(self, data: Any, start: int = 0) -> tuple[Any, int]:
        """Interprets the pickle at `start` of a bytes-like object; returns its value and where it ended."""
        reader = _Bounded(data, start, MAX_PICKLE)
        self.read = lambda: reader.position - start
        try:
            for opcode, arg, _ in pickletools.genops(reader):  # type: ignore[arg-type]
                self.steps += 1
                if self.steps > MAX_STEPS:
                    raise PickleError(f"the pickle has more than {MAX_STEPS} steps; refusing to read on")
                if opcode.name == "STOP":
                    return self.pop(), reader.position
                handler = _HANDLERS.get(opcode.name)
                if handler is None:
                    raise PickleError(f"the pickle uses {opcode.name}, which no checkpoint needs; refusing to read it")
                handler(self, arg)
        except PickleError:
            raise
        except UserError as error:
            raise PickleError(str(error)) from None
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError, UnicodeError) as error:
            raise PickleError(
                f"the pickle is damaged or cut off at byte {reader.position} ({short(str(error))})"
            ) from None
        raise PickleError("the pickle ends without its last opcode; the file is cut off")

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise PickleError("the pickle's stack is out of order; the file is damaged")
        return value

    def top(self) -> Any:
        return self.stack[-1]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop_mark(self) -> list[Any]:
        stack = self.stack
        for at in range(len(stack) - 1, -1, -1):
            if stack[at] is _MARK:
                values = stack[at + 1 :]
                del stack[at:]
                return values
        raise PickleError("the pickle's stack is out of order; the file is damaged")

    # -- opcodes whose work is more than a line

    def extend(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Stub):
            target.items.extend(values)
        else:
            raise PickleError(f"items are appended to a {type(target).__name__}; the file is damaged")

    def set_items(self, values: list[Any]) -> None:
        target = self.top()
        if len(values) % 2:
            raise PickleError("a dictionary has a key without a value; the file is damaged")
        if isinstance(target, dict):
            target.update((_key(k), v) for k, v in zip(values[::2], values[1::2], strict=True))
        elif isinstance(target, Stub):
            target.items.extend(values)
        else:
            raise PickleError(f"items are set on a {type(target).__name__}; the file is damaged")

    def build(self) -> None:
        """Sets an object's state: stored in a Stub, dropped for containers and tensors."""
        state, target = self.pop(), self.top()
        if isinstance(target, Stub):
            target.state.append(state)

    def put(self, index: int) -> None:
        value = self.top()
        if value is _MARK:
            raise PickleError("the pickle's stack is out of order; the file is damaged")
        self.memo[index] = value


def _constant(value: Any) -> Callable[[Machine, Any], None]:
    return lambda machine, arg: machine.push(value)


def _integer(machine: Machine, arg: Any) -> None:
    if isinstance(arg, int) and arg.bit_length() > MAX_INT_BITS:
        raise PickleError("the pickle contains an absurdly long integer; refusing to read it")
    machine.push(arg)


def _literal(machine: Machine, arg: Any) -> None:
    machine.push(arg)


def _global(machine: Machine, arg: Any) -> None:
    module, _, name = arg.partition(" ")
    machine.push(Global(module, name))


def _stack_global(machine: Machine, arg: Any) -> None:
    name, module = machine.pop(), machine.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise PickleError("the pickle names a class by something that is not text; the file is damaged")
    machine.push(Global(module, name))


def _tuple(count: int) -> Callable[[Machine, Any], None]:
    def handler(machine: Machine, arg: Any) -> None:
        values = [machine.pop() for _ in range(count)]
        machine.push(tuple(reversed(values)))

    return handler


def _reduce(machine: Machine, arg: Any) -> None:
    args, function = machine.pop(), machine.pop()
    machine.push(machine.call(function, args))


def _newobj_ex(machine: Machine, arg: Any) -> None:
    machine.pop()  # a stub ignores keyword arguments
    _reduce(machine, arg)


def _inst(machine: Machine, arg: Any) -> None:
    module, _, name = arg.partition(" ")
    machine.push(Stub(Global(module, name), tuple(machine.pop_mark())))


def _obj(machine: Machine, arg: Any) -> None:
    values = machine.pop_mark()
    if not values:
        raise PickleError("the pickle makes an object of no class; the file is damaged")
    machine.push(Stub(values[0], tuple(values[1:])))


def _append(machine: Machine, arg: Any) -> None:
    machine.extend([machine.pop()])


def _set_item(machine: Machine, arg: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _dict(machine: Machine, arg: Any) -> None:
    values = machine.pop_mark()
    machine.push({})
    machine.set_items(values)


def _persistent(machine: Machine, arg: Any) -> None:
    machine.push(machine.persistent(machine.pop()))


def _pop(machine: Machine, arg: Any) -> None:
    machine.stack.pop()


def _pop_mark(machine: Machine, arg: Any) -> None:
    machine.pop_mark()


def _dup(machine: Machine, arg: Any) -> None:
    machine.push(machine.top())


def _nothing(machine: Machine, arg: Any) -> None:
    pass


_HANDLERS: dict[str, Callable[[Machine, Any], None]] = {
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"), _integer),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _literal),
    **dict.fromkeys(("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "FLOAT", "BINFLOAT"), _literal),
    "BYTEARRAY8": lambda machine, arg: machine.push(bytes(arg)),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "MARK": _constant(_MARK),
    "EMPTY_TUPLE": _constant(()),
    "EMPTY_LIST": lambda machine, arg: machine.push([]),
    "EMPTY_DICT": lambda machine, arg: machine.push({}),
    "EMPTY_SET": lambda machine, arg: machine.push([]),
    "LIST": lambda machine, arg: machine.push(machine.pop_mark()),
    "TUPLE": lambda machine, arg: machine.push(tuple(machine.pop_mark())),
    "FROZENSET": lambda machine, arg: machine.push(machine.pop_mark()),
    "DICT": _dict,
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "APPEND": _append,
    "APPENDS": lambda machine, arg: machine.extend(machine.pop_mark()),
    "ADDITEMS": lambda machine, arg: machine.extend(machine.pop_mark()),
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, arg: machine.set_items(machine.pop_mark()),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _newobj_ex,
    "INST": _inst,
    "OBJ": _obj,
    "BUILD": lambda machine, arg: machine.build(),
    "PUT": lambda machine, arg: machine.put(arg),
    "BINPUT": lambda machine, arg: machine.put(arg),
    "LONG_BINPUT": lambda machine, arg: machine.put(arg),
    "MEMOIZE": lambda machine, arg: machine.put(len(machine.memo)),
    "GET": lambda machine, arg: machine.push(machine.memo[arg]),
    "BINGET": lambda machine, arg: machine.push(machine.memo[arg]),
    "LONG_BINGET": lambda machine, arg: machine.push(machine.memo[arg]),
    "POP": _pop,
    "POP_MARK": _pop_mark,
    "DUP": _dup,
    "PROTO": _nothing,
    "FRAME": _nothing,
    "BINPERSID": _persistent,
    "PERSID": lambda machine, arg: machine.push(machine.persistent(arg)),
}
"""Handlers by opcode name; extension codes, out-of-band buffers and new opcodes are refused."""
