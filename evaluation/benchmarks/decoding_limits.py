"""What a recorded decode pass spends its time on, on a GPU: how far it is from reading the weights once, and why.

Decides: what a pass is divided into. Refuses to know: how passes are recorded (`modeling/static_passes.py`), what the
whole action costs (`decoding_benchmark.py`).

    weights once      bytes of weights, keys and values at the bandwidth of a copy: no pass is faster
    products          the layers' matrix products alone, recorded as the pass has them
    pass on the GPU   the recorded pass
    pass              with its arguments sent, launched and waited for: what a call sees
"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from gen_vla.modeling import static_passes
from gen_vla.modeling.parallel_streams import in_parallel


def measure_limits(model: Any, inputs: dict[str, Any], floor_ms: float, repeats: int = 20) -> dict[str, Any]:
    """Milliseconds of the parts above for one observation, medians of `repeats`.

    Args:
        inputs: of `predict_actions`, without its `unnorm_key`.
        floor_ms: of the first part.

    Raises:
        RuntimeError: where passes cannot be recorded.
    """
    model.predict_actions(**inputs, unnorm_key=next(iter(model.config.norm_stats)), cache_implementation="static")
    plan = list(static_passes.recordings_of(model).plans.values())[-1]
    recorded = next((entry for key, entry in plan.recorded.items() if key[0] == "decode_pass"), None)
    if recorded is None:
        raise RuntimeError("got no recorded decode pass, expected one: the warning above says why there is none")
    products = recorded_products(model, plan.cache.scratch)
    return {
        "width": plan.cache.scratch,
        "weights_once_ms": round(floor_ms, 3),
        "products_ms": round(median_ms(products.replay, repeats), 3),
        "pass_on_the_gpu_ms": round(median_ms(recorded.graph.replay, repeats), 3),
    }


@torch.no_grad()
def recorded_products(model: Any, width: int) -> torch.cuda.CUDAGraph:
    """A CUDA graph of every layer's matrix products for one row of `width` tokens."""
    text = model.config.text_config
    hidden = torch.randn(1, width, text.hidden_size, device=model.device, dtype=model.dtype)
    wide = torch.randn(1, width, text.intermediate_size, device=model.device, dtype=model.dtype)
    layers = model.model.language_model.layers
    heads = torch.randn(1, width, layers[0].self_attn.o_proj.in_features, device=model.device, dtype=model.dtype)

    def run() -> None:
        for layer in layers:
            attention, mlp = layer.self_attn, layer.mlp
            projections = (attention.q_proj, attention.k_proj, attention.v_proj)
            in_parallel(model.device, *(partial(projection, hidden) for projection in projections))
            attention.o_proj(heads)
            in_parallel(model.device, partial(mlp.gate_proj, hidden), partial(mlp.up_proj, hidden))
            mlp.down_proj(wide)

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def median_ms(function: Callable[[], None], repeats: int) -> float:
    """Of a function's time on the GPU."""
    times = []
    for _ in range(repeats + 3):
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began.record()
        function()
        ended.record()
        torch.cuda.synchronize()
        times.append(began.elapsed_time(ended))
    return statistics.median(times[3:])
