"""DISSL, SwAV and DINO against their papers written as loops, and what their modules promise."""

# shapes: N samples, C outputs
from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.losses import DINOLoss, DISSLLoss, SwAVLoss, sinkhorn
from fastssl.losses.dino import dino_loss
from fastssl.losses.dissl import dissl_loss, entropy
from fastssl.losses.swav import swav_loss


def crops(count: int, *, rows: int = 6, outputs: int = 5, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, rows, outputs, generator=generator, dtype=torch.float64)
    return [crop.clone().requires_grad_() for crop in x]


def cross_entropy(t_C: Tensor, log_s_C: Tensor) -> Tensor:
    return -sum(t_C[c] * log_s_C[c] for c in range(len(t_C)))


def mean_pair(first, second, log_second) -> Tensor:
    """Mean over a != b and samples of -<first^a, log second^b>, in loops."""
    found = []
    for a in range(len(first)):
        for b in range(len(second)):
            if a != b:
                rows = range(len(first[a]))
                each = [cross_entropy(first[a][i], log_second[b][i]) for i in rows]
                found.append(sum(each) / len(each))
    return sum(found) / len(found)


def dissl_paper(students, teachers, tau_s=1.0, tau_t=0.5, lam=2.3, beta=0.8) -> Tensor:
    """papers/issl.md D.2 word for word."""
    t = [F.softmax(x / tau_t, 1) for x in teachers]
    log_t = [F.log_softmax(x / tau_t, 1) for x in teachers]
    log_s = [F.log_softmax(x / tau_s, 1) for x in students]
    loss = mean_pair(t, students, log_s) + beta * mean_pair(t, teachers, log_t)
    for probabilities in t:
        marginal = sum(probabilities[i] for i in range(len(probabilities))) / len(probabilities)
        loss = loss + lam * (marginal * marginal.log()).sum() / len(t)
    return loss


@pytest.mark.parametrize("num_students", [2, 5])
def test_dissl_is_the_paper(num_students):
    students, teachers = crops(num_students), crops(2, seed=1)
    inputs = [*students, *teachers]
    ours, truth = DISSLLoss()(students, teachers), dissl_paper(students, teachers)
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)
    found, expected = torch.autograd.grad(ours, inputs), torch.autograd.grad(truth, inputs)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-14)


