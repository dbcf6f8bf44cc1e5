"""Gradients of fused components where torch records some of the calls only."""
import torch

from small_loops import compare
from test_component import B, N, T, random, spike


def test_no_grad_and_in_place():
    """A write under no_grad keeps the gradient of what it writes to."""
    def model(x, w, decay, v, z):
        spikes = []
        v = v.clone()
        for t in range(T):
            with torch.no_grad():
                rest = decay * v
            v -= 0.1 * rest
            v += x[t]
            v = v.mul_(0.9) + z @ w
            with torch.no_grad():
                v.mul_(0.5)
            z = spike(v - 0.1)
            spikes.append(z)
        return spikes, v

    compare(model, random(T, B, N), random(N, N), torch.rand(N).double(), random(B, N),
            torch.zeros(B, N).double())


def test_gradient_of_the_first_iteration_only():
    """What is read requires a gradient in the first iteration only."""
    def model(x, v):
        membranes = []
        for _ in range(T):
            membranes.append(1.0 * v)
            with torch.no_grad():
                rest = 0.5 * v
            v = torch.tanh(rest)
        return membranes

    compare(model, random(T, B, N), random(B, N))


def test_gradient_of_a_value_before_the_loop_only():
    """What another component reads of the iteration before requires a gradient in the first one."""
    def model(v, u):
        membranes = []
        for _ in range(T):
            v_new = torch.tanh(0.9 * v + u)
            with torch.no_grad():
                u = torch.sin(u)
            v = v_new
            membranes.append(v)
        return membranes

    compare(model, random(B, N), random(B, N, seed=1), fused=2)
