"""The policy server as one ASGI application.

    websocket /      openpi's protocol: metadata first, then an observation in, actions out; resets and questions, too
    POST /act        OpenVLA's protocol: json_numpy, plain or double-encoded, one observation or lists of them
    POST /ask        likewise, {"query": ..., "image": ...} to {"answer": ...}
    GET  /metadata   what the websocket sends first
    GET  /healthz    200 as long as requests are answered
    GET  /metrics    Prometheus

A mistake in a message is answered by a sentence, as a text frame or with a status of HTTP, and the connection goes on.
"""

import asyncio
import hmac
import ipaddress
import logging
import time
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from gen_vla.evaluation.policies.malformed_actions import wrote_no_action
from gen_vla.serving.batching import Batcher, Busy, TooLate
from gen_vla.serving.messages import MessageError, from_json, pack, to_json, unpack
from gen_vla.serving.metrics import Metrics
from gen_vla.serving.policy import Answer, ServedPolicy
from gen_vla.serving.requests import Session, checked_dictionary, words_of


log = logging.getLogger("gen_vla.serving")
STOPPING = "the server is shutting down; connect to another one"
FAULT = "the server failed, which is a fault of its own; see its log"
CLOSES = {429: 1013, 500: 1011, 503: 1012, 504: 1011}  # the code that a websocket closes with after such a refusal


@dataclass(frozen=True)
class Limits:
    api_key: str | None = None  # that clients have to send
    message_bytes: int = 32 * 2**20  # of a message at most
    connections: int = 32  # websockets at most
    queue: int = 64  # requests that may wait
    batch: int = 8  # requests in a batch at most
    wait: float = 0.005  # seconds that the first of a batch waits for others
    timeout: float = 30.0  # seconds from a request to its answer, and for reading or sending a message


