"""Processes that are killed, forked, spawned, short of memory or at their end: what is on disk and what others see."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from radam_fused import FusedRAdam
from tests.support.helpers import same_bits
from tests.support.mixed_dtypes import give, parameters
from tests.support.paths import ROOT

START = """
import os, sys, threading, time, torch
from radam_fused import FusedRAdam
from tests.support.mixed_dtypes import give, parameters
params = parameters()
opt = FusedRAdam(params, lr=0.01)
def train(steps):
    for t in steps:
        give(params, t)
        opt.step()
"""


def run(code: str, *arguments: str, killed: bool = False) -> str:
    done = subprocess.run(
        [sys.executable, "-c", START + textwrap.dedent(code), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (-signal.SIGKILL if killed else 0), done.stderr[-3000:]
    return done.stdout


def resumed(state: dict) -> list[torch.Tensor]:
    """Parameters after two steps from a checkpoint."""
    params = parameters()
    opt = FusedRAdam(params, lr=0.01)
    with torch.no_grad():
        for p, value in zip(params, state["params"], strict=True):
            p.copy_(value)
    opt.load_state_dict(state["opt"])
    for t in range(3, 5):
        give(params, t)
        opt.step()
    return [p.detach() for p in params]


SAVE = """
train(range(3))
def save(path):
    torch.save({"params": [p.detach() for p in params], "opt": opt.state_dict()}, path)
save(sys.argv[1])
"""
IN_A_SAVE = """
import signal
real, written = torch.serialization._save, []
def killed_later(*arguments, **options):
    zip_file = arguments[1]
    class Killing:
        def write_record(self, *record):
            written.append(1)
            if len(written) == int(sys.argv[3]):
                os.kill(os.getpid(), signal.SIGKILL)
            return zip_file.write_record(*record)
        def __getattr__(self, name):
            return getattr(zip_file, name)
    return real(arguments[0], Killing(), *arguments[2:], **options)
