"""The ways in which ``ntxent`` may be called: what else watches the call must see the right thing.

Second derivatives, default devices, lazy views, transforms, autocast, and the raw operator.
"""

# shapes: N samples, V views, M = V * N rows, D embedding
from __future__ import annotations

import subprocess
import sys
import timeit

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastssl.kernels import native as compiled
from fastssl.kernels.eager import is_plain
from fastssl.kernels.ntxent import native, op, reference
from fastssl.kernels.ntxent.op import ntxent
from tests.kernels.judge import eager


def registered(views: list[Tensor], temperature: Tensor, *, reduction: str = "mean") -> Tensor:
    """The way through the dispatcher."""
    return torch.ops.fastssl.ntxent(views, temperature, reduction, True)[0]


@pytest.fixture(params=["library", "reference"])
def backend(request, monkeypatch):
    """Each of the two that serve the CPU."""
    if request.param == "reference":
        monkeypatch.setattr(op, "_cpu_backend", lambda: reference)
    elif compiled.library() is None:
        pytest.skip("the compiled library was not built: no C++ compiler")


CONSTANT_ND = torch.linspace(-1, 2, 20, dtype=torch.float64).sin().reshape(5, 4)
DEPENDENT = {
    "twice the same": lambda x: ([x, x], torch.tensor(0.2)),
    "one from the other": lambda x: ([x, 2 * x + CONSTANT_ND], torch.tensor(0.2)),
    "a chain": lambda x: ([x, y := x.sin(), y.exp()], torch.tensor(0.2)),
    "temperature from a view": lambda x: ([x, CONSTANT_ND], x.square().mean()),
    "a view from the temperature": lambda x: ([x, x * (t := x[:1, :1].exp())], t),
}


@pytest.mark.parametrize("entrance", [ntxent, registered])
@pytest.mark.parametrize("case", DEPENDENT)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_create_graph_changes_no_gradient_where_inputs_depend_on_each_other(
    entrance, case, reduction
):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64).requires_grad_()

    def loss(x):
        views, temperature = DEPENDENT[case](x)
        return entrance(views, temperature, reduction=reduction).sum()

    (once,) = torch.autograd.grad(loss(x), x)
    (twice,) = torch.autograd.grad(loss(x), x, create_graph=True)
    torch.testing.assert_close(twice, once)
    if entrance is ntxent and reduction == "mean":
        assert torch.autograd.gradcheck(loss, x)
        assert torch.autograd.gradgradcheck(loss, x)


