"""Signals, a fork, the end of memory and wrong settings while a pass runs."""
import os
import sys

import pytest

from operator_calls import needs_compiled, python_output

pytestmark = [
    needs_compiled,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no signals of this kind")]


# A layer so long that nobody waits for its end: x has the memory of one number. The signal comes as
# soon as the kernels run, and again until a handler has run. How far a pass would come is told by
# the steps: none here could be finished.
SIGNALS = """
import os, signal, threading, torch
from lsnn_ext import ALIF, functional
torch.manual_seed(0)
THREADS, BACKWARD = {threads}, {backward}
torch.set_num_threads(THREADS)
K = dict(alpha=.9, theta=.3, rho=.95, beta=.5)
N, B = 512, {items}
w = (torch.randn(N, N) / N**.5).requires_grad_()
small = torch.rand(40, 3, N)
def whole():
    spikes, state = functional.alif(small, w, **K)
    return spikes, torch.autograd.grad(spikes.sum(), w)[0]
want = whole()
class Alarm(Exception): pass
raised = []
def handler(number, frame):
    if not raised:
        raised.append(number)
        raise {error}
signal.signal(signal.SIGUSR1, handler)
done = threading.Event()
def alarm():
    while not raised and not done.wait(.05):
        os.kill(os.getpid(), signal.SIGUSR1)
steps = 400_000_000 // (N * B)
if BACKWARD:
    x = torch.full((), .4).expand(min(steps, 3000), B, N)
    spikes, _ = functional.alif(x, w, **K)
    loss = spikes.sum()
thread = threading.Thread(target=alarm)
try:
    thread.start()
    if BACKWARD:
        for _ in range(10000):
            torch.autograd.grad(loss, w, retain_graph=True)
    else:
        with torch.no_grad():
            for _ in range(10000):
                functional.alif(torch.full((), .4).expand(min(steps, 3000), B, N), w, **K)
except {error} as error:
    print("stopped by", type(error).__name__)
finally:
    done.set()
    thread.join()
for got, wanted in zip(whole(), want):
    assert torch.equal(got, wanted)
print("intact")
"""


@pytest.mark.parametrize(("threads", "items", "members", "error"), [
    (1, 1, "", "KeyboardInterrupt"), (2, 33, "", "Alarm"), (2, 1, "2", "KeyboardInterrupt")],
    ids=["one-thread", "two-threads", "team"])
@pytest.mark.parametrize("backward", [False, True])
def test_a_signal_handler_that_raises_ends_the_pass(backward: bool, threads: int, items: int,
                                                    members: str, error: str) -> None:
    code = SIGNALS.format(threads=threads, backward=backward, items=items, error=error)
    assert python_output(code, LSNN_TEAM_SIZE=members) == f"stopped by {error}\nintact\n"


# One pass only, which takes minutes: the handler must run inside it.
INSIDE = """
import os, signal, threading, time, torch
from lsnn_ext import _ops, functional
torch.set_num_threads(1)
N = 64
w = torch.zeros(N, N)
inside = []
def handler(number, frame):
    inside.append(running)
    raise KeyboardInterrupt
signal.signal(signal.SIGINT, handler)
x = torch.zeros(N).expand(1 << 22, 32, N)
running = False
def press():  # once this process has worked for a second, whatever else runs: the pass has begun
    while time.process_time() < begun + 1:
        time.sleep(.01)
    os.kill(os.getpid(), signal.SIGINT)
thread = threading.Thread(target=press)
out = None
try:
    begun = time.process_time()
    thread.start()
    running = True
    out = torch.ops.lsnn.alif_forward(
        x, [torch.zeros(32, N)] * 4 + [torch.zeros(1, 32, N)],
        torch.full((11, 1), .5).expand(11, N), [w], [0], [], [],
        list(_ops.Constants()), [.3, 0., 1.], [])
except RuntimeError as error:
    print(error)
running = False
thread.join()
print(inside, out)
"""


def test_a_handler_runs_inside_a_pass() -> None:
    """The bare operator says so; functional.alif raises what the handler raised (above)."""
    assert python_output(INSIDE) == "interrupted by a signal\n[True] None\n"


FORKS = """
import os, sys, threading, torch
from lsnn_ext import _ops
like, stop = torch.zeros(()), threading.Event()
def churn():
    while not stop.is_set():
        torch.ops.lsnn.buffer(like, 1, 1 << 19)
threads = [threading.Thread(target=churn, daemon=True) for _ in range(3)]
for thread in threads: thread.start()
for _ in range(200):
    child = os.fork()
    if not child:
        torch.ops.lsnn.buffer(like, 1, 1 << 19)
        _ops._C.empty_cache()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
stop.set()
for thread in threads: thread.join()
print("done")
"""


def test_fork_while_another_thread_is_inside_the_block_cache() -> None:
    """With a mutex that stays locked the child would wait for ever."""
    assert python_output(FORKS) == "done\n"


MEMORY = """
import re, resource, torch
from lsnn_ext import functional
torch.set_num_threads(2)
N, B = 600, 64
x = torch.rand(40, B, N)
w = (torch.randn(N, N) / N**.5).requires_grad_()
delay = torch.arange(N * N).view(N, N) % 12
spikes, _ = functional.alif(x, w, alpha=.9, theta=.3, delay=delay)
want, = torch.autograd.grad(spikes.sum(), w, retain_graph=True)
from lsnn_ext import _ops
_ops._C.empty_cache()
used = int(open("/proc/self/statm").read().split()[0]) * 4096
refused = []
for mb in range(0, 4000, 20):
    _ops._C.empty_cache()
    resource.setrlimit(resource.RLIMIT_AS, (used + (mb << 20), -1))
    try:
        got, = torch.autograd.grad(spikes.sum(), w, retain_graph=True)
    except (MemoryError, RuntimeError) as error:
        refused.append(str(error))
    else:
        break
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
assert torch.equal(torch.autograd.grad(spikes.sum(), w)[0], want)
for text in refused:
    assert re.search("not enough memory: [0-9]+ bytes", text), text
print(len(refused) > 2)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_memory_that_ends_inside_a_parallel_part_is_named() -> None:
    assert python_output(MEMORY) == "True\n"


# The setting is read when the first operator runs: each one has a process, which begins as a copy.
SETTINGS = """
import os, sys, torch
from lsnn_ext import functional
torch.set_num_threads(1)
for given in {settings!r}:
    sys.stdout.flush()
    child = os.fork()
    if not child:
        os.environ["LSNN_CACHE_MB"] = given
        try:
            functional.alif(torch.zeros(2, 2, 2), torch.zeros(2, 2), alpha=.9, theta=.5)
        except RuntimeError as error:
            print(error)
        else:
            print("fine")
        sys.stdout.flush()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_size_of_the_cache() -> None:
    bad = ("abc", "-5", "1.5", "99999999999999")
    said = python_output(SETTINGS.format(settings=(*bad, "", "0", "64"))).splitlines()
    assert said == [*(f"LSNN_CACHE_MB: expected a whole number of megabytes >= 0, got '{given}'"
                      for given in bad), *["fine"] * 3]
