"""A CUDA device that isn't there: tensors on it hold their values on the CPU, and refuse to meet those that are there.

A forgotten `.to(device)` fails on a real device only, where most machines have none. Inside `pretended_cuda()` torch
says that it has one; a tensor that is moved to it is wrapped, computes what it would on the CPU, and whatever mixes it
with a tensor that was left on the CPU raises as CUDA does. Numbers (tensors without dimensions), copies from one device
to the other, and indices on the CPU may mix there, and so they may here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_DEVICE = torch.device("cuda", 0)
_aten = torch.ops.aten
# What takes tensors of two devices: copies, and indices.
_COPIES = {_aten.copy_.default, _aten._to_copy.default, _aten._copy_from.default}
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._unsafe_index.Tensor}
# What has to wait for the device.
_WAITING = {
    _aten._local_scalar_dense.default,
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten.linalg_matrix_exp.default,
    _aten._linalg_svd.default,
    _aten._linalg_eigh.default,
    # By the numbers and sizes of matrices.
    _aten.linalg_inv_ex.default,
    _aten._linalg_solve_ex.default,
    _aten.linalg_lu_factor_ex.default,
}
# What Python asks of a tensor without dispatching an operation of torch.
_PYTHON = (Tensor.tolist, Tensor.__deepcopy__, Tensor.__reduce_ex__, Tensor.numpy, Tensor.__array__, Tensor.data_ptr)
_DEVICE_OF: Any = Tensor.device.__get__  # pyright: ignore
_IS_CUDA: Any = Tensor.is_cuda.__get__  # pyright: ignore


class Remote(Tensor):
    """A tensor on the device."""

    held: Tensor

    def __new__(cls, inner: Tensor) -> Remote:
        """Stands for the tensor that holds the values."""
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            # To torch's C++ it has to be anywhere but on the CPU, for which CUDA itself would have to be there.
            device=torch.device("meta"),
        )
        made.held = inner
        return made

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where it says that it is."""
        return _DEVICE

    @property
    def is_cuda(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That it isn't here."""
        return True

    @property
    def is_cpu(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Likewise."""
        return False

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """How modules know that a parameter may be exchanged for it in place."""
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Tensor], *_: Any) -> Remote:
        """The inverse."""
        return Remote(parts["held"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Computes what the operation is on the CPU."""
        return _run(func, args, kwargs or {})


class _Operations(TorchDispatchMode):
    """Sees every operation, those that make tensors on the device too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What torch does in C++ with a tensor's device or memory before an operation is dispatched."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (_DEVICE_OF, _IS_CUDA) and _holds(args[0]):
            return _DEVICE if func == _DEVICE_OF else True
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            func, args, kwargs = Tensor.to, (func(*args, **kwargs | {"device": None}), kwargs["device"]), {}
        if func in (Tensor.to, Tensor.type_as) and len(args) > 1 and isinstance(args[1], Tensor):
            func, args = Tensor.to, (args[0], args[1].device, args[1].dtype, *args[2:])
        if func is Tensor.cuda:
            func, args = Tensor.to, (args[0], _DEVICE)
        if func is Tensor.to:
            args, kwargs = _to(*args, **kwargs)
            if len(args) == 1 and not kwargs:
                return args[0]
        if func in _PYTHON and args and isinstance(args[0], Remote):
            if func in (Tensor.numpy, Tensor.__array__):
                raise TypeError("can't convert cuda:0 device type tensor to numpy: use Tensor.cpu() first")
            if func is Tensor.__deepcopy__:
                return args[1].setdefault(id(args[0]), _copy(args[0]))
            return func(args[0].held.detach(), *args[1:], **kwargs)
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            # Torch's C++ would make indices of numbers where it believes the tensor to be, without their values.
            args = (args[0], _indices(args[1]), *args[2:])
        with _within(_holds((args, tuple(kwargs.values())))):
            return func(*args, **kwargs)


def _indices(x: Any) -> Any:
    """An index with tensors for lists of numbers."""
    if isinstance(x, tuple):
        return tuple(map(_indices, cast("tuple[Any, ...]", x)))
    return torch.tensor(x, dtype=None if x else torch.int64) if isinstance(x, list) else x


def _copy(x: Remote) -> Tensor:
    made = Remote(x.held.detach().clone())
    if isinstance(x, nn.Parameter):
        return nn.Parameter(made, x.requires_grad)
    return made.requires_grad_(x.requires_grad)


# Whether what is done is being recorded.
_RECORDING = [False]
# Whether a function of tensors on the device is being computed: what torch's C++ makes for it is on the device too,
# where it believes that to be.
_INSIDE = [False]


@contextmanager
def _within(remote: bool) -> Generator[None]:
    before = _INSIDE[0]
    _INSIDE[0] = before or remote
    try:
        yield
    finally:
        _INSIDE[0] = before


def _holds(x: Any) -> bool:
    """Whether there is a tensor on the device in some arguments, or one of those that `vmap` makes of such tensors."""
    functorch: Any = torch._C._functorch  # pyright: ignore
    while isinstance(x, Tensor) and functorch.is_functorch_wrapped_tensor(x):
        x = functorch.get_unwrapped(x)
    return isinstance(x, Remote) or (isinstance(x, (list, tuple)) and any(map(_holds, cast("Sequence[Any]", x))))


def _to(tensor: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of `Tensor.to`, with the device's index, or without a device that the tensor is on already."""
    parse: Any = torch._C._nn._parse_to  # pyright: ignore
    device, dtype, _, memory_format = parse(*args, **kwargs)
    given: dict[str, Any] = {"dtype": dtype, "memory_format": memory_format}
    if device is not None and not (device.type == _DEVICE.type and isinstance(tensor, Remote)):
        given["device"] = _DEVICE if device.type == _DEVICE.type else device
    return (tensor,), {name: x for name, x in given.items() if x is not None} | ({"copy": True} if copy else {})


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """One operation, on the values."""
    tensors: list[Tensor] = []
    wrapped: dict[int, Remote] = {}

    def taken(x: Tensor) -> Tensor:
        tensors.append(x)
        if not isinstance(x, Remote):
            return x
        wrapped[id(x.held)] = x
        return x.held

    inner_args, inner_kwargs = _mapped(taken, args), {name: _mapped(taken, x) for name, x in kwargs.items()}
    _check(func, args, tensors)
    wanted = kwargs.get("device")
    there = bool(wrapped) if wanted is None else torch.device(wanted).type in _there()
    if _RECORDING[0]:
        _check_recorded(func, args, tensors, there)
    if there and wanted is not None:
        inner_kwargs["device"] = torch.device("cpu")
    made = func(*inner_args, **inner_kwargs)
    if func is _aten.copy_.default:
        return args[0]
    # What is changed in place is the tensor that it was. A wrapper has no bit that says that its values are conjugated.
    return _mapped(lambda x: wrapped[id(x)] if id(x) in wrapped else _wrapped(x), made) if there else made


def _wrapped(x: Tensor) -> Remote:
    return Remote(x.resolve_conj().resolve_neg())


def _there() -> tuple[str, ...]:
    """What the device is called."""
    return (_DEVICE.type, "meta") if _INSIDE[0] else (_DEVICE.type,)


def _mapped(change: Callable[[Tensor], Tensor], x: Any) -> Any:
    """The same with its tensors changed: those of lists and tuples too."""
    if isinstance(x, Tensor):
        return change(x)
    if isinstance(x, (list, tuple)):
        return type(x)(_mapped(change, item) for item in cast("Sequence[Any]", x))
    return x


def _check(func: Any, args: Sequence[Any], tensors: Sequence[Tensor]) -> None:
    """Refuse to mix devices.

    Raises:
        RuntimeError: In the words of CUDA.
    """
    if func in _COPIES:
        return
    looked_at = [args[0], *args[2:]] if func in _INDEXED else tensors
    mixed = {isinstance(x, Remote) for x in looked_at if isinstance(x, Tensor) and x.ndim}
    if len(mixed) > 1:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({func})"
        )


def _check_recorded(func: Any, args: Sequence[Any], tensors: Sequence[Tensor], there: bool) -> None:
    """Refuse what a graph can't record.

    Raises:
        RuntimeError: The device would have to be waited for, or something copied to it or from it.
    """
    sides = {isinstance(x, Remote) for x in tensors}
    waits = func in _WAITING and True in sides
    copies = func in _COPIES and {*sides, there} == {True, False}
    if func in _INDEXED and isinstance(args[0], Remote):
        rows = [x for x in args[1] if isinstance(x, Tensor)]
        copies, waits = any(not isinstance(x, Remote) for x in rows), any(x.dtype == torch.bool for x in rows)
    if waits or copies:
        raise RuntimeError(f"operation not permitted when stream is capturing ({func})")


def _refuses(*_: Any) -> None:
    raise RuntimeError("nothing is recorded on a device that isn't there")


@contextmanager
def pretended_cuda() -> Generator[None]:
    """Torch says that it has a CUDA device, and tensors there are as described above."""
    found: dict[str, Callable[..., object]] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "_lazy_init": lambda: None,
        "is_bf16_supported": lambda *_: True,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "is_current_stream_capturing": lambda: False,
        "Stream": _refuses,
    }
    # In inference mode no module can be moved, as parameters are exchanged for wrappers there.
    calm = mock.patch.object(torch, "inference_mode", torch.no_grad)
    with ExitStack() as stack:
        for name, said in found.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, said))
        for mode in (calm, _Functions(), _Operations()):
            stack.enter_context(mode)
        yield


@contextmanager
def recording() -> Generator[None]:
    """On the pretended device, what a CUDA graph could not record is refused, as where one is being recorded."""
    _RECORDING[0] = True
    try:
        with mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=True):
            yield
    finally:
        _RECORDING[0] = False