train(range(3, 5))
torch.serialization._save = killed_later
save(sys.argv[2])
"""


@pytest.mark.long
@pytest.mark.parametrize("record", [1, 2, 5])
def test_killed_in_a_save(record: int, tmp_path: Path) -> None:
    """The file before is whole; the one that was being written is refused, not half read. As with any optimizer."""
    good, bad = tmp_path / "good.pt", tmp_path / "bad.pt"
    run(SAVE + IN_A_SAVE, str(good), str(bad), str(record), killed=True)
    expected = resumed(torch.load(good, weights_only=True))
    assert all(value.isfinite().all() for value in expected)
    with pytest.raises((RuntimeError, EOFError, OSError)):
        torch.load(bad, weights_only=True)


DCP = """
import signal, warnings
import torch.distributed.checkpoint as dcp
warnings.simplefilter("ignore")
train(range(3))
dcp.save({"opt": opt.state_dict()}, checkpoint_id=sys.argv[1])
train(range(3, 5))
real, calls = os.rename, []
def killing(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
from torch.distributed.checkpoint.filesystem import FileSystem
FileSystem.rename = killing
dcp.save({"opt": opt.state_dict()}, checkpoint_id=sys.argv[2])
"""


@pytest.mark.long
def test_killed_in_a_distributed_save(tmp_path: Path) -> None:
    """Before its metadata gets its name a checkpoint is none; the one before is whole."""
    import torch.distributed.checkpoint as dcp

    good, bad = tmp_path / "good", tmp_path / "bad"
    run(DCP, str(good), str(bad), killed=True)
    assert (good / ".metadata").exists()
    assert not (bad / ".metadata").exists()
    params = parameters()
    opt = FusedRAdam(params, lr=0.01)
    for t in range(3):
        give(params, t)
        opt.step()
    template = opt.state_dict()
    with pytest.raises(BaseException, match=r"metadata|No such file"):  # torch's own is no Exception
        dcp.load({"opt": template}, checkpoint_id=bad)
    dcp.load({"opt": template}, checkpoint_id=good)
    opt.load_state_dict(template)


@pytest.mark.long
def test_killed_in_a_step(tmp_path: Path) -> None:
    """Memory is gone with the process; the checkpoint goes on with the bits of a run that was not killed."""
    path = tmp_path / "state.pt"
    code = """
    import signal
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
    while True:
        train(range(3, 100))
    """
    run(SAVE + textwrap.dedent(code), str(path), killed=True)
    state = torch.load(path, weights_only=True)
    params = parameters()
    opt = FusedRAdam(params, lr=0.01)
    for t in range(5):
        give(params, t)
        opt.step()
    assert all(same_bits(a, b) for a, b in zip(params, resumed(state), strict=True))
    # The negative control: a checkpoint of another step gives other bits.
    state["opt"]["state"][0]["step"] += 1
    assert not all(same_bits(a, b) for a, b in zip(params, resumed(state), strict=True))


@pytest.mark.long
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_steps_its_own(method: str) -> None:
    """A forked child has copies of all; torch's threads are not in it, so it takes one (torch's own rule)."""
    code = """
    import torch.multiprocessing as mp
    def child(given, queue):
        torch.set_num_threads(1)
        params, opt = given
        for t in range(3, 5):
            give(params, t)
            opt.step()
        queue.put([p.detach().tolist() for p in params])
    if __name__ == "__main__":
        train(range(3))
        context = mp.get_context("fork")
        queue = context.SimpleQueue()
        process = context.Process(target=child, args=((params, opt), queue))
        process.start()
        theirs = queue.get()
        process.join()
        mine = [p.detach().tolist() for p in params]
        train(range(3, 5))
        assert theirs == [p.detach().tolist() for p in params]
        assert mine != theirs
    """
    if method == "spawn":  # a file, as a spawned process imports it
        code = """
        import pickle, subprocess
        train(range(3))
        child = "import pickle, sys; params, opt = pickle.load(sys.stdin.buffer)\\n"
        child += "from tests.support.mixed_dtypes import give\\n"
        child += "for t in range(3, 5):\\n  give(params, t)\\n  opt.step()\\n"
        child += "sys.stdout.buffer.write(pickle.dumps([p.detach().tolist() for p in params]))"
        command = [sys.executable, "-c", child]
        done = subprocess.run(command, input=pickle.dumps((params, opt)), capture_output=True, check=True)
        train(range(3, 5))
        assert pickle.loads(done.stdout) == [p.detach().tolist() for p in params]
        """
    run(textwrap.dedent(code))


@pytest.mark.long
def test_threads_step_their_own_optimizers() -> None:
    """Four threads, each with its own model: the bits of one after the other."""
    code = """
    def own(results, index):
        params = parameters()
        opt = FusedRAdam(params, lr=0.01 * (index + 1))
        for t in range(40):
            give(params, t)
            opt.step()
        results[index] = [p.detach().clone() for p in params]
    together, alone = {}, {}
    threads = [threading.Thread(target=own, args=(together, i)) for i in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    for i in range(4): own(alone, i)
    assert all(torch.equal(a, b) for i in range(4) for a, b in zip(together[i], alone[i]))
    assert not torch.equal(alone[0][0], alone[1][0])
    """
    run(code)


@pytest.mark.long
def test_the_end_of_the_interpreter() -> None:
    """A step in an exit function, and an optimizer that only a cycle holds."""
    code = """
    import atexit, builtins
    train(range(2))
    atexit.register(train, range(2, 4))
    builtins.kept = opt
    opt.self = opt
    print("end")
    """
    assert run(code) == "end\n"


@pytest.mark.long
def test_a_daemon_thread_in_a_step_when_the_interpreter_ends() -> None:
    """CPython unwinds it where it asks for the GIL. It is there nearly all the time, as the model is large."""
    code = """
    torch.set_num_threads(1)
    large = torch.nn.Parameter(torch.zeros(2**23))
    large.grad = torch.ones_like(large)
    opt = FusedRAdam([large], backend="cpu")
    opt.step()
    def step():
        while True: opt.step()
    threading.Thread(target=step, daemon=True).start()
    for _ in range(3):
        taken = float(opt.state[large]["step"])
        while float(opt.state[large]["step"]) == taken: pass
    print("end")
    """
    assert run(code) == "end\n"


@pytest.mark.long
def test_limits_of_memory() -> None:
    """An address space that is too small for the state by ever less: MemoryError, and nothing has changed."""
    code = """
    import resource
    n = 4_000_000
    failed = stepped = 0
    for spare in range(0, 64, 8):
        p = torch.nn.Parameter(torch.ones(n)); p.grad = torch.ones(n)
        opt = FusedRAdam([p])
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + spare * 2**20, -1))
        try:
            opt.step()
        except (RuntimeError, MemoryError):
            failed += 1
            resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
            assert bool((p == 1).all()) and not opt.state.get(p)
            opt.step()
        else:
            stepped += 1
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        assert float(opt.state[p]["step"]) == 1.0 and bool((p != 1).all())
    assert failed and stepped, (failed, stepped)
    print(failed, stepped)
    """
    run(code)


def test_denormals_stay_when_another_library_flushes_them() -> None:
    """`torch.set_flush_denormal` is the calling thread's: steps keep denormals in threads that did not ask for it."""
    p = nn.Parameter(torch.full((8,), 1e-42))
    p.grad = torch.zeros(8)
    opt = FusedRAdam([p], lr=0.1)
    opt.step()
    assert same_bits(p, torch.full((8,), 1e-42))
    opt.state[p]["exp_avg"].fill_(1e-42)
    opt.step()
    assert opt.state[p]["exp_avg"].any()
