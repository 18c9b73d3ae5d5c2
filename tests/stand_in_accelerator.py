"""A stand-in for a GPU: a device of torch that computes on the CPU, but keeps its tensors apart as CUDA does.

It is a backend written in Python (`torch.utils.backend_registration`). A tensor on it holds one of the CPU and
computes there; an operation that mixes it with an ordinary tensor of the CPU raises, as CUDA does; and it counts
operations, and how often the host has to wait for the device. So a forgotten `.to(device)`, a `.numpy()`
without `.cpu()` or a needless `.item()` shows on machines without any GPU.

torch counts its devices at the first backward pass of a process: this module is imported before (conftest.py).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

try:
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend as _setup
except ImportError:
    _setup = None
# A registered backend takes the place of a real one in torch.accelerator.
if torch.cuda.is_available() or torch.backends.mps.is_available():
    _setup = None

NAME = "standin"
aten = torch.ops.aten
# Between devices on purpose.
_COPIES = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default}
# The host reads something off the device.
_QUESTIONS = {
    aten._local_scalar_dense.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
}
# CUDA takes indices of the CPU for a tensor of its own.
_INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class Counts(NamedTuple):
    """What went on inside a block: operations by name, and waits of the host by what it waited for."""

    operations: Counter[str]
    waits: Counter[str]


class _Module:
    """What torch asks of a device's module."""

    active = False

    def is_available(self) -> bool:
        return self.active

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1 if self.active else 0

    def get_device_name(self, number: int) -> str:
        return "stand-in of the tests"

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """The generator of the CPU draws the numbers here, and torch seeds that one itself."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: object = None) -> None:
        torch.set_rng_state(state)


_module = _Module()
DEVICE = torch.device("cpu")
if _setup is not None:
    _setup(NAME, backend_module=_module)
    DEVICE = torch.device(NAME, 0)
_counts = Counts(Counter(), Counter())


def _cast_first(name: str):
    """Under autocast, an operation in the lower precision, as CUDA takes it for products."""

    def call(*arguments):
        dtype = torch.get_autocast_dtype(NAME)

        def lower(one):
            return one.to(dtype) if isinstance(one, torch.Tensor) and one.is_floating_point() else one

        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
            return getattr(aten, name)(*map(lower, arguments))

    return call


def _fused_attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False
):
    """Attention as one operation, as GPUs have it."""
    return aten._scaled_dot_product_fused_attention_overrideable(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale
    )[0]


def _attention_forward(query, key, value, bias=None, dropout=0.0, causal=False, with_mask=False, *, scale=None):
    out, logsumexp = aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout, causal, attn_mask=bias, scale=scale
    )
    nothing = torch.empty(0)
    return out, logsumexp, nothing, nothing, query.shape[2], key.shape[2], nothing, nothing, nothing


def _attention_backward(
    gradient, query, key, value, bias, wanted, out, logsumexp, cum_q, cum_k, q, k, dropout, causal, *rest, scale=None
):
    gradients = aten._scaled_dot_product_flash_attention_for_cpu_backward(
        gradient, query, key, value, out, logsumexp, dropout, causal, attn_mask=bias, scale=scale
    )
    return *gradients, torch.empty(0)


# Operations of accelerators alone, as the CPU has them.
_FORMS = {}
if _setup is not None:
    _rest = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")  # libraries live as long as their objects
    _rest.fallback(torch.library.fallthrough_kernel)
    _products = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
    for _name in ("linear", "conv2d", "matmul"):
        _products.impl(_name, _cast_first(_name))
    _attention = torch.library.Library("aten", "IMPL", "AutogradPrivateUse1")
    _attention.impl("scaled_dot_product_attention", _fused_attention)
    _FORMS = {
        aten._scaled_dot_product_fused_attention_overrideable.default: _attention_forward,
        aten._scaled_dot_product_fused_attention_overrideable_backward.default: _attention_backward,
    }


def available() -> bool:
    """Whether this torch can have backends written in Python, and there is no real accelerator in its way."""
    return _setup is not None


class OnDevice(torch.Tensor):
    """A tensor on the stand-in; `held` is the one of the CPU in which its values lie."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        made.held = held.detach()
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self) -> str:
        return f"OnDevice({self.held!r})"

    # Those go past the dispatcher. They stand in the class, so that autograd's own threads meet them too.
    def tolist(self):
        _counts.waits["tolist"] += 1
        return self.held.tolist()

    def numpy(self, **options):
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *arguments):
        return self.numpy()

    def new_tensor(self, data, dtype=None, device=None, requires_grad=False):
        made = torch.tensor(data, dtype=self.dtype if dtype is None else dtype, requires_grad=requires_grad)
        return made.to(self.device if device is None else device)

    def __getitem__(self, index):
        parts = index if isinstance(index, tuple) else (index,)
        return super().__getitem__(tuple(torch.tensor(one) if isinstance(one, list) else one for one in parts))

    def __reduce_ex__(self, protocol):
        return _rebuild, (self.held,)

    def __deepcopy__(self, memo):
        copy = OnDevice(self.held.clone()).requires_grad_(self.requires_grad)
        return torch.nn.Parameter(copy, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copy

    def data_ptr(self):
        raise RuntimeError(f"{NAME}: no memory that the host could read")


def _rebuild(held: torch.Tensor) -> torch.Tensor:
    """What is saved on a device comes back on the device where there is one."""
    return OnDevice(held) if _module.active else held


class _Factories(TorchDispatchMode):
    """Calls that name the device without having a tensor of it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _beside(constructor):
    """`torch.tensor(..., device=...)` and its like go past the dispatcher: made on the CPU, then brought over."""

    def call(*arguments, device=None, **options):
        if not _is_ours(device):
            return constructor(*arguments, device=device, **options)
        return constructor(*arguments, **options).to(device)

    return call


def _is_ours(device: object) -> bool:
    return device is not None and torch.device(device).type == NAME


def _run(func, args, kwargs):
    """One operation: on the CPU, if all of its tensors are where CUDA would want them."""
    tensors: list[torch.Tensor] = []
    plain_args, plain_kwargs = _unwrapped(args, tensors), _unwrapped(kwargs, tensors)
    ours = any(isinstance(tensor, OnDevice) for tensor in tensors)
    target = kwargs.get("device")
    if not ours and not _is_ours(target):
        return func(*args, **kwargs)
    _counts.operations[str(func)] += 1
    if ours and func not in _COPIES:
        _check_devices(func, args, tensors)
    _note_waits(func, args, kwargs, ours)
    stays = _is_ours(target) if target is not None else ours
    if target is not None:
        plain_kwargs["device"] = torch.device("cpu")
    plain_kwargs.pop("pin_memory", None)
    result = _FORMS.get(func, func)(*plain_args, **plain_kwargs)
    if func is aten._to_copy.default and not ours and result is args[0]:
        result = result.clone()
    if func._schema.is_mutable:
        return _mutated(func, args, kwargs, result)
    return _wrapped(result) if stays else result


def _unwrapped(value, tensors: list[torch.Tensor]):
    """Arguments with the held tensors in place of ours; every tensor is added to the list as it came."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return value.held if isinstance(value, OnDevice) else value
    if isinstance(value, (list, tuple)):
        return type(value)([_unwrapped(one, tensors) for one in value])
    if isinstance(value, dict):
        return {key: _unwrapped(one, tensors) for key, one in value.items()}
    return value


def _wrapped(result):
    if isinstance(result, torch.Tensor):
        return OnDevice(result)
    return type(result)([_wrapped(one) for one in result]) if isinstance(result, (list, tuple)) else result


def _mutated(func, args, kwargs, result):
    """What an in-place operation, or one with `out`, gives: the very tensors that it wrote into."""
    written = [
        kwargs.get(argument.name, args[i] if i < len(args) else None)
        for i, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    returned = [value.alias_info is not None and value.alias_info.is_write for value in func._schema.returns]
    if not any(returned):
        return _wrapped(result)
    if len(returned) == 1:
        return written[0]
    rest = iter(written)
    return tuple(next(rest) if one else _wrapped(value) for one, value in zip(returned, result, strict=True))


def _check_devices(func, args, tensors) -> None:
    strangers = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.ndim > 0]
    if func in _INDEXING and isinstance(args[0], OnDevice):
        indices = [index for index in args[1] if index is not None]
        strangers = [tensor for tensor in strangers if not any(tensor is index for index in indices)]
    if strangers:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and "
            f"{strangers[0].device}! (in {func})"
        )