@pytest.mark.parametrize("how", ["set_default_device('meta')", "device('meta').__enter__()"])
@pytest.mark.parametrize("library", [True, False])
def test_a_default_device_changes_nothing(how, library):
    """In a process of its own: memory of the wrong device is a segmentation fault."""
    program = (
        "import torch\n"
        "from fastssl.kernels.ntxent import op, reference\n"
        f"if not {library}: op._cpu_backend = lambda: reference\n"
        "views = [v.requires_grad_() for v in torch.randn(2, 300, 8).unbind(0)]\n"
        f"torch.{how}\n"
        "for reduction in ('mean', 'none'):\n"
        "    loss = op.ntxent(views, 0.25, reduction=reduction)\n"
        "    assert loss.device.type == 'cpu'\n"
        "    loss.sum().backward()\n"
        "assert views[0].grad.isfinite().all()\n"
        "raw = torch.ops.fastssl.ntxent(views, op._constant(0.25), 'mean', True)\n"
        "assert all(x.device.type == 'cpu' for x in raw)\n"
        "print(op._constant(0.25).device, 'right')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "cpu right\n", (done.returncode, done.stderr[-2000:])


def negated(x_ND: Tensor) -> Tensor:
    """The values of x in a view whose memory holds -x."""
    view_ND = torch.complex(torch.zeros_like(x_ND), -x_ND).conj().imag
    assert view_ND.is_neg() and torch.equal(view_ND, x_ND)
    return view_ND


@pytest.mark.parametrize("entrance", [ntxent, registered])
def test_a_lazily_negated_view_counts_by_its_values(backend, entrance):
    x_ND, y_ND = torch.randn(2, 7, 5).unbind(0)
    tau = torch.tensor(0.3)
    expected = entrance([x_ND, y_ND], tau)
    assert entrance([negated(x_ND), y_ND], tau) == expected
    assert entrance([x_ND, y_ND], negated(tau)) == expected
    plain, lazy = [x_ND.clone().requires_grad_() for _ in range(2)]
    (exact,) = torch.autograd.grad(entrance([plain, y_ND], tau), plain)
    (found,) = torch.autograd.grad(entrance([negated(lazy), y_ND], tau), lazy)
    torch.testing.assert_close(found, exact)


def test_a_lazily_negated_gradient_counts_by_its_values(backend):
    views = [view.requires_grad_() for view in torch.randn(2, 7, 5).unbind(0)]
    grad_M = torch.randn(14)
    loss_M = ntxent(views, 0.3, reduction="none")
    exact = torch.autograd.grad(loss_M, views, grad_M, retain_graph=True)
    found = torch.autograd.grad(loss_M, views, negated(grad_M))
    torch.testing.assert_close(found, exact)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch's own
def test_forward_mode_derivatives_are_those_of_the_formula(backend):
    views = list(torch.randn(2, 6, 4, dtype=torch.float64).unbind(0))
    tangent = torch.randn(6, 4, dtype=torch.float64)
    expected = (eager(views, 0.3, "mean", torch.float64)[1][:6] * tangent).sum()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(views[0], tangent)
        found = forward_ad.unpack_dual(ntxent([dual, views[1]], 0.3)).tangent
    assert found is not None
    torch.testing.assert_close(found * weight_of_a_mean(), expected)
    _, found = torch.func.jvp(lambda z: ntxent([z, views[1]], 0.3), (views[0],), (tangent,))
    torch.testing.assert_close(found * weight_of_a_mean(), expected)


def weight_of_a_mean() -> float:
    """Of the judge's upstream gradient, for a loss of one element."""
    return 0.5


def test_torch_func_and_vmap_give_the_same_numbers(backend):
    x_BND = torch.randn(3, 6, 4)
    y_ND = torch.randn(6, 4)
    each = torch.stack([ntxent([x_ND, y_ND], 0.3) for x_ND in x_BND])
    torch.testing.assert_close(torch.vmap(lambda x_ND: ntxent([x_ND, y_ND], 0.3))(x_BND), each)
    leaf = x_BND[0].clone().requires_grad_()
    (exact,) = torch.autograd.grad(ntxent([leaf, y_ND], 0.3), leaf)
    found = torch.func.grad(lambda x_ND: ntxent([x_ND, y_ND], 0.3))(x_BND[0])
    torch.testing.assert_close(found, exact)
    per_batch = torch.vmap(torch.func.grad(lambda x_ND: ntxent([x_ND, y_ND], 0.3)))(x_BND)
    torch.testing.assert_close(per_batch[0], exact)
    assert op._constant(0.3).item() == 0.3  # nothing of a transform is left in the cache


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # one by one
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_batch_of_gradients_gives_a_batch_of_answers(backend, create_graph):
    views = [view.requires_grad_() for view in torch.randn(2, 4, 3).unbind(0)]
    loss_M = ntxent(views, 0.3, reduction="none")
    basis = torch.eye(8)
    rows = [torch.autograd.grad(loss_M, views, row, retain_graph=True) for row in basis]
    rows = [torch.stack(found) for found in zip(*rows, strict=True)]

    def gradients(grad_M, **options):
        return torch.autograd.grad(loss_M, views, grad_M, create_graph=create_graph, **options)

    found = gradients(basis, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(list(found), rows)
    found = torch.vmap(lambda grad_M: gradients(grad_M, retain_graph=True))(basis)
    torch.testing.assert_close(list(found), rows)


def test_a_bad_call_is_refused_inside_a_transform_too():
    with pytest.raises(ValueError, match=r"^ntxent: views\[1\]"):
        torch.vmap(lambda z_ND: ntxent([z_ND, z_ND[:2]], 0.3))(torch.randn(3, 4, 2))


def test_looking_for_watchers_costs_next_to_nothing():
    views = list(torch.randn(2, 32, 8).unbind(0))
    seconds = min(timeit.repeat(lambda: is_plain(views), number=2000, repeat=7)) / 2000
    assert seconds < 1e-5  # 0.5 us where nothing else runs; a dispatcher call is 28


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("create_graph", [False, True])
def test_autocast_changes_nothing(backend, dtype, create_graph):
    views = [view.requires_grad_() for view in torch.randn(2, 24, 8).to(dtype).unbind(0)]
    tau = torch.tensor(0.1, requires_grad=True)

    def answers():
        loss = ntxent(views, tau)
        return loss, *torch.autograd.grad(loss, [*views, tau], create_graph=create_graph)

    expected = answers()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = answers()
        formula = reference.ntxent(views, tau, "mean")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    torch.testing.assert_close(formula, expected[0], rtol=1e-5, atol=1e-5)


def saved_by_a_forward(reduction: str = "mean") -> tuple[list[Tensor], dict[str, Tensor]]:
    views = list(torch.randn(2, 40, 6).unbind(0))
    _, lse_M, rnorm_M, kept = torch.ops.fastssl.ntxent(views, torch.tensor(0.2), reduction, True)
    return views, {"lse": lse_M, "rnorm": rnorm_M, "kept": kept}


def raw_backward(views: list[Tensor], grad: Tensor, saved: dict[str, Tensor], reduction="mean"):
    backward = torch.ops.fastssl.ntxent_backward
    return backward(grad, views, torch.tensor(0.2), reduction, *saved.values())


@pytest.mark.parametrize("name", ["lse", "rnorm"])
def test_the_raw_backward_refuses_saved_rows_of_another_call(backend, name):
    views, saved = saved_by_a_forward()
    for wrong in (saved[name][:-1], saved[name].double(), saved[name].to("meta")):
        with pytest.raises(ValueError, match=f"^ntxent: {name} must be"):
            raw_backward(views, torch.ones(()), {**saved, name: wrong})
    strided = torch.stack([saved[name], torch.full_like(saved[name], torch.nan)], dim=1)[:, 0]
    found, _ = raw_backward(views, torch.ones(()), {**saved, name: strided})
    assert torch.equal(found, raw_backward(views, torch.ones(()), saved)[0])


def test_the_raw_backward_refuses_a_gradient_of_another_shape(backend):
    views, saved = saved_by_a_forward("none")
    for reduction, shape in (("none", ()), ("none", (79,)), ("mean", (80,)), ("sum", (1,))):
        with pytest.raises(ValueError, match="^ntxent: grad must be of shape"):
            raw_backward(views, torch.ones(shape), saved, reduction)
    with pytest.raises(ValueError, match=r"^ntxent: views\[1\]"):
        raw_backward([views[0], views[1][:2]], torch.ones(()), saved)


@pytest.mark.skipif(compiled.library() is None, reason="the compiled library was not built")
def test_the_raw_backward_refuses_forged_kept():
    views, saved = saved_by_a_forward()
    other = list(torch.randn(2, 39, 6).unbind(0))
    kept = saved["kept"]
    forged = {"short": kept[:8], "zeros": torch.zeros_like(kept), "random": torch.randn(len(kept))}
    forged["of another call"] = native.forward(other, torch.tensor(0.2), "mean", True)[-1]
    for ranks in (0, -1, 3, 127, 1 << 40):
        forged[f"{ranks} ranks"] = kept.clone()
        forged[f"{ranks} ranks"].view(torch.int64)[0] = ranks
    for name, wrong in forged.items():
        with pytest.raises(ValueError, match="^ntxent: kept must be"):
            raw_backward(views, torch.ones(()), {**saved, "kept": wrong})
            pytest.fail(name)
    found, _ = raw_backward(views, torch.ones(()), {**saved, "kept": kept[:0]})  # recomputed
    torch.testing.assert_close(found, raw_backward(views, torch.ones(()), saved)[0])


def test_devices_without_a_kernel_refuse_by_name_as_well():
    z = torch.empty(4, 3, device="meta")
    assert ntxent([z, z], 0.1).shape == ()
    with pytest.raises(ValueError, match=r"^ntxent: views\[1\]"):
        ntxent([z, z[:2]], 0.1)
    with pytest.raises(ValueError, match="^ntxent: reduction"):
        ntxent([z, z], 0.1, reduction="avg")
