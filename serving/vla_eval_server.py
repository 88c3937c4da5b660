"""A published model as a model server of allenai's vla-eval: its harness asks, its benchmarks act.

    pip install "gen-vla[vla-eval]"
    python -m gen_vla.serving.vla_eval_server --args.model gen-vla/openvla-plus --host 127.0.0.1
    vla-eval run --config configs/libero_spatial.yaml          # of vla-eval, in another terminal

A model of one camera is shown the first picture of an observation; for a model of several, `cameras` says which of
the benchmark's pictures is which of its own: `--args.cameras "{top: agentview, wrist: wrist}"`.
"""

from collections.abc import Mapping
from typing import Any, Literal
from zlib import crc32

import numpy as np
import torch
from transformers import AutoModel, AutoProcessor
from vla_eval.model_servers.base import SessionContext
from vla_eval.model_servers.predict import PredictModelServer
from vla_eval.model_servers.serve import run_server
from vla_eval.specs import GRIPPER_CLOSE_POS, IMAGE_RGB, LANGUAGE, POSITION_DELTA, RAW, ROTATION_AA, DimSpec
from vla_eval.types import Action, Observation

from gen_vla.evaluation.libero.grippers import robosuite_actions
from gen_vla.evaluation.policies.cameras import camera_names
from gen_vla.serving.layouts import is_main, shown_keys
from gen_vla.serving.policy import ServedPolicy
from gen_vla.serving.requests import Request, Session


class GenVLAModelServer(PredictModelServer):
    """Answers vla-eval's harness with chunks of actions; sessions that ask together are one batch.

    Args:
        model: a folder or a name of the Hub; its own code is run.
        unnorm_key: the data set whose units the actions have; needed where the model knows several.
        cameras: the benchmark's picture for each of the model's cameras.
        gripper: `as_trained` leaves its values alone, `robosuite` makes them -1 for open and 1 for closed, as LIBERO
            and benchmarks built on robosuite want them.
        chunk_size: steps of a chunk that are carried out; by default all.
        max_batch_size, options: of `PredictModelServer`.

    Raises:
        ValueError: for a model that cannot act, an unknown key, or a camera without a picture.
    """

    def __init__(
        self,
        model: str,
        unnorm_key: str | None = None,
        cameras: dict[str, str] | None = None,
        gripper: Literal["as_trained", "robosuite"] = "as_trained",
        chunk_size: int | None = None,
        max_batch_size: int = 8,
        **options: Any,
    ):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        processor = AutoProcessor.from_pretrained(model, trust_remote_code=True)
        loaded = AutoModel.from_pretrained(model, trust_remote_code=True).eval().to(device)
        names = camera_names(processor)
        self.cameras = cameras or {}
        if names and (cameras or not is_main(names)) and sorted(self.cameras) != sorted(names):
            raise ValueError(
                f"got cameras {cameras}, expected the benchmark's picture for each of {', '.join(names)}; pass "
                f'--args.cameras "{{{names[0]}: agentview, ...}}"'
            )
        policy = ServedPolicy(loaded, processor, model, unnorm_key)
        horizon = policy.requests.horizon
        if chunk_size is not None and not 1 <= chunk_size <= horizon:
            raise ValueError(f"got chunk_size {chunk_size}, expected 1 to {horizon}, the model's horizon")
        self.policy, self.gripper = policy, gripper
        self.unnorm_key = policy.requests.checked_key(unnorm_key)
        self.statistics = loaded.get_action_stats(self.unnorm_key)
        if gripper == "robosuite":
            robosuite_actions(np.zeros((1, policy.requests.action_dim)), self.statistics)  # fails now, not later
        policy.warm_up(max_batch_size)
        super().__init__(chunk_size=chunk_size or horizon, max_batch_size=max_batch_size, **options)

    async def on_observation(self, obs: Observation, ctx: SessionContext) -> None:
        """Reads an observation before it joins a batch, so that a mistake is its session's own."""
        await super().on_observation({"request": self._request(obs, ctx)}, ctx)

    def predict_batch(self, obs_batch: list[Observation], ctx_batch: list[SessionContext]) -> list[Action]:
        """A chunk for each observation that `on_observation` has read, float32 [T, D]."""
        found = [answer.actions for answer in self.policy.run([obs["request"] for obs in obs_batch])]
        if self.gripper == "robosuite":
            found = [robosuite_actions(actions, self.statistics) for actions in found if actions is not None]
        return [{"actions": actions} for actions in found]

    def _request(self, observation: Mapping[str, Any], context: SessionContext) -> Request:
        """The pictures and words of an observation under the names of this package's own server."""
        pictures = observation.get("images")
        if not isinstance(pictures, Mapping) or not pictures:
            raise ValueError(f"got an observation with {shown_keys(observation)}, expected pictures by name in images")
        names = self.cameras or {"image": next(iter(pictures))}
        if missing := [key for key in names.values() if key not in pictures]:
            raise ValueError(f"got pictures with {shown_keys(pictures)}, expected {missing[0]} among them")
        shown = {name: pictures[key] for name, key in names.items()}
        session = Session(unnorm_key=self.unnorm_key, step=context.step, seed=crc32(context.episode_id.encode()))
        told = {"prompt": observation.get("task_description")}
        if (state := observation.get("states", observation.get("state"))) is not None and self.policy.states:
            told["state"] = np.asarray(state, dtype=np.float64).ravel()
        return self.policy.requests.read({**shown, **told}, session)

    def get_action_spec(self) -> dict[str, DimSpec]:
        """LIBERO's for `robosuite`; otherwise nothing is promised, since the training data decide."""
        if self.gripper == "robosuite":
            return {"position": POSITION_DELTA, "rotation": ROTATION_AA, "gripper": GRIPPER_CLOSE_POS}
        return {"actions": RAW}

    def get_observation_spec(self) -> dict[str, DimSpec]:
        """Without `cameras` the first picture will do, whatever the benchmark calls it."""
        return {**dict.fromkeys(self.cameras.values(), IMAGE_RGB), "language": LANGUAGE}

    def get_observation_params(self) -> dict[str, Any]:
        """What benchmarks are asked to send: the picture from the wrist where the model has several cameras, and the
        robot's state where the model takes it."""
        asked = {"send_wrist_image": len(self.cameras) > 1, "send_state": bool(self.policy.states)}
        return {name: True for name, wanted in asked.items() if wanted}


if __name__ == "__main__":
    run_server(GenVLAModelServer)
