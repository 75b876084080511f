"""Tiny checkpoints on disk, ways to break them, and the program in a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import Result

from isobasin.cli.main import run

GPT2 = {"vocab_size": 20, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 40}
LLAMA = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
}
_TOKENS = {"bos_token_id": 0, "eos_token_id": 1}


def gpt2(folder: Path, seed: int = 0, **changes: int) -> Path:
    """A random GPT-2 on disk."""
    return _saved(transformers.GPT2LMHeadModel, transformers.GPT2Config(**{**GPT2, **_TOKENS, **changes}), folder, seed)


def _saved(architecture: Any, config: Any, folder: Path, seed: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = architecture(config)
        for parameter in model.parameters():
            parameter.data.normal_(0.0, 0.4)
    model.save_pretrained(folder)
    return folder


def llama(folder: Path, seed: int = 0) -> Path:
    """A random Llama with grouped queries on disk."""
    return _saved(transformers.LlamaForCausalLM, transformers.LlamaConfig(**LLAMA, **_TOKENS), folder, seed)


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def edit_config(folder: Path, **entries: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "isobasin", *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    """This process's variables without those that change what is printed."""
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "ISOBASIN_DEBUG")}
    # What the fixtures' own process has set must not be what keeps the program's process quiet.
    kept = {k: v for k, v in kept.items() if not k.startswith(("HF_HUB_DISABLE_P", "HF_HUB_VERB", "TRANSFORMERS_"))}
    return {**kept, "HF_HUB_OFFLINE": "1", **more}


def run_process(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, env=environment(**more), timeout=600, check=False
    )


class Forked:
    """The program in a copy of this process: all that a new one would spend seconds to import is there."""

    def __init__(self, *arguments: object, first: Callable[[], object] = lambda: None, **more: str) -> None:
        """Start it.

        Args:
            *arguments: Of the program.
            first: Called in the copy before the program runs: plants what is to happen there, and when.
            **more: Variables of its environment.
        """
        self._streams = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115
        self.pid = os.fork()
        if self.pid == 0:
            self._run([str(argument) for argument in arguments], first, environment(**more))

    def _run(self, arguments: list[str], first: Callable[[], object], variables: dict[str, str]) -> NoReturn:
        code: Any = 1
        try:
            for number, stream in enumerate(self._streams, 1):
                os.dup2(stream.fileno(), number)
            sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
            sys.argv[:] = ["isobasin", *arguments]
            os.environ.clear()
            os.environ.update(variables)
            first()
            run()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait_until_stopped(self) -> None:
        """Wait until SIGSTOP has struck it."""
        assert os.WIFSTOPPED(os.waitpid(self.pid, os.WUNTRACED)[1]), self._said()

    def end(self) -> tuple[int, str, str]:
        """Wait for its end: exit code, negative for a signal, stdout and stderr."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return code, *self._said()

    def _said(self) -> list[str]:
        for stream in self._streams:
            stream.seek(0)
        return [stream.read() for stream in self._streams]


def at_call(place: object, name: str, number: int, count: int = 1) -> None:
    """Send this process a signal at the start of the `count`-th call of a function."""
    function, calls = getattr(place, name), iter(range(1, sys.maxsize))

    def call(*arguments: Any, **options: Any) -> Any:
        if next(calls) == count:
            os.kill(os.getpid(), number)
        return function(*arguments, **options)

    setattr(place, name, call)


def forked(arguments: list[str]) -> str:
    """What two processes print that torchrun could have started."""
    import_module("accelerate")  # once for both
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    both = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    ranks = [Forked(*arguments, RANK=rank, LOCAL_RANK=rank, **both) for rank in "01"]
    ended = [rank.end() for rank in ranks]
    assert [code for code, _, _ in ended] == [0, 0], ended
    return "".join(said for _, said, _ in ended)


def launched(arguments: list[str]) -> str:
    """What torchrun prints."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "isobasin"]
    done = subprocess.run([*launch, *arguments], capture_output=True, text=True, env=environment(OMP_NUM_THREADS="1"))
    assert done.returncode == 0, done.stderr
    return done.stdout


def parsed(result: Result) -> dict[str, Any]:
    """Standard output as JSON, strictly: one line, and no NaN; without what all commands say."""
    assert result.stderr == ""
    assert result.stdout.count("\n") == 1

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    found = json.loads(result.stdout, parse_constant=refuse)
    assert {"command", "schema_version"} <= found.keys()
    return {key: value for key, value in found.items() if key not in ("command", "schema_version")}
