"""The information ranking: torch form and function body against a singular value decomposition in float64."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgeprune.exporter.information import NAME, SWEEPS, function_body, principal_magnitude
from edgeprune.exporter.op import DOMAIN


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    """The node alone in a graph, with its body."""
    node = helper.make_node(NAME, ["states"], ["magnitude"], domain=DOMAIN, sweeps=SWEEPS)
    graph = helper.make_graph(
        [node],
        "information",
        [helper.make_tensor_value_info("states", TensorProto.FLOAT, ["b", "v", 32])],
        [helper.make_tensor_value_info("magnitude", TensorProto.FLOAT, ["b", "v"])],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)],
        functions=[function_body(18, DOMAIN)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def decomposed(states: torch.Tensor) -> NDArray[np.float64]:
    left, values, _ = torch.linalg.svd(states.double(), full_matrices=False)
    return (left * values.unsqueeze(1)).abs().sum(2).numpy()


def tokens(kind: str, visual: int, width: int = 32) -> torch.Tensor:
    """Two images' states: of a flat spectrum, of a steep one, in clusters, around a large common mean."""
    generator = torch.Generator().manual_seed(visual)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    if kind == "flat":
        return noise(2, visual, width)
    if kind == "steep":
        return noise(2, visual, width) * torch.exp(-torch.arange(width) / 5.0) @ noise(2, width, width)
    if kind == "clusters":
        which = torch.randint(0, 6, (2, visual), generator=generator)
        return noise(6, width)[which] * 2 + 0.3 * noise(2, visual, width)
    return noise(2, visual, width) * torch.exp(0.5 * noise(2, visual, 1)) + 30 * noise(1, 1, width)


def place(values: NDArray[np.floating]) -> NDArray[np.int64]:
    return np.argsort(np.argsort(values, axis=1), axis=1)


@pytest.mark.parametrize("visual", [9, 32, 60, 145])
@pytest.mark.parametrize("kind", ["flat", "steep", "clusters", "mean"])
def test_the_ranking_is_that_of_a_decomposition(
    kind: str, visual: int, session: onnxruntime.InferenceSession
) -> None:
    states = tokens(kind, visual)
    exact = decomposed(states)
    in_torch = principal_magnitude(states, SWEEPS).numpy()
    (in_graph,) = session.run(None, {"states": states.numpy()})
    for found in (in_torch, in_graph):
        scaled = found * exact.sum(1, keepdims=True) / found.sum(1, keepdims=True)
        np.testing.assert_allclose(scaled, exact, rtol=5e-4)
        for one, other in zip(place(found), place(exact), strict=True):
            assert np.corrcoef(one, other)[0, 1] > 0.9999
    np.testing.assert_allclose(in_graph, in_torch, rtol=5e-4)


@pytest.mark.parametrize("visual", [1, 2, 3, 4])
def test_few_tokens(visual: int, session: onnxruntime.InferenceSession) -> None:
    states = tokens("flat", visual)
    exact = decomposed(states)
    (found,) = session.run(None, {"states": states.numpy()})
    np.testing.assert_allclose(found / found.sum(1, keepdims=True), exact / exact.sum(1, keepdims=True), 1e-4)
    np.testing.assert_allclose(found, principal_magnitude(states, SWEEPS).numpy(), rtol=1e-4)


def test_no_tokens_as_in_every_decode_step(session: onnxruntime.InferenceSession) -> None:
    states = torch.zeros(2, 0, 32)
    assert principal_magnitude(states, SWEEPS).shape == (2, 0)
    assert session.run(None, {"states": states.numpy()})[0].shape == (2, 0)


def test_states_without_any_difference_are_no_trouble(session: onnxruntime.InferenceSession) -> None:
    for states in (torch.zeros(1, 12, 32), torch.ones(1, 12, 32)):
        (found,) = session.run(None, {"states": states.numpy()})
        assert np.isfinite(found).all()
        assert np.ptp(found) < 1e-5


def test_the_size_of_the_numbers_does_not_matter() -> None:
    states = tokens("clusters", 40)
    small, large = (place(principal_magnitude(states * s, SWEEPS).numpy()) for s in (1e-12, 1e12))
    np.testing.assert_array_equal(small, large)
