"""The closed form against autograd, over shapes, depths, activations, action spaces and batch sizes."""

import math
from itertools import pairwise

import numpy as np
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sb3_trust.engines.activations import Activation
from sb3_trust.engines.discrete_heads import BernoulliHead, CategoricalHead
from sb3_trust.engines.distributions import BernoulliFamily, CategoricalFamily, GaussianFamily
from sb3_trust.engines.gaussian_head import GaussianHead
from sb3_trust.engines.networks import Linearization, Network, Workspace, with_ones
from tests.twins import ACTIVATIONS, TERMS, batch_of, distance, engines, joined, policy_of, random_slopes

ROUNDING = 1e-5
quick = settings(max_examples=25, deadline=None, derandomize=True)
widths = st.lists(st.integers(1, 9), min_size=0, max_size=3)
activations = st.sampled_from(sorted(ACTIVATIONS))
seeds = st.integers(0, 1000)
action_spaces = st.one_of(
    st.integers(2, 5).map(spaces.Discrete),
    st.integers(1, 4).map(spaces.MultiBinary),
    st.lists(st.integers(2, 4), min_size=1, max_size=3).map(spaces.MultiDiscrete),
    st.sampled_from([(1,), (3,), (2, 2)]).map(lambda shape: spaces.Box(-1.0, 1.0, shape, np.float32)),
)
observation_spaces = st.one_of(
    st.sampled_from([(1,), (5,), (2, 3)]).map(lambda shape: spaces.Box(-9.0, 9.0, shape, np.float32)),
    st.integers(1, 6).map(spaces.Discrete),
    st.lists(st.integers(1, 4), min_size=1, max_size=3).map(spaces.MultiDiscrete),
    st.integers(1, 5).map(spaces.MultiBinary),
    st.just(spaces.Box(0, 255, (3, 3, 3), np.uint8)),
)


def close(ours, theirs, bound=ROUNDING):
    """To rounding: relative to the norm, or to one where everything is small."""
    scale = max(1.0, float(th.as_tensor(theirs).detach().double().norm()))
    difference = th.as_tensor(ours).detach().double() - th.as_tensor(theirs).detach().double()
    return ours.shape == tuple(theirs.shape) and float(difference.norm()) < bound * scale


@given(observation_spaces, action_spaces, widths, widths, activations, st.integers(1, 40), seeds)
@quick
def test_a_policy_is_what_autograd_says(observation_space, action_space, pi, vf, activation, n, seed):
    policy = policy_of(
        observation_space,
        action_space,
        seed,
        net_arch={"pi": pi, "vf": vf},
        activation_fn=ACTIVATIONS[activation],
    )
    batch, needs = batch_of(policy, n), set(TERMS)
    closed, reference = engines(policy)
    slopes, everything = random_slopes(n, *TERMS), list(policy.parameters())
    ours, theirs = (engine.evaluate(batch, needs) for engine in (closed, reference))
    measured = [engine.measure(batch, needs) for engine in (closed, reference)]
    for name in TERMS:
        assert close(getattr(ours.terms, name), getattr(theirs.terms, name)), name
        assert close(*(getattr(terms, name) for terms in measured)), name
    gradients = [joined(evaluation.gradient(slopes, everything)) for evaluation in (ours, theirs)]
    assert distance(*gradients) < ROUNDING
    vector = th.randn(sum(p.numel() for p in closed.partition(batch).policy))
    products = [engine.fisher_vector_product(batch)(vector) for engine in (closed, reference)]
    assert close(*products)


def perceptron(n_inputs, hidden, n_outputs, activation):
    """A network of the closed form, and the same as a torch function of its ``[W | b]``."""
    sizes = [n_inputs, *hidden, n_outputs]
    shapes = [(out, into + 1) for into, out in pairwise(sizes)]
    weights = [th.randn(shape) / math.sqrt(shape[1]) for shape in shapes]
    module = ACTIVATIONS[activation]()
    network = Network(
        [w.numpy().copy() for w in weights], [np.full(w.shape, np.nan, np.float32) for w in weights],
        Activation(module),
    )  # fmt: skip

    def forward(x, *matrices):
        for k, matrix in enumerate(matrices):
            x = nn.functional.linear(x, matrix[:, :-1], matrix[:, -1])
            x = x if k == len(matrices) - 1 else module(x)
        return x

    return network, forward, [w.requires_grad_() for w in weights]


