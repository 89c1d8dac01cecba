"""``CachedStep``: the gradients of the whole batch in the memory of a micro-batch."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import Tensor, nn

from fastssl.losses import CachedStep, NTXentLoss

N = 20
# Two float64 sums of 20 rows in another order.
RELATIVE = 1e-12


def encoder(dropout=0.0, seed=0):
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 16), nn.Dropout(dropout), nn.GELU(), nn.Linear(16, 16)]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(16, 5)).double()


def views(count=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(N, 6, dtype=dtype, generator=generator) for _ in range(count)]


def gradients(*modules):
    return [p.grad.clone() for module in modules for p in module.parameters()]


def assert_same(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine - theirs).norm() <= RELATIVE * theirs.norm()


def whole_batch(model, loss_fn, inputs, micro_batch):
    """One graph over all of it; dropout draws in the order of the micro-batches."""
    torch.manual_seed(7)
    parts = [[model(part) for part in view.split(micro_batch)] for view in inputs]
    loss = loss_fn(*(torch.cat(part) for part in parts))
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("micro_batch", [1, 3, 7, 10, 20, 64])
@pytest.mark.parametrize("num_views", [2, 3])
def test_the_gradients_of_one_big_batch_with_dropout(micro_batch, num_views):
    tau = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))
    loss_fn, model = NTXentLoss(tau), encoder(dropout=0.3)
    twin, twin_loss = copy.deepcopy(model), copy.deepcopy(loss_fn)
    expected = whole_batch(twin, twin_loss, views(num_views), micro_batch)
    torch.manual_seed(7)
    loss = CachedStep(model, loss_fn, micro_batch=micro_batch)(*views(num_views))
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected, rtol=RELATIVE, atol=0)
    assert_same(gradients(model, loss_fn), gradients(twin, twin_loss))


def test_without_dropout_micro_batches_leave_no_trace():
    model, twin, loss_fn = encoder(), encoder(), NTXentLoss(0.4)
    loss_fn(*(twin(view) for view in views())).backward()
    CachedStep(model, loss_fn, micro_batch=6)(*views())
    assert_same(gradients(model), gradients(twin))


def test_gradients_accumulate_and_random_numbers_go_on():
    model = encoder(dropout=0.5)
    step = CachedStep(model, NTXentLoss(0.4), micro_batch=6)
    torch.manual_seed(3)
    step(*views())
    after = torch.rand(3)
    first = gradients(model)
    torch.manual_seed(3)
    step(*views())
    assert_same(gradients(model), [2 * g for g in first])
    torch.manual_seed(3)
    with torch.no_grad():
        for view in views():
            for part in view.split(6):
                model(part)
    torch.testing.assert_close(torch.rand(3), after, rtol=0, atol=0)


def test_two_towers_and_several_heads():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.a, self.b = encoder(), nn.Linear(5, 4), nn.Linear(5, 3)
            self.double()

        def forward(self, x):
            z = self.trunk(x)
            return self.a(z), self.b(z)

    def loss_fn(image, text):
        (image_a, image_b), text_z = image, text
        return (image_a @ text_z[:, :4].T).logsumexp(1).mean() + (image_b[:, :2] ** 2).mean()

    torch.manual_seed(5)
    towers = [Heads(), encoder(seed=9)]
    twins = copy.deepcopy(towers)
    loss_fn(*(twin(view) for twin, view in zip(twins, views(), strict=True))).backward()
    CachedStep(towers, loss_fn, micro_batch=7)(*views())
    assert_same(gradients(*towers), gradients(*twins))


def test_running_statistics_move_once():
    def normed():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)).double()

    model, twin = normed(), normed()
    CachedStep(model, NTXentLoss(0.4), micro_batch=5)(*views())
    for view in views():
        for part in view.split(5):
            twin(part)
    assert model[1].num_batches_tracked == 8
    torch.testing.assert_close(model.state_dict(), twin.state_dict())


@pytest.mark.parametrize("shared", [False, True])
def test_a_buffer_that_the_encoder_replaces_moves_once(shared):
    class Replaces(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 5).double()
            self.register_buffer("running", torch.zeros(5, dtype=torch.float64))
            if shared:
                self.register_buffer("twin", self.running)

        def forward(self, x):
            z = self.layer(x)
            self.running = 0.5 * self.running + 0.5 * z.detach().mean(0)
            return z

    model = nn.Sequential(Replaces())
    twin = copy.deepcopy(model)
    CachedStep(model, NTXentLoss(0.4), micro_batch=5)(*views())
    for view in views():
        for part in view.split(5):
            twin(part)
    torch.testing.assert_close(model.state_dict(), twin.state_dict())
    assert model[0].running.abs().sum() > 0


def test_under_autocast_weights_get_the_gradients_of_autocast():
    def run(how, *, cache_enabled):
        model = encoder().float()
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cache_enabled):
            how(model)
        return gradients(model)

    def at_once(model):
        NTXentLoss(0.4)(*(model(view) for view in views(dtype=torch.float32))).backward()

    def cached(model):
        CachedStep(model, NTXentLoss(0.4), micro_batch=N)(*views(dtype=torch.float32))

    # With shared casts the views' gradients would be added in bfloat16: compare without.
    expected = run(at_once, cache_enabled=False)
    for mine, theirs in zip(run(cached, cache_enabled=True), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_a_scaled_backward_scales_the_gradients():
    model, twin = encoder(), encoder()
    CachedStep(twin, NTXentLoss(0.4), micro_batch=6)(*views())
    scaled = CachedStep(
        model, NTXentLoss(0.4), micro_batch=6, backward=lambda loss: (loss * 8).backward()
    )
    scaled(*views())
    assert_same(gradients(model), [8 * g for g in gradients(twin)])


class Saved:
    """Counts the numbers that autograd holds on to, now and at most."""

    def __init__(self, *weights: Tensor) -> None:
        self.own = {w.untyped_storage().data_ptr() for w in weights}
        self.now = self.most = 0

    def pack(self, tensor):
        if tensor.untyped_storage().data_ptr() in self.own:
            return lambda: tensor
        held = lambda: tensor  # noqa: E731
        self.now += tensor.numel()
        self.most = max(self.most, self.now)
        weakref.finalize(held, self.released, tensor.numel())
        return held

    def released(self, numel):
        self.now -= numel


def test_memory_is_that_of_a_micro_batch():
    def loss_fn(z0, z1):
        return (z0 @ z1.T).logsumexp(1).mean()

    def most_saved(micro_batch):
        torch.manual_seed(0)
        wide = nn.Sequential(nn.Linear(6, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU())
        model = nn.Sequential(wide, nn.Linear(512, 4))
        saved = Saved(*model.parameters())
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda held: held()):
            CachedStep(model, loss_fn, micro_batch=micro_batch)(*views(dtype=torch.float32))
        return saved.most

    # 2,054 numbers per sample, and the loss keeps fewer than a micro-batch does.
    assert most_saved(20) == 10 * most_saved(2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"micro_batch": 0}, "micro_batch must be an integer of at least 1; received 0"),
        ({"views": []}, "views must be one or more tensors of one length"),
        ({"views": [torch.ones(3, 6), torch.ones(2, 6)]}, "views must be one or more"),
        ({"encoder": [encoder()]}, "encoder must be 2 modules, one per view; received 1"),
        ({"encoder": nn.Sequential(encoder(), nn.LSTM(5, 2).double())}, "a tuple of them"),
        ({"encoder": None}, "encoder must be a torch.nn.Module or one per view; received None"),
        ({"encoder": lambda x: x}, "encoder must be a torch.nn.Module or one per view"),
        ({"encoder": [encoder(), None]}, "encoder must be a torch.nn.Module or one per view"),
        ({"views": [v.numpy() for v in views()]}, "views must be tensors .* received ndarray"),
        ({"views": [3]}, "views must be tensors .* received int"),
        ({"views": [torch.tensor(1.0)]}, "views must be tensors .* received no dimension"),
        ({"loss": NTXentLoss(reduction="none")}, "loss must be a function that returns one number"),
        ({"loss": lambda a, b: None}, "loss must be a function .* received NoneType"),
        ({"loss": None}, "loss must be callable; received None"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    settings = {"encoder": encoder(), "micro_batch": 4, "loss": NTXentLoss(), **change}
    inputs = settings.pop("views", views())
    with pytest.raises(ValueError, match=f"CachedStep: .*{message}"):
        CachedStep(**settings)(*inputs)


def test_a_first_pass_that_fails_leaves_the_buffers_as_they_were():
    class Fails(nn.BatchNorm1d):
        def forward(self, x):
            super().forward(x)
            raise RuntimeError("no memory")

    norm = Fails(6)
    step = CachedStep(norm, NTXentLoss(0.1), micro_batch=4)
    with pytest.raises(RuntimeError, match="no memory"):
        step(torch.randn(8, 6) + 3, torch.randn(8, 6))
    assert torch.equal(norm.running_mean, torch.zeros(6)) and norm.num_batches_tracked == 0
