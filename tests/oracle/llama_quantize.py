"""Quantizes with llama.cpp: what `llama-quantize --imatrix` does, by the library that it calls.

    python llama_quantize.py SOURCE.gguf OUT.gguf FTYPE [IMATRIX.gguf]

FTYPE is llama.cpp's number of the file type, such as 15 for Q4_K_M. The importance matrix is read here as
`tools/quantize/quantize.cpp` of llama.cpp reads it, which is not part of the library: each row of `NAME.in_sum2` by its
count in `NAME.counts`, and ones where there was none. Prints how many tensors it has, and to stderr how long it took
with a thread for each processor.
"""
import ctypes
import os
import struct
import sys
import time

import llama_cpp
import numpy as np

# GGUF's types of values: struct letters, or what reads them.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY, F32 = 8, 9, 0


class Reader:
    """A file read from front to back."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self.data = file.read()
        self.place = 0

    def number(self, letter):
        value, = struct.unpack_from("<" + letter, self.data, self.place)
        self.place += struct.calcsize(letter)
        return value

    def string(self):
        n = self.number("Q")
        self.place += n
        return self.data[self.place - n:self.place].decode()

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            kind, n = self.number("I"), self.number("Q")
            return [self.value(kind) for _ in range(n)]
        return self.number(SCALARS[kind])


def read(path):
    reader = Reader(path)
    assert reader.data[:4] == b"GGUF", path
    reader.place = 8
    n_tensors, n_entries = reader.number("Q"), reader.number("Q")
    metadata = {}
    for _ in range(n_entries):
        key = reader.string()
        metadata[key] = reader.value(reader.number("I"))
    for key in ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"):
        assert key in metadata, f"{path} has no {key}"
    tensors = {}
    for _ in range(n_tensors):
        name = reader.string()
        shape = [reader.number("Q") for _ in range(reader.number("I"))]
        kind, offset = reader.number("I"), reader.number("Q")
        assert kind == F32, name
        tensors[name] = (shape, offset)
    start = -(-reader.place // 32) * 32

    def numbers(name):
        shape, offset = tensors[name]
        flat = np.frombuffer(reader.data, "<f4", int(np.prod(shape)), start + offset)
        return flat.reshape(-1, shape[0])

    means = {}
    for name in tensors:
        if name.endswith(".in_sum2"):
            name = name.removesuffix(".in_sum2")
            sums, counts = numbers(name + ".in_sum2"), numbers(name + ".counts").reshape(-1, 1)
            means[name] = np.where(counts > 0, sums / np.maximum(counts, 1e-30), 1).astype(np.float32).ravel()
    return means


def main():
    source, out, ftype, *imatrix = sys.argv[1:]
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = int(ftype), os.cpu_count()
    means = read(imatrix[0]) if imatrix else {}
    # Ended by one without a name.
    rows = (llama_cpp.llama_cpp.llama_model_imatrix_data * (len(means) + 1))()
    for row, (name, values) in zip(rows, means.items()):
        row.name, row.size = name.encode(), values.size
        row.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if imatrix:
        params.imatrix = rows
    started = time.monotonic()
    result = llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(params))
    assert result == 0, result
    print(f"seconds {time.monotonic() - started:.3f}", file=sys.stderr)
    print(len(means))


main()