@given(st.lists(st.tuples(widths, st.integers(1, 4)), min_size=1, max_size=2), activations,
       st.integers(1, 5), st.integers(1, 600), seeds)  # fmt: skip
@quick
def test_forward_and_backward_are_those_of_autograd(shapes, activation, n_inputs, n, seed):
    th.manual_seed(seed)
    parts = [perceptron(n_inputs, hidden, out, activation) for hidden, out in shapes]
    workspace = Workspace([network for network, _, _ in parts], n, differentiable=True)
    unslopable = Workspace([network for network, _, _ in parts], n, differentiable=False)
    for _ in range(2):  # the arrays are used again
        rows = th.randn(n, n_inputs)
        x = with_ones(rows.numpy())
        slopes = [th.randn(out, n) for _, out in shapes]
        outputs = workspace.forward(x)
        expected = [forward(rows, *matrices).T for _, forward, matrices in parts]
        for output, again, other in zip(outputs, unslopable.forward(x), expected, strict=True):
            assert close(output, other) and close(again, other)
        workspace.backward(x, [slope.numpy() for slope in slopes])
        for (network, _, matrices), other, slope in zip(parts, expected, slopes, strict=True):
            gradients = th.autograd.grad(other, matrices, slope)
            assert all(map(close, network.gradients, gradients))


@given(widths, st.integers(1, 4), activations, st.integers(1, 5), st.integers(1, 600), seeds)
@quick
def test_linearization_is_autograds_jacobian(hidden, n_outputs, activation, n_inputs, n, seed):
    th.manual_seed(seed)
    network, forward, matrices = perceptron(n_inputs, hidden, n_outputs, activation)
    rows = th.randn(n, n_inputs)
    linearization = Linearization(network, with_ones(rows.numpy()))
    assert close(linearization.outputs, forward(rows, *matrices).T)
    for weight in network.weights:
        weight[...] = np.nan  # it is to be near the weights that it was made with
    for _ in range(2):
        changes = [th.randn_like(matrix) for matrix in matrices]
        _, tangent = th.autograd.functional.jvp(
            lambda *given: forward(rows, *given).T, tuple(matrices), tuple(changes)
        )
        assert close(linearization.tangent(changes), tangent)
        slope = th.randn(n_outputs, n)
        expected = th.autograd.grad(forward(rows, *matrices).T, matrices, slope)
        before = [th.randn_like(matrix) for matrix in matrices]
        gradients = [start.clone() for start in before]
        linearization.pull_back(slope, gradients)  # adds
        assert all(close(g, b + e) for g, b, e in zip(gradients, before, expected, strict=True))


def head_case(kind, sizes, n, scale):
    """A head, its family, and the torch distribution of outputs, with all it needs; log sigma or None."""
    k = len(sizes) if kind != "categorical" else sum(sizes)
    outputs = scale * th.randn(n, k)
    if kind == "gaussian":
        log_std = 0.5 * th.randn(k)
        head = GaussianHead(log_std.numpy().copy(), np.full(k, np.nan, np.float32))
        actions, old = th.randn(n, k), th.cat([scale * th.randn(n, k), 0.5 * th.randn(n, k)], 1)
        return head, GaussianFamily(), outputs, log_std, actions, old
    if kind == "bernoulli":
        actions = th.randint(0, 2, (n, k)).float()
        return BernoulliHead(k), BernoulliFamily(), outputs, None, actions, scale * th.randn(n, k)
    actions = th.stack([th.randint(0, size, (n,)) for size in sizes], 1)
    return (
        CategoricalHead(sizes, flat=False), CategoricalFamily(sizes), outputs, None, actions,
        scale * th.randn(n, k),
    )  # fmt: skip


