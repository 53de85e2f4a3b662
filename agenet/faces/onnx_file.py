"""Opens an ONNX file of a face detector in ONNX Runtime, for images of any size.

YuNet's published file states 640x640 pixels, and ONNX Runtime insists on them, although the network
is convolutional and OpenCV runs it at any size. So the stated sizes are taken out of the file's
content. The package `onnx` could do that, but its import takes 0.2 s, longer than everything else.

A file may come from a stranger. Loops and branches, functions, and tensors that are stored in other
files are refused, and the network is tried in bounded memory and time before it is used. Numbers of
fields are those of `onnx.proto` (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

import functools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from agenet.distributed.cores import available_cores

# The best on two cores; more cores serve more images at once. Between layers threads wait spinning,
# and those that spin for long take the time of others, which decode images and predict. On two
# cores busy with other programs a search of 640x480 takes 13.8 ms of processor time in one thread,
# 14.9 in two that spin for 20 microseconds, and 24.7 with ONNX Runtime's own setting.
THREADS = 2
SPIN_MICROSECONDS = 20  # older versions of ONNX Runtime ignore it
MAX_BYTES = 16 * 2**20  # of a file; YuNet's has 0.2 million
# For an image of 96x64 pixels, beside the weights; YuNet takes 2 MB.
_MAX_TRIAL_BYTES = 64 * 2**20
_MAX_TRIAL_SECONDS = 10.0

# The kinds of fields of a protobuf message: their size in bytes, or how it is found.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def open_network(content: bytes, threads: int | None = None) -> Any:
    """Opens a network in ONNX Runtime: an `onnxruntime.InferenceSession` on the CPU.

    Its input takes float32 [1, 3, H, W] of any H and W.

    Args:
        content: of the ONNX file.
        threads: of one run of the network; by default `THREADS`, or 1 where only one
            core may be used.

    Raises:
        ValueError: the content is not that of an ONNX file, or is refused.
        Exception: ONNX Runtime cannot open it.
    """
    options = _options()
    options.intra_op_num_threads = threads or min(THREADS, available_cores())
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    return _open(content, options)


def try_network(content: bytes, outputs: Sequence[str]) -> None:
    """Runs a network from a stranger on two small images, in bounded memory and time.

    Two, because a network for images of one size fails at the other.

    Raises:
        ValueError: as `open_network`, or it has several inputs.
        Exception: ONNX Runtime cannot open or run it, or it takes too much memory or time.
    """
    import onnxruntime

    _limit_memory()
    options = _options()
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Otherwise parts of it would run now, without a limit on time.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = _open(content, options)
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise ValueError(f"it has {len(inputs)} inputs")
    run_options = onnxruntime.RunOptions()
    timer = threading.Timer(_MAX_TRIAL_SECONDS, setattr, (run_options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        for sides in ((64, 96), (96, 64)):
            pixels = np.zeros((1, 3, *sides), np.float32)
            session.run(outputs, {inputs[0].name: pixels}, run_options)
    finally:
        timer.cancel()


def _open(content: bytes, options: Any) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(
        _without_sizes(content),
        options,
        providers=["CPUExecutionProvider"],
        enable_fallback=0,  # to the same provider, with lines on the terminal
    )


def _options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors arrive as exceptions
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return options


@functools.cache
def _limit_memory() -> None:
    """Limits the memory of sessions that have the entry `session.use_env_allocators`."""
    import onnxruntime

    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    onnxruntime.create_and_register_allocator(
        onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT),
        # As much as requested; -1: defaults.
        onnxruntime.OrtArenaCfg(_MAX_TRIAL_BYTES, 1, -1, -1),
    )


def _without_sizes(model: bytes) -> bytes:
    """The content of an ONNX file without the sizes of images and of what is computed from them."""
    parts = []
    for number, value, coded in _fields(model):
        if number == 7:  # ModelProto.graph
            coded = _field(7, _graph_without_sizes(_message(value)))
        elif number == 25:  # ModelProto.functions
            raise ValueError("it has functions")
        parts.append(coded)
    return b"".join(parts)


def _graph_without_sizes(graph: bytes) -> bytes:
    fields = list(_fields(graph))
    constants = set()
    for number, value, _ in fields:
        if number == 1:  # GraphProto.node
            _check_node(_message(value))
        elif number == 5:  # GraphProto.initializer
            _check_tensor(_message(value))
            constants.add(_name(_message(value), 8))  # TensorProto.name
    parts = []
    for number, value, coded in fields:
        if number == 13:  # GraphProto.value_info, which states what ONNX Runtime can infer
            continue
        if number == 11:  # GraphProto.input; old files list constants there, too
            name = _name(_message(value), 1)
            coded = coded if name in constants else _field(11, _field(1, name) + _field(2, _IMAGE))
        elif number == 12:  # GraphProto.output
            coded = _field(12, _field(1, _name(_message(value), 1)))
        parts.append(coded)
    return b"".join(parts)


def _check_node(node: bytes) -> None:
    for number, value, _ in _fields(node):
        if number == 5:  # NodeProto.attribute
            for part, tensor, _ in _fields(_message(value)):
                if part in (6, 11):  # AttributeProto.g, graphs
                    raise ValueError("it has loops or branches")
                if part in (5, 10):  # AttributeProto.t, tensors
                    _check_tensor(_message(tensor))


def _check_tensor(tensor: bytes) -> None:
    if any(number in (13, 14) and value for number, value, _ in _fields(tensor)):
        raise ValueError("it keeps weights in another file")


def _name(message: bytes, field: int) -> bytes:
    return next((_message(value) for number, value, _ in _fields(message) if number == field), b"")


# Reading and writing protobuf, https://protobuf.dev/programming-guides/encoding.


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int, bytes]]:
    """Yields the number, the value and the whole encoded field of each field of a message."""
    position = 0
    while position < len(message):
        start = position
        key, position = _read_varint(message, position)
        kind = key & 7
        value: bytes | int
        if kind == _VARINT:
            value, position = _read_varint(message, position)
        elif kind in (_FIXED64, _BYTES, _FIXED32):
            length = {_FIXED64: 8, _FIXED32: 4}.get(kind, 0)
            if kind == _BYTES:
                length, position = _read_varint(message, position)
            value = message[position : position + length]
            position += length
        else:
            raise ValueError("it is not an ONNX file")
        if position > len(message):
            raise ValueError("it is not an ONNX file, or cut short")
        yield key >> 3, value, message[start:position]


def _message(value: bytes | int) -> bytes:
    if isinstance(value, int):
        raise ValueError("it is not an ONNX file")
    return value


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    """The number at a position, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if position == len(message):
            break
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("it is not an ONNX file, or cut short")


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


# TypeProto of float32 [1, 3, h, w], whose last two sizes have names instead of values.
_SIZES = [b"\x08\x01", b"\x08\x03", _field(2, b"h"), _field(2, b"w")]
_IMAGE = _field(1, b"\x08\x01" + _field(2, b"".join(_field(1, size) for size in _SIZES)))