def _note_waits(func, args, kwargs, ours: bool) -> None:
    """Count what makes the host wait: values that it asks for, and copies that it does not let run alone."""
    name = func.overloadpacket.__name__
    if func in _QUESTIONS:
        if not (func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is not None):
            _counts.waits[name] += 1
    elif func in _INDEXING and isinstance(args[0], OnDevice):
        indices = [index for index in args[1] if index is not None]
        fill = func is not aten.index.Tensor and args[2].ndim == 0
        if not fill and any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            _counts.waits[f"{name} by mask"] += 1
        if any(not isinstance(index, OnDevice) for index in indices):
            _counts.waits["index from the CPU"] += 1
    elif func is aten._to_copy.default:
        # A copy between pinned memory and the device may run alone; so may one that stays on its device.
        crosses = kwargs.get("device") is not None and ours != _is_ours(kwargs["device"])
        if crosses and not kwargs.get("non_blocking"):
            _counts.waits["copy to the CPU" if ours else "copy from the CPU"] += 1
    elif func is aten.copy_.default and isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice):
        alone = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
        if not alone and args[1].ndim > 0:
            _counts.waits["copy from the CPU" if isinstance(args[0], OnDevice) else "copy to the CPU"] += 1


@contextlib.contextmanager
def stand_in() -> Iterator[Counts]:
    """Inside the block the stand-in is there, as `--device standin` and for `auto`; gives what it counts.

    Raises:
        RuntimeError: this torch has no backends in Python.
    """
    if _setup is None:
        raise RuntimeError("the stand-in accelerator needs a torch with backends in Python, and no real accelerator")
    _module.active = True
    _counts.operations.clear()
    _counts.waits.clear()
    constructors = {name: getattr(torch, name) for name in ("tensor", "as_tensor", "asarray")}
    for name, constructor in constructors.items():
        setattr(torch, name, _beside(constructor))
    entering, leaving = torch.inference_mode.__enter__, torch.inference_mode.__exit__
    # Tensors that wrap others cannot be inference tensors: without gradient is all that can be had.
    torch.inference_mode.__enter__ = lambda self: torch.no_grad.__enter__(self)
    torch.inference_mode.__exit__ = lambda self, *error: torch.no_grad.__exit__(self, *error)
    try:
        with _Factories():
            yield _counts
    finally:
        for name, constructor in constructors.items():
            setattr(torch, name, constructor)
        torch.inference_mode.__enter__, torch.inference_mode.__exit__ = entering, leaving
        _module.active = False