class Refusal(Exception):
    """A request that is not answered: a status of HTTP and a sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


class PolicyServer:
    """Answers requests to one policy; `application` is its ASGI application."""

    def __init__(self, policy: ServedPolicy, limits: Limits):
        self.policy, self.limits = policy, limits
        # Open websockets, those of them whose message is being answered, rows of HTTP requests.
        self.sessions = self.busy = self.rows = 0
        self.closing = False
        # Questions take long; robots that move need not wait for them.
        bounds = (limits.batch, limits.wait, limits.queue, limits.timeout, lambda: self.sessions + self.rows)
        self.actions, self.questions = Batcher(policy.run, *bounds), Batcher(policy.run, *bounds)
        self.metrics = Metrics(lambda: self.actions.length + self.questions.length, lambda: self.sessions)
        routes = [
            WebSocketRoute("/", self.serve_session),
            Route("/act", self.act, methods=["POST"]),
            Route("/ask", self.ask, methods=["POST"]),
            Route("/metadata", self.metadata),
            Route("/metrics", self.show_metrics),
            Route("/healthz", self.health),
        ]
        handlers: Any = {Refusal: self.refuse, Exception: self.fail}
        self.application = Starlette(routes=routes, exception_handlers=handlers)

    async def close(self) -> None:
        """Takes no more requests, and waits until those that are here are answered, for the time-out at most."""
        self.closing = True
        end = time.monotonic() + self.limits.timeout
        while (self.busy or self.rows) and time.monotonic() < end:
            await asyncio.sleep(0.01)
        self.actions.close()
        self.questions.close()

    # HTTP

    async def health(self, request: HttpRequest) -> Response:
        return PlainTextResponse("stopping\n" if self.closing else "OK\n", 503 if self.closing else 200)

    async def metadata(self, request: HttpRequest) -> Response:
        self.check_sender(request)
        return JSONResponse(self.policy.describe())

    async def show_metrics(self, request: HttpRequest) -> Response:
        self.check_sender(request)
        return PlainTextResponse(self.metrics.text())

    async def act(self, request: HttpRequest) -> Response:
        """OpenVLA's `/act`: the bare actions, float32 [D] of a horizon of 1, else [T, D]; of lists [B, ...]."""
        message, encoded = await self.http_message(request)
        if "query" in message:
            raise self.refused(400, "got a query, expected an instruction; questions go to /ask")
        answers, several = await self.answer_rows(message)
        actions = np.stack([answer.actions for answer in answers if answer.actions is not None])
        actions = actions[:, 0] if self.policy.requests.horizon == 1 else actions
        return http_answer(actions if several else actions[0], encoded)

    async def ask(self, request: HttpRequest) -> Response:
        message, encoded = await self.http_message(request)
        if "query" not in message:
            raise self.refused(400, "got no query, expected a question under it; instructions go to /act")
        answers, several = await self.answer_rows(message)
        texts = [answer.text for answer in answers]
        return http_answer({"answer": texts if several else texts[0]}, encoded)

    async def refuse(self, request: Any, error: Refusal) -> Response:
        return JSONResponse({"error": str(error)}, error.status)

    async def fail(self, request: Any, error: Exception) -> Response:
        return JSONResponse({"error": FAULT}, 500)

    async def http_message(self, request: HttpRequest) -> tuple[dict[str, Any], bool]:
        self.check_sender(request)
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.timeout):
                async for part in request.stream():
                    body += part
                    if len(body) > self.limits.message_bytes:
                        raise self.refused(
                            413, f"got a body of more than {self.limits.message_bytes} bytes; send smaller pictures"
                        )
        except TimeoutError:
            raise self.refused(408, f"got no whole body within {self.limits.timeout:g} s") from None
        except ClientDisconnect:
            raise self.refused(400, "got half a body") from None
        return await self.understood(_read_json, bytes(body))

    async def answer_rows(self, message: dict[str, Any]) -> tuple[list[Answer], bool]:
        """The answers to all observations in a message, and whether those are lists."""
        words = message.get("query", message.get("instruction", message.get("prompt")))
        several = isinstance(words, list)
        count = len(words) if isinstance(words, list) else 1
        if not 0 < count <= self.limits.queue:
            raise self.refused(400, f"got {count} observations, expected 1 to {self.limits.queue}")
        rows = [{key: row_of(value, row, count) for key, value in message.items()} for row in range(count)]
        self.rows += count
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self.answer(row if several else message, Session())) for row in rows]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        finally:
            self.rows -= count
        return [task.result() for task in tasks], several

    # Websockets

    async def serve_session(self, websocket: WebSocket) -> None:
        try:
            self.check_sender(websocket)
            if self.closing:
                raise self.refused(503, STOPPING)
            if self.sessions >= self.limits.connections:
                raise self.refused(
                    429, f"got a connection while {self.sessions} are open, which is the limit; try again later"
                )
        except Refusal as error:
            await websocket.send_denial_response(await self.refuse(None, error))
            return
        self.sessions += 1
        try:
            await websocket.accept()
            await self.send(websocket, pack(self.policy.describe()))
            await self.serve_messages(websocket)
        except (WebSocketDisconnect, TimeoutError):  # gone, or it does not read
            pass
        finally:
            self.sessions -= 1

    async def serve_messages(self, websocket: WebSocket) -> None:
        session: Session | None = Session()
        seconds = None  # that the last one took
        receiving = asyncio.ensure_future(websocket.receive())
        try:
            while session is not None and (message := await receiving)["type"] != "websocket.disconnect":
                began = time.perf_counter()
                receiving = asyncio.ensure_future(websocket.receive())
                self.busy += 1
                try:
                    session = await self.exchange(websocket, message, receiving, session, seconds)
                finally:
                    self.busy -= 1
                seconds = time.perf_counter() - began
        finally:
            receiving.cancel()

    async def exchange(
        self,
        websocket: WebSocket,
        message: Any,
        receiving: "asyncio.Future[Any]",
        session: Session,
        last: float | None,
    ) -> Session | None:
        """Answers a message; returns the session behind it, or `None` where that ended. `receiving` is what comes
        next, since a robot that leaves is not waited for; `last` are seconds that the message before took."""
        answering = asyncio.ensure_future(self.reply(message.get("bytes"), session))
        try:
            await asyncio.wait({receiving, answering}, return_when=asyncio.FIRST_COMPLETED)
            if receiving.done() and receiving.result()["type"] == "websocket.disconnect":
                return None
            reply, session = await answering
        except Refusal as error:
            await self.send(websocket, str(error))
            if error.status in CLOSES:
                await websocket.close(CLOSES[error.status])
                return None
            return session
        finally:
            answering.cancel()
        if last is not None and "server_timing" in reply:
            reply["server_timing"]["prev_total_ms"] = 1000 * last
        await self.send(websocket, pack(reply))
        return session

    async def reply(self, data: bytes | None, session: Session) -> tuple[dict[str, Any], Session]:
        if data is None:
            raise self.refused(400, "got a text, expected binary messages of msgpack, as openpi-client sends them")
        message = await self.understood(lambda: checked_dictionary(unpack(data)))
        if not isinstance(resets := message.get("reset", False), bool):
            raise self.refused(400, f"got {type(resets).__name__} as reset, expected true or false")
        if resets or str(message.get("endpoint")) == "reset":
            return await self.understood(self.after_reset, message, session)
        began = time.perf_counter()
        answer = await self.answer(message, session)
        reply: dict[str, Any] = {"server_timing": {"infer_ms": 1000 * (time.perf_counter() - began)}}
        if answer.actions is None:
            return {"answer": answer.text, **reply}, session
        reply |= {"text": answer.text, "episode": session.episode, "step": session.step}
        return {"actions": answer.actions, **reply}, replace(session, step=session.step + 1)

    def after_reset(self, message: dict[str, Any], session: Session) -> tuple[dict[str, Any], Session]:
        words, key, seed = message.get("prompt"), message.get("unnorm_key"), message.get("seed", 0)
        if not isinstance(seed, int):
            raise TypeError(f"got {type(seed).__name__} as seed, expected a whole number")
        episode = Session(
            None if words is None else words_of(words, "instruction"),
            None if key is None else self.policy.requests.checked_key(key),
            session.episode + 1,
            seed=seed,
        )
        return {"reset": True, "episode": episode.episode}, episode

    async def send(self, websocket: WebSocket, reply: bytes | str) -> None:
        sending = websocket.send_text(reply) if isinstance(reply, str) else websocket.send_bytes(reply)
        async with asyncio.timeout(self.limits.timeout):
            await sending

    # Both

    async def answer(self, message: dict[str, Any], session: Session) -> Answer:
        """The answer to one observation; raises `Refusal`."""
        began = time.perf_counter()
        request = await self.understood(self.policy.read, message, session)
        if self.closing:
            raise self.refused(503, STOPPING)
        try:
            answer = await (self.questions if request.asks else self.actions).answer(request)
        except Busy as error:
            raise self.refused(429, str(error)) from error
        except TooLate as error:
            raise self.refused(504, str(error)) from error
        except ValueError as error:
            status = 500 if wrote_no_action(error) else 400
            raise self.refused(status, str(error)) from error
        except Exception as error:
            log.exception("a batch failed")
            raise self.refused(500, f"the model failed ({type(error).__name__}); see the server's log") from error
        self.metrics.latency.labels("question" if request.asks else "action").observe(time.perf_counter() - began)
        self.metrics.rows.observe(answer.rows)
        self.metrics.passes.inc(answer.passes / answer.rows)
        return answer

    async def understood(self, read: Any, *given: Any) -> Any:
        """What a function makes of a message, in a thread, since pictures take time; its errors become a `Refusal`."""
        try:
            return await asyncio.to_thread(read, *given)
        except (ValueError, TypeError) as error:
            raise self.refused(400, str(error)) from error
        except Exception as error:
            log.exception("a message was not understood")
            raise self.refused(500, FAULT) from error

    def check_sender(self, connection: HTTPConnection) -> None:
        """Raises `Refusal` for a wrong key, and for pages in a browser, which say where they come from."""
        headers = connection.headers
        if "origin" in headers and not is_own_address(headers["origin"], headers.get("host", "")):
            raise self.refused(403, "got a request of a page in a browser, expected one of a robot's program")
        if self.limits.api_key is not None:
            scheme, _, key = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(key.strip().encode(), self.limits.api_key.encode())
            if scheme.lower() not in ("api-key", "bearer") or not right:
                raise self.refused(401, "got no key or a wrong one, expected the header Authorization: Api-Key KEY")
        connection.state.has_key = True  # for `PunctualProtocol`

    def refused(self, status: int, sentence: str) -> Refusal:
        self.metrics.refused.labels(str(status)).inc()
        return Refusal(status, sentence)