def test_dissl_with_other_settings_is_the_paper():
    students, teachers = crops(3), crops(3, seed=1)
    loss = DISSLLoss(0.7, 0.3, maximality=1.9, invariance=0.6)
    truth = dissl_paper(students, teachers, 0.7, 0.3, 1.9, 0.6)
    torch.testing.assert_close(loss(students, teachers), truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_outputs", [7, 16384])
def test_dissl_at_uniform_outputs(num_outputs):
    same = [torch.zeros(4, num_outputs)] * 2
    expected = (1 - 2.3 + 0.8) * math.log(num_outputs)
    assert DISSLLoss()(same, same).item() == pytest.approx(expected, rel=1e-5)


def test_dissl_of_one_hot_and_all_different_rows():
    one_hot = torch.zeros(8, 20)
    one_hot[torch.arange(8), torch.arange(8)] = 200.0
    loss = DISSLLoss()([one_hot] * 2, [one_hot] * 2)
    assert loss.item() == pytest.approx(-2.3 * math.log(8), rel=1e-6)


def test_dissl_lower_bound_is_where_each_row_owns_a_share_of_the_outputs():
    rows, outputs = 4, 12
    owned = torch.full((rows, outputs), -200.0)
    for i in range(rows):
        owned[i, 3 * i : 3 * i + 3] = 0.0
    loss = DISSLLoss()([owned] * 2, [owned] * 2).item()
    bound = -2.3 * math.log(outputs) + 1.8 * (math.log(outputs) - math.log(rows))
    assert loss == pytest.approx(bound, rel=1e-5)
    for seed in range(20):
        drawn = [x.detach().float() * 3 for x in crops(4, rows=rows, outputs=outputs, seed=seed)]
        assert DISSLLoss()(drawn[:2], drawn[2:]).item() >= bound


def test_dissl_detaches_nothing():
    students, teachers = crops(2), crops(2, seed=1)
    loss = dissl_loss(students, teachers, maximality=0.0, invariance=0.0)
    assert all(x.abs().max() > 1e-3 for x in torch.autograd.grad(loss, teachers))


def test_the_entropy_of_an_output_nobody_uses_has_a_finite_gradient():
    x = torch.tensor([[0.0, -1e4], [0.0, -1e4]], requires_grad=True)
    loss = DISSLLoss()([x, x], [x, x])
    assert torch.isfinite(torch.autograd.grad(loss, x)[0]).all()
    assert entropy(torch.tensor([1.0, 0.0])) == 0


def textbook_sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Algorithm 1: rows are prototypes, columns samples."""
    q_CN = (scores / epsilon).exp().T
    q_CN = q_CN / q_CN.sum()
    num_prototypes, num_samples = q_CN.shape
    for _ in range(iterations):
        q_CN = q_CN / q_CN.sum(dim=1, keepdim=True) / num_prototypes
        q_CN = q_CN / q_CN.sum(dim=0, keepdim=True) / num_samples
    return (q_CN * num_samples).T


@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_sinkhorn_is_algorithm_1(epsilon, iterations):
    scores = crops(1, rows=9, outputs=4)[0].detach().clamp(-1, 1)
    codes = sinkhorn(scores, epsilon=epsilon, iterations=iterations)
    truth = textbook_sinkhorn(scores, epsilon, iterations)
    torch.testing.assert_close(codes, truth, rtol=1e-11, atol=1e-13)


def test_sinkhorn_balances_and_no_epsilon_is_too_small():
    scores = crops(1, rows=40, outputs=5)[0]
    codes = sinkhorn(scores, epsilon=0.5, iterations=200)
    torch.testing.assert_close(codes.sum(0), torch.full((5,), 8.0).double())
    assert not codes.requires_grad
    sharp = sinkhorn(scores.float() * 100, epsilon=1e-4)
    assert torch.isfinite(sharp).all()
    torch.testing.assert_close(sharp.sum(1), torch.ones(40))


def swav_paper(scores, queue, num_assigned, tau, epsilon) -> Tensor:
    losses = []
    for a in range(num_assigned):
        rows = torch.cat([scores[a], queue[a]]) if queue else scores[a]
        codes = textbook_sinkhorn(rows.detach(), epsilon, 3)[: len(scores[a])]
        for b in range(len(scores)):
            if b != a:
                log_p = F.log_softmax(scores[b] / tau, 1)
                each = [cross_entropy(codes[i], log_p[i]) for i in range(len(codes))]
                losses.append(sum(each) / len(each))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("with_queue", [False, True])
@pytest.mark.parametrize(("count", "num_assigned"), [(2, 2), (5, 2), (3, 1)])
def test_swav_is_the_paper(count, num_assigned, with_queue):
    scores = crops(count)
    queue = [x.detach() for x in crops(num_assigned, rows=11, seed=3)] if with_queue else None
    loss = SwAVLoss(0.2, epsilon=0.3, num_assigned=num_assigned)(scores, queue)
    truth = swav_paper(scores, queue, num_assigned, 0.2, 0.3)
    torch.testing.assert_close(loss, truth, rtol=1e-12, atol=1e-12)
    predicted = scores[num_assigned == 1 :]  # the one crop that gives the codes predicts nothing
    found, expected = torch.autograd.grad(loss, predicted), torch.autograd.grad(truth, predicted)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def dino_paper(students, teachers, centre, tau_s, tau_t) -> Tensor:
    t = [F.softmax((x.detach() - centre) / tau_t, 1) for x in teachers]
    return mean_pair(t, students, [F.log_softmax(x / tau_s, 1) for x in students])


def test_dino_is_the_paper_and_the_centre_follows_the_teacher():
    loss_fn = DINOLoss(5, centre_momentum=0.8).double()
    centre = torch.zeros(5).double()
    for step in range(3):
        students, teachers = crops(4, seed=step), crops(2, seed=step + 9)
        loss = loss_fn(students, teachers)
        truth = dino_paper(students, teachers, centre, 0.1, 0.04)
        torch.testing.assert_close(loss, truth, rtol=1e-12, atol=1e-12)
        found, expected = torch.autograd.grad(loss, students), torch.autograd.grad(truth, students)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
        assert not any(x.grad for x in teachers)
        centre = 0.8 * centre + 0.2 * torch.cat(teachers).detach().mean(0)
        torch.testing.assert_close(loss_fn.centre, centre)
    assert not centre.requires_grad and set(loss_fn.state_dict()) == {"centre"}


def test_dino_in_evaluation_leaves_the_centre():
    loss_fn = DINOLoss(5).double().eval()
    loss_fn(crops(2), crops(2, seed=1))
    assert torch.equal(loss_fn.centre, torch.zeros(5).double())


def test_a_backward_after_the_centre_moved_uses_the_old_one():
    loss_fn = DINOLoss(5, centre_momentum=0.0).double()
    loss_fn.centre += torch.arange(5.0)
    students, teachers = crops(2), crops(2, seed=1)
    truth = dino_paper(students, teachers, loss_fn.centre.clone(), 0.1, 0.04)
    found = torch.autograd.grad(loss_fn(students, teachers), students)
    torch.testing.assert_close(found, torch.autograd.grad(truth, students))


def test_gradcheck_of_dissl_in_students_and_teachers():
    assert torch.autograd.gradcheck(lambda *x: dissl_loss(x[:2], x[2:]), crops(4, rows=3))


def test_gradcheck_of_dino_in_students():
    teachers, centre = crops(2, rows=3, seed=1), torch.ones(5).double()
    assert torch.autograd.gradcheck(lambda *x: dino_loss(x, teachers, centre), crops(3, rows=3))


def test_gradcheck_of_swav_where_the_codes_stay():
    fixed = crops(2, rows=3)[0].detach()
    moved = crops(2, rows=3)[1]
    assert torch.autograd.gradcheck(lambda x: swav_loss([fixed, x], num_assigned=1), moved)


MODULES = {
    "dissl": (DISSLLoss(), lambda loss, x: loss(x[:2], x[2:])),
    "swav": (SwAVLoss(), lambda loss, x: loss(x)),
    "dino": (DINOLoss(5), lambda loss, x: loss(x[:2], x[2:])),
}


@pytest.mark.parametrize("name", MODULES)
def test_compiles_to_one_graph(name):
    module, call = MODULES[name]
    inputs = [x.detach().float().requires_grad_() for x in crops(4)]
    eager, traced = copy.deepcopy(module), copy.deepcopy(module)
    fast = torch.compile(lambda *x: call(traced, x), fullgraph=True, backend="aot_eager")
    found, expected = fast(*inputs), call(eager, inputs)
    torch.testing.assert_close(found, expected)
    grads = torch.autograd.grad(found, inputs[:2])
    torch.testing.assert_close(grads, torch.autograd.grad(expected, inputs[:2]))


@pytest.mark.parametrize("name", MODULES)
def test_sixteen_bit_logits_give_a_float32_loss(name):
    module, call = MODULES[name]
    inputs = [x.detach().bfloat16().requires_grad_() for x in crops(4)]
    loss = call(copy.deepcopy(module), inputs)
    loss.backward()
    assert loss.dtype == torch.float32 and inputs[0].grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: DISSLLoss()(x[0], x), "DISSLLoss: students must be a list"),
        (lambda x: DISSLLoss()(x[:2], x[:1]), "DISSLLoss: teachers .* at least 2"),
        (lambda x: DISSLLoss()(x[:2], x[:3]), "DISSLLoss: students must be at least the 3"),
        (lambda x: DISSLLoss()([x[0], x[1][:2]], x[:2]), "DISSLLoss: students .* one shape"),
        (lambda x: DISSLLoss(student_temperature=0)(x, x), "soft_targets: student_temperature"),
        (lambda x: SwAVLoss()(x[:1]), "SwAVLoss: scores .* at least 2"),
        (lambda x: SwAVLoss(num_assigned=9)(x), "SwAVLoss: num_assigned"),
        (lambda x: SwAVLoss()(x, x[:1]), "SwAVLoss: queue_scores"),
        (lambda x: SwAVLoss(epsilon=0)(x), "sinkhorn: epsilon"),
        (lambda x: SwAVLoss(iterations=0)(x), "sinkhorn: iterations"),
        (lambda x: sinkhorn(x[0][0]), "sinkhorn: scores"),
        (lambda x: DINOLoss(4)(x, x[:2]), "soft_targets: centre"),
        (lambda x: DINOLoss(0), "DINOLoss: num_outputs"),
        (lambda x: DINOLoss(5, centre_momentum=2), "DINOLoss: centre_momentum"),
        (lambda x: DINOLoss(5)(x, [x[0], None]), "DINOLoss: teachers .* NoneType"),
    ],
)
def test_a_bad_call_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call(crops(4))


@pytest.mark.parametrize("name", MODULES)
def test_the_modules_copy_and_print(name):
    module = copy.deepcopy(MODULES[name][0])
    assert "temperature=" in repr(module)
