"""A scorer over worker processes: parallel, with a time limit for each design, and safe against what it does to itself.

A design on which the scorer raises, hangs longer than its limit, or takes its process down (a segmentation fault,
``os._exit``, out of memory) is NaN, with that reason, and costs nothing else: its worker is replaced, the designs
behind it go on. The values are those of one process, in the order of the designs, whichever worker had which.

**How.** Each worker is a process of its own, forked off a server that has imported this package and nothing of the
caller's (*forkserver*; *spawn* where there is none), so that a lost one is replaced in a moment. It makes its scorer
once and then answers for one design after another, so that the clock of a design starts when the answer before it
came. Designs go out by the handful, and what a lost worker had not answered yet goes to another. A scorer that likes
company (a network, say) gets ``batch`` designs at a time; where a batch fails, its designs are scored again one by one.

**Scripts.** Python's own pools run the caller's script again in every worker, which is why it has to hide its main part
behind ``if __name__ == "__main__":``. These workers do not. What they need is a scorer that they can find: a function
or an object of an importable module, or ``"scorer.py:my_function"``, which is a file. A function defined in the
running script is found as such a file too; the script then does run once more, under another name, and needs the
guard after all (without it, the pool that it would open inside a worker is refused, with a message that says so). A
lambda or a function inside a function cannot be found.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import multiprocessing
import os
import signal
import sys
import time
import types
from collections import deque
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

from difftilt.core.reward import Reward
from difftilt.errors import ConfigError, DiffTiltError, OracleError
from difftilt.rewards.function import FEW, FunctionReward, as_reward, first_line, load_function
from difftilt.types import Float, Tensor

HANDFUL = 32
"""Most batches that a worker is given at a time."""
INSIDE = "DIFFTILT_INSIDE_WORKER"
"""Set in the environment of a worker."""

Answer = tuple[float, str | None]
"""A value, and why it is NaN."""


@dataclasses.dataclass
class _Worker:
    """A process, and the batches that it was given and has not answered, as row numbers."""

    process: Any
    pipe: Connection
    since: float
    """When it was started, or its present batch began."""
    ready: bool = False
    work: deque[list[int]] = dataclasses.field(default_factory=deque)


class Pool:
    """A reward that asks ``scorer`` in worker processes.

    Args:
        scorer: a reward, a function from designs to numbers, or ``"scorer.py:my_function"``; deterministic.
        workers: processes; one without a ``timeout`` means this process: no protection, and no cost.
        timeout: seconds that one design may take; no limit where not given.
        batch: designs that the scorer gets at a time.
        startup: seconds that a worker may take to make its scorer.

    Raises:
        ConfigError: numbers out of range, a scorer that workers cannot find, or a pool inside a worker.
    """

    def __init__(
        self,
        scorer: Reward | Callable[..., Any] | str,
        *,
        workers: int = 1,
        timeout: float | None = None,
        batch: int = 1,
        startup: float = 120.0,
    ) -> None:
        if workers < 1 or batch < 1 or (timeout is not None and not timeout > 0):
            raise ConfigError(
                f"expected workers and batch from 1 on and a positive timeout; got {workers}, {batch}, {timeout}; "
                "correct them"
            )
        self.workers, self.timeout, self.batch, self.startup = workers, timeout, batch, startup
        self.name = scorer if isinstance(scorer, str) else str(getattr(scorer, "name", type(scorer).__name__))
        self.reasons: list[str | None] = []
        self._crew: list[_Worker] = []
        self._proven, self._losses = False, 0
        self._here: Reward | None = None
        if workers == 1 and timeout is None:
            self._here = load_function(scorer) if isinstance(scorer, str) else as_reward(scorer)
        elif os.environ.get(INSIDE):
            raise ConfigError(
                "expected worker processes to be started by the main program; got a pool inside a worker, which runs "
                'the script that has the scorer; put the rest of that script behind: if __name__ == "__main__":'
            )
        else:
            self._scorer = _findable(scorer)

    def __call__(self, designs: Sequence[Any]) -> Float[Tensor, " B"]:
        """Numbers, NaN where infeasible, float64; a design that stands twice is scored once.

        Raises:
            OracleError: the scorer cannot be made, breaks its contract, or takes down every process.
        """
        designs = list(designs)
        distinct, rows = designs, list(range(len(designs)))
        if all(isinstance(design, str) for design in designs):
            distinct = list(dict.fromkeys(designs))
            place = {design: row for row, design in enumerate(distinct)}
            rows = [place[design] for design in designs]
        answers = _scored(self._here, distinct) if self._here is not None else self._asked(distinct)
        self.reasons = [answers[row][1] for row in rows]
        return torch.tensor([answers[row][0] for row in rows], dtype=torch.float64)

    def close(self) -> None:
        """End the workers; a later call starts new ones."""
        crew, self._crew = self._crew, []
        for worker in crew:
            with contextlib.suppress(OSError, ValueError):
                worker.pipe.send(None)
        for worker in crew:
            worker.process.join(2.0)
            _end(worker)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- the work ------------------------------------------------------------------------------------------------

    def _asked(self, designs: list[Any]) -> list[Answer]:
        """Answers of the workers, in order."""
        answers: dict[int, Answer] = {}
        rows = range(len(designs))
        waiting = deque(list(rows[i : i + self.batch]) for i in range(0, len(rows), self.batch))
        try:
            while len(answers) < len(designs):
                self._hand_out(waiting, designs)
                heard = wait([worker.pipe for worker in self._crew], timeout=self._patience())
                for worker in list(self._crew):
                    if worker.pipe in heard:
                        self._take(worker, answers, waiting, designs)
                    elif time.monotonic() > self._limit(worker):
                        self._lose(worker, "", answers, waiting)
        except BaseException:  # also a keyboard interrupt: nobody waits for these answers any more
            for worker in self._crew:
                _end(worker)
            self._crew = []
            raise
        return [answers[row] for row in rows]

    def _hand_out(self, waiting: deque[list[int]], designs: list[Any]) -> None:
        """Start the workers that are missing, and give work to those that have none."""
        while len(self._crew) < self.workers and len(self._crew) < len(waiting) + sum(bool(w.work) for w in self._crew):
            self._crew.append(_started(self._scorer))
        for worker in self._crew:
            share = min(HANDFUL, -(-len(waiting) // (2 * self.workers)))
            if not worker.work and share:
                worker.work.extend(waiting.popleft() for _ in range(share))
                if worker.ready:
                    _send(worker, designs)

    def _limit(self, worker: _Worker) -> float:
        """When patience with a worker ends."""
        if not worker.ready:
            return worker.since + self.startup
        return (
            math.inf if self.timeout is None or not worker.work else worker.since + self.timeout * len(worker.work[0])
        )

    def _patience(self) -> float | None:
        """Seconds until the first limit."""
        first = min(map(self._limit, self._crew))
        return None if math.isinf(first) else max(0.0, first - time.monotonic()) + 1e-3

    def _take(self, worker: _Worker, answers: dict[int, Answer], waiting: deque[list[int]], designs: list[Any]) -> None:
        """What a worker says."""
        try:
            kind, said = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join(2.0)
            self._lose(worker, f"took its process down ({_cause(worker.process.exitcode)})", answers, waiting)
            return
        if kind == "broken":
            raise OracleError(str(said))
        if kind == "unmade":
            raise OracleError(f"expected workers to make '{self.name}'; got {said}; try it alone")
        if kind == "ready":
            worker.ready = True
            _send(worker, designs)
            return
        worker.since = time.monotonic()
        batch = worker.work.popleft()
        if kind == "failed":
            self._failed(batch, str(said), answers, waiting)
        else:
            answers.update(zip(batch, said, strict=True))
            self._proven, self._losses = True, 0

    def _lose(self, worker: _Worker, reason: str, answers: dict[int, Answer], waiting: deque[list[int]]) -> None:
        """Give up a worker: what it was at is to blame, the rest of its work goes back.

        Raises:
            OracleError: it never got ready; or many in a row are lost, and no design was ever scored.
        """
        self._crew.remove(worker)
        _end(worker)
        if not worker.ready:
            why = reason or f"took longer than {self.startup:g} s"
            raise OracleError(f"expected workers to make '{self.name}'; got one that {why}; try it alone")
        if not worker.work:
            return
        blamed = worker.work.popleft()
        waiting.extendleft(reversed(worker.work))
        reason = reason or f"took longer than {self.timeout:g} s"
        self._failed(blamed, reason, answers, waiting)
        self._losses += 1
        if self._losses >= FEW and not self._proven:
            raise OracleError(f"expected '{self.name}' to score a design; got {FEW} in a row on which it {reason}")

    @staticmethod
    def _failed(batch: list[int], reason: str, answers: dict[int, Answer], waiting: deque[list[int]]) -> None:
        """One design is infeasible; of several, nobody knows which: each is scored again alone."""
        if len(batch) == 1:
            answers[batch[0]] = (math.nan, reason)
        else:
            waiting.extendleft([row] for row in reversed(batch))


# --- one worker -----------------------------------------------------------------------------------------------------


def _started(scorer: Any) -> _Worker:
    """A fresh process that makes ``scorer``; it does not run the script of this one."""
    served = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if served else "spawn")
    if served:
        context.set_forkserver_preload([__name__])
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, scorer), daemon=True)
    with _no_script():
        process.start()
    theirs.close()
    return _Worker(process, ours, since=time.monotonic())


@contextlib.contextmanager
def _no_script() -> Generator[None]:
    """Hide the running script from the new process, and keep numerical libraries to one thread in it."""
    script, threads = sys.modules["__main__"], os.environ.get("OMP_NUM_THREADS")
    sys.modules["__main__"], os.environ["OMP_NUM_THREADS"] = types.ModuleType("__main__"), "1"
    try:
        yield
    finally:
        sys.modules["__main__"] = script
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = threads


def _send(worker: _Worker, designs: list[Any]) -> None:
    worker.since = time.monotonic()
    with contextlib.suppress(OSError):  # it is gone: the end of its pipe says so next
        worker.pipe.send([[designs[row] for row in batch] for batch in worker.work])


def _end(worker: _Worker) -> None:
    """Kill a worker, and what it has started: a scorer may wait for a program that hangs."""
    worker.pipe.close()
    with contextlib.suppress(AttributeError, ProcessLookupError, PermissionError):
        os.killpg(worker.process.pid, signal.SIGKILL)
    worker.process.kill()
    worker.process.join()


def _cause(code: int | None) -> str:
    try:
        return f"exit code {code}" if code is None or code >= 0 else signal.Signals(-code).name
    except ValueError:
        return f"signal {code}"


def _serve(pipe: Connection, scorer: Any) -> None:
    """What a worker does: make the scorer, then answer batch by batch until it is told to end."""
    with contextlib.suppress(AttributeError, PermissionError):
        os.setpgid(0, 0)  # what it starts is killed with it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main program hears an interrupt, and ends its workers
    os.environ[INSIDE] = "1"
    torch.set_num_threads(1)
    try:
        reward = load_function(scorer) if isinstance(scorer, str) else as_reward(scorer)
    except BaseException as error:
        pipe.send(("unmade", f"{type(error).__name__}: {first_line(error)}"))
        return
    if isinstance(reward, FunctionReward):
        reward.proven = True  # whether it fails on everything is seen from where all workers are seen
    pipe.send(("ready", None))
    with contextlib.suppress(EOFError, BrokenPipeError):  # the main program is gone
        while (work := pipe.recv()) is not None:
            for batch in work:
                try:
                    message: tuple[str, Any] = ("answers", _scored(reward, batch))
                except OracleError as error:
                    message = ("broken", str(error))
                except (Exception, SystemExit) as error:
                    message = ("failed", f"{type(error).__name__}: {first_line(error)}")
                pipe.send(message)


def _scored(reward: Reward, designs: list[Any]) -> list[Answer]:
    """Values and reasons of a batch.

    Raises:
        OracleError: not one number for each.
    """
    values = torch.as_tensor(reward(designs), dtype=torch.float64).tolist()
    reasons = list(getattr(reward, "reasons", None) or [None] * len(designs))
    if len(values) != len(designs) or len(reasons) != len(designs):
        raise OracleError(f"expected {len(designs)} numbers, one per design; got {len(values)}; correct the reward")
    return [
        (value, reason) if math.isfinite(value) else (math.nan, reason or f"returned {value}")
        for value, reason in zip(values, reasons, strict=True)
    ]


def _findable(scorer: Reward | Callable[..., Any] | str) -> Any:
    """What a fresh process can make the scorer of: itself, or ``"file.py:function"``.

    Raises:
        ConfigError: it cannot be found there.
    """
    if isinstance(scorer, str):
        load_function(scorer)  # what is wrong with it is said here, once
        return scorer
    inner = scorer.function if isinstance(scorer, FunctionReward) else scorer
    name = getattr(inner, "__qualname__", None)
    module = sys.modules.get(getattr(inner, "__module__", None) or type(inner).__module__)
    if module is not None and not _importable(module.__name__):
        file = getattr(module, "__file__", None)
        if file is None or name is None or not name.isidentifier():
            raise _lost(scorer)
        return f"{file}:{name}"
    try:
        ForkingPickler.dumps(scorer)  # as it will be sent
    except (AttributeError, TypeError, ValueError, DiffTiltError) as error:
        raise _lost(scorer) from error
    except Exception as error:  # a pickling error, whose class is not imported here
        raise _lost(scorer) from error
    return scorer


def _importable(name: str) -> bool:
    try:
        return name != "__main__" and importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _lost(scorer: Any) -> ConfigError:
    name = getattr(scorer, "__qualname__", type(scorer).__qualname__)
    return ConfigError(
        f"expected a scorer that worker processes can find; got '{name}'; put it on the top level of a file, and pass "
        "'scorer.py:my_function'"
    )
