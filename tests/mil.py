"""Core ML programs computed by PyTorch, as far as the tests need: Core ML itself runs on macOS only."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from coremltools.libmilstoragepython import _BlobStorageReader as Blobs

_FLOAT16, _FLOAT32 = 10, 11  # in the specification's DataType


def evaluated(operators, package: Path, image: torch.Tensor) -> torch.Tensor:
    """What the operators of a package (`formats.coreml.load`) give for `image` (B, C, H, W), in float32."""
    blobs, values = Blobs(str(package / "Data/com.apple.CoreML/weights/weight.bin")), {"image": image}
    for operator in operators:
        if operator.type == "const":
            result = _constant(operator.attributes["val"], blobs)
        else:
            given = {name: values[value.arguments[0].name] for name, value in operator.inputs.items()}
            result = _OPERATORS[operator.type](**given)
            shape = [d.constant.size for d in operator.outputs[0].type.tensorType.dimensions]
            assert list(result.shape) == shape, operator.type
        values[operator.outputs[0].name] = result
    return values["logits"]


def _constant(value, blobs: Blobs):
    shape, kind = [d.constant.size for d in value.type.tensorType.dimensions], value.type.tensorType.dataType
    if value.HasField("blobFileValue"):
        read = {_FLOAT16: blobs.read_fp16_data, _FLOAT32: blobs.read_float_data}[kind]
        data = np.asarray(read(value.blobFileValue.offset))
        data = data.view(np.float16) if kind == _FLOAT16 else data
        return torch.from_numpy(data.astype(np.float32).reshape(shape))
    tensor = value.immediateValue.tensor
    stored = getattr(tensor, tensor.WhichOneof("value")).values
    if kind == _FLOAT16:
        stored = np.frombuffer(stored, np.float16)
    if kind in (_FLOAT16, _FLOAT32):
        return torch.tensor(np.array(stored, np.float32).reshape(shape))
    return list(stored) if shape else stored[0]


def _conv(x, weight, strides, pad, pad_type, groups, dilations, bias=None):
    top, bottom, left, right = pad
    assert pad_type in ("custom", "valid")
    padded = F.pad(x, (left, right, top, bottom)) if pad_type == "custom" else x
    return F.conv2d(padded, weight, bias, strides, 0, dilations, groups)


def _matmul(x, y, transpose_x=False, transpose_y=False):
    return (x.mT if transpose_x else x) @ (y.mT if transpose_y else y)


def _gelu(x, mode):
    return F.gelu(x, approximate={"EXACT": "none", "TANH_APPROXIMATION": "tanh"}[mode])


_OPERATORS = {
    "add": lambda x, y: x + y,
    "cast": lambda x, dtype: x,
    "conv": _conv,
    "gelu": _gelu,
    "linear": lambda x, weight, bias: F.linear(x, weight, bias),
    "matmul": _matmul,
    "reduce_mean": lambda x, axes, keep_dims: x.mean(axes, keep_dims),
    "relu": lambda x: x.relu(),
    "reshape": lambda x, shape: x.reshape(shape),
    "softmax": lambda x, axis: x.softmax(axis),
    "transpose": lambda x, perm: x.permute(perm),
}
