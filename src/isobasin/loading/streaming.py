"""A model in memory, or one whose layers are there only while they run: one layer at a time, for all inputs.

Layers are the entries of a model's outermost lists of modules, whatever they are. Every input has a thread, of which
one runs at a time: it gives way to the next before each layer, so that a layer is made once, used for all inputs, and
let go. What is computed is what a held model computes, operation by operation.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Semaphore
from typing import Any, TypeVar

from torch import Tensor, nn

from isobasin.loading.deferred import Deferred

S = TypeVar("S")
T = TypeVar("T")
Change = Callable[[str, Tensor], None]
"""Changes a tensor in place, given its name in a model's `state_dict`."""


class Held:
    """A model that is in memory.

    Attributes:
        module: The model.
    """

    def __init__(self, module: Any, device: str) -> None:
        """Move a model to a device."""
        self.module = module.to(device)

    def each(self, call: Callable[[S], T], inputs: Sequence[S]) -> list[T]:
        """What a function that runs the model returns for each of several inputs."""
        return [call(given) for given in inputs]

    def values(self, kept: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The tensors of `state_dict` as they are now.

        Args:
            kept: Makes the copy that is kept of each, unless it can be made again.
        """
        return {name: kept(tensor) for name, tensor in self.module.state_dict().items()}

    def change(self, change: Change) -> None:
        """Change all tensors of `state_dict` in place; one that has several names is changed once, under the first."""
        seen = set[int]()
        for name, tensor in self._there():
            if tensor.data_ptr() not in seen:
                change(name, tensor)
                seen.add(tensor.data_ptr())

    def _there(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors of `state_dict` that are in memory."""
        yield from self.module.state_dict().items()


class Streamed(Held):
    """A model of which one layer is in memory.

    Attributes:
        module: The model. What isn't there is on torch's device "meta", where nothing is computed: a part that doesn't
            run by being called as a layer raises.
    """

    def __init__(self, module: Any, device: str) -> None:
        """Take a model whose tensors are deferred, and make those that aren't in one layer alone."""
        self.module, self._device = module, device
        self._change: Change | None = None
        self._turns = _Turns(0)
        self._layer: nn.Module | None = None
        self._deferred = {name: x for name, x in _tensors(module) if isinstance(x, Deferred)}
        where: dict[int, list[str]] = defaultdict(list)
        for name, tensor in self._deferred.items():
            where[id(tensor)].append(name)
        self._inside: dict[nn.Module, list[str]] = {}
        for name, layer in layers(module):
            names = [inner for inner, _ in _tensors(layer, f"{name}.")]
            self._inside[layer] = [x for x in names if x in self._deferred and len(where[id(self._deferred[x])]) == 1]
        self._absent = {name for names in self._inside.values() for name in names}
        for first, *others in where.values():
            if first not in self._absent:
                made = self._put(first, self._deferred[first].make())
                for name in others:
                    self._put(name, made)
        for names in self._inside.values():
            self._let_go(names)
        module._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(device))

    def each(self, call: Callable[[S], T], inputs: Sequence[S]) -> list[T]:
        """See `Held.each`; all inputs go through a layer before the next is made."""
        self._turns = turns = _Turns(len(inputs))
        hooks = [layer.register_forward_pre_hook(self._enter) for layer in self._inside]
        try:
            with ThreadPoolExecutor(len(inputs)) as pool:
                running = [pool.submit(turns.run, index, call, given) for index, given in enumerate(inputs)]
                try:
                    wait(running)
                finally:
                    turns.over = True
        finally:
            self._exit()
            for hook in hooks:
                hook.remove()
        if turns.error is not None:
            raise turns.error
        return [future.result() for future in running]

    def values(self, kept: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """See `Held.values`; what is deferred stays so."""
        return {n: self._deferred[n] if n in self._absent else kept(x) for n, x in self.module.state_dict().items()}

    def change(self, change: Change) -> None:
        """See `Held.change`; layers are changed whenever they are made."""
        super().change(change)
        self._change = change

    def _there(self) -> Iterator[tuple[str, Tensor]]:
        """See `Held._there`: those that are in one layer alone aren't."""
        yield from ((name, x) for name, x in super()._there() if name not in self._absent)

    def _enter(self, layer: nn.Module, *_: Any) -> None:
        """Let the others come as far, then make a layer, unless it is the one that is there."""
        self._turns.give_way()
        if layer is self._layer:
            return
        self._exit()
        self._layer = layer
        for name in self._inside[layer]:
            made = self._put(name, self._deferred[name].make().to(self._device))
            if self._change is not None:
                self._change(name, made.detach())

    def _exit(self) -> None:
        if self._layer is not None:
            self._let_go(self._inside[self._layer])
            self._layer = None

    def _let_go(self, names: Iterable[str]) -> None:
        for name in names:
            self._put(name, self._deferred[name].shaped)

    def _put(self, name: str, tensor: Tensor) -> Tensor:
        """Put a tensor where a name of `state_dict` says, and return what is there now."""
        path, _, key = name.rpartition(".")
        module = self.module.get_submodule(path)
        if key in module._parameters and not isinstance(tensor, nn.Parameter):
            # Some modules choose how to compute by it, whatever the mode.
            tensor = nn.Parameter(tensor, requires_grad=self._deferred[name].requires_grad)
        setattr(module, key, tensor)
        return tensor


class _Turns:
    """Threads of which one runs at a time, until it gives way to the next.

    Attributes:
        over: Whether all should end.
        error: The first that one ended with.
    """

    def __init__(self, count: int) -> None:
        self.error: BaseException | None = None
        self._waiting = [Semaphore(0) for _ in range(count)]
        self._order = deque(self._waiting)
        self.over = False
        self._wake()

    def run(self, index: int, call: Callable[[S], T], given: S) -> T:
        """What a function returns, when it is the turn of the thread of this index; an error ends all others."""
        try:
            self._await(self._waiting[index])
            return call(given)
        except BaseException as error:
            self.error, self.over = self.error or error, True
            raise
        finally:
            self._order.popleft()
            self._wake()

    def give_way(self) -> None:
        """Wait until all others have given way, or are done."""
        mine = self._order[0]
        self._order.rotate(-1)
        self._wake()
        self._await(mine)

    def _await(self, turn: Semaphore) -> None:
        turn.acquire()
        if self.over:
            raise _OverError

    def _wake(self) -> None:
        if self._order:
            self._order[0].release()


class _OverError(Exception):
    """Ends a thread because another one failed."""


def at_once(module: nn.Module) -> int:
    """How many values of a model are in memory when it is streamed: its largest layer, and what is outside of all."""
    sizes = [sum(x.numel() for x in layer.parameters()) for _, layer in layers(module)]
    return sum(x.numel() for x in module.parameters()) - sum(sizes) + max(sizes, default=0)


def _tensors(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers under each of their names."""
    for named in (module.named_parameters, module.named_buffers):
        yield from named(prefix.removesuffix("."), remove_duplicate=False)


def layers(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The entries of the outermost lists of modules in a model, each with its name."""
    for name, child in module.named_children():
        there = f"{path}.{name}".removeprefix(".")
        if isinstance(module, nn.ModuleList):
            yield there, child
        else:
            yield from layers(child, there)
