"""`gen-vla serve MODEL`."""

import contextlib
import os
from pathlib import Path
from typing import Annotated

from typer import Option

from gen_vla.commands.options import Dtype, Model, load_any


def serve(
    model: Model,
    host: Annotated[str, Option(help="The address to listen at; another than loopback needs GEN_VLA_API_KEY.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, Option(help="Of websockets and HTTP alike.")] = 8000,
    unnorm_key: Annotated[
        str | None, Option(help="Whose units actions have where a request names no data set.")
    ] = None,
    dtype: Dtype = "auto",
    keys: Annotated[
        Path | None,
        Option(metavar="FILE", help="YAML: which keys of an observation are which camera, state, instruction."),
    ] = None,
    batch: Annotated[int, Option(help="Requests that are answered at once, at most.")] = 8,
    wait_ms: Annotated[float, Option(help="How long the first of a batch waits for other robots.")] = 5.0,
    queue: Annotated[int, Option(help="Requests that may wait; more are refused.")] = 64,
    connections: Annotated[int, Option(help="Websockets at most.")] = 32,
    message_mb: Annotated[float, Option(help="Size of a message at most.")] = 32.0,
    timeout: Annotated[float, Option(help="Seconds until a request that has no answer is refused.")] = 30.0,
) -> None:
    """Answer robots: openpi's websocket protocol, OpenVLA's /act, questions.

    Clients send the secret in GEN_VLA_API_KEY, if it is set.
    """
    from gen_vla.evaluation.policies.cameras import camera_names

    try:
        from gen_vla.serving.application import Limits
        from gen_vla.serving.layouts import read_keys_file
        from gen_vla.serving.policy import ServedPolicy
        from gen_vla.serving.server import check_address, listening_socket, make_server
    except ModuleNotFoundError as error:
        raise ValueError(f"got no {error.name}, expected it for a server; pip install 'gen-vla[serve]'") from error
    for name, value in {"batch": batch, "queue": queue, "connections": connections, "timeout": timeout}.items():
        if value < 1:
            raise ValueError(f"got --{name} {value}, expected at least 1")
    limits = Limits(
        api_key=os.environ.get("GEN_VLA_API_KEY") or None,
        message_bytes=int(message_mb * 2**20),
        connections=connections,
        queue=queue,
        batch=batch,
        wait=wait_ms / 1000,
        timeout=timeout,
    )
    check_address(host, limits)  # before a model is loaded for nothing
    listening = listening_socket(host, port)
    loaded, processor = load_any(model, dtype)
    layouts = read_keys_file(keys, camera_names(processor)) if keys else None
    server = make_server(ServedPolicy(loaded, processor, model, unnorm_key, layouts), limits, host, port)
    port = listening.getsockname()[1]  # for --port 0, any free one
    print(f"Serving {model} at ws://{host}:{port} and http://{host}:{port}/act; Ctrl-C ends it", flush=True)
    with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again once it has shut down
        server.run(sockets=[listening])