def is_own_address(origin: str, host: str) -> bool:
    """Whether an origin is what some libraries for robots write: the address that they connect to, not a page's.

    Names are no proof: a page can let its own name stand for this machine.
    """
    try:
        parts = urlsplit(origin)
        if parts.hostname != "localhost":
            ipaddress.ip_address(parts.hostname or "")
    except ValueError:  # no address, or a name
        return False
    return parts.netloc == host


def row_of(value: Any, row: int, count: int) -> Any:
    """A row's share of a body: lists and stacks have an entry for each of `count` rows, anything else is for all."""
    each = isinstance(value, list) or (isinstance(value, np.ndarray) and value.ndim in (2, 4))
    if not each:
        return value
    return value[row] if len(value) == count else value


def http_answer(answer: Any, encoded: bool) -> Response:
    """JSON as json_numpy writes it, once more in a text if the request was."""
    text = to_json(answer)
    return Response(to_json(text) if encoded else text, media_type="application/json")


def _read_json(body: bytes) -> tuple[dict[str, Any], bool]:
    message = checked_dictionary(from_json(body))
    if "encoded" not in message:
        return message, False
    if len(message) > 1 or not isinstance(message["encoded"], str):
        raise MessageError("got 'encoded' beside other keys or without a text, expected it alone, with JSON in a text")
    return checked_dictionary(from_json(message["encoded"])), True