def log_prob_of(kind, sizes, outputs, log_std, actions):
    if kind == "gaussian":
        return th.distributions.Normal(outputs, log_std.exp()).log_prob(actions).sum(-1)
    if kind == "bernoulli":
        return th.distributions.Bernoulli(logits=outputs).log_prob(actions).sum(-1)
    parts = zip(outputs.split(sizes, -1), actions.unbind(-1), strict=True)
    return sum(th.distributions.Categorical(logits=part).log_prob(action) for part, action in parts)


heads = st.tuples(
    st.sampled_from(["gaussian", "categorical", "bernoulli"]),
    st.lists(st.integers(2, 5), min_size=1, max_size=3),
    st.integers(1, 20),
    st.sampled_from([0.01, 1.0, 5.0]),
)


@given(heads, st.sets(st.sampled_from(["log_prob", "entropy", "kl"]), min_size=1), seeds)
@quick
def test_a_head_is_the_family_differentiated_by_autograd(shape, needs, seed):
    kind, sizes, n, scale = shape
    th.manual_seed(seed)
    head, family, outputs, log_std, actions, old = head_case(kind, sizes, n, scale)
    leaves = [x.clone().double().requires_grad_() for x in (outputs, log_std) if x is not None]
    expected_parameters = leaves[0] if log_std is None else th.cat([leaves[0], leaves[1].expand(n, -1)], 1)
    expected = {
        "log_prob": log_prob_of(kind, sizes, leaves[0], leaves[-1], actions),
        "entropy": family.entropy(expected_parameters),
        "kl": family.kl(old.double(), expected_parameters),
    }
    encoded = np.ascontiguousarray(head.encode(actions).T)
    columns = np.ascontiguousarray(outputs.numpy().T)
    evaluated = head.evaluate(columns, encoded, np.ascontiguousarray(head.encode_old(old).T), needs)
    slopes = {name: th.randn(n) if name in needs else None for name in expected}
    for name in expected:
        assert (getattr(evaluated, name) is not None) == (name in needs)
        assert name not in needs or close(getattr(evaluated, name), expected[name]), name
    for _ in range(2):
        pulled = evaluated.pull_back(**{k: None if s is None else s.numpy() for k, s in slopes.items()})
        total = sum((slopes[name].double() * expected[name]).sum() for name in needs)
        gradients = th.autograd.grad(total, leaves, retain_graph=True, materialize_grads=True)
        assert close(pulled, gradients[0].T)
        assert log_std is None or close(head.gradient, gradients[1])


@given(heads, seeds)
@quick
def test_a_heads_metric_and_parameters_are_the_familys(shape, seed):
    kind, sizes, n, scale = shape
    th.manual_seed(seed)
    head, family, outputs, log_std, _, _ = head_case(kind, sizes, n, scale)
    parameters = outputs if log_std is None else th.cat([outputs, log_std.expand(n, -1)], 1)
    tangent = th.randn_like(outputs)
    padded = tangent if log_std is None else th.cat([tangent, th.zeros_like(tangent)], 1)
    expected = family.fisher(parameters.double(), padded.double())[:, : outputs.shape[1]]
    product = head.metric(np.ascontiguousarray(outputs.numpy().T))
    for _ in range(2):
        assert close(product(np.ascontiguousarray(tangent.numpy().T)), expected.T)
    assert float(family.kl(th.from_numpy(head.parameters(outputs.numpy())), parameters).abs().max()) < 1e-5


@given(activations, st.sampled_from([(1, 1), (3, 50), (20, 60)]), st.sampled_from([0.1, 3.0, 40.0]), seeds)
@quick
def test_an_activation_and_its_slope_are_autograds(activation, shape, scale, seed):
    th.manual_seed(seed)
    z = scale * th.randn(shape)
    module = ACTIVATIONS[activation]()
    leaf = z.clone().requires_grad_()
    expected = module(leaf)
    (slope,) = th.autograd.grad(expected.sum(), leaf, materialize_grads=True)
    for differentiable in (False, True):
        array = z.numpy().copy()
        activate = Activation(module).on(array, differentiable)
        activate()
        np.testing.assert_allclose(array, expected.detach().numpy(), rtol=1e-5, atol=3e-7)
    np.testing.assert_allclose(activate.slope, slope.numpy(), rtol=1e-5, atol=1e-6)
