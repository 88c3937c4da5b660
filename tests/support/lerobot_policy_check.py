"""Trains a policy for some steps in LeRobot's environment, asks it, saves it and loads it; prints what came out.

python lerobot_policy_check.py REPOSITORY FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors
from lerobot_policy_gen_vla import GenVLAConfig
from lerobot_policy_gen_vla.modeling_gen_vla import GenVLAPolicy


FEATURES = {
    "input_features": {"observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 24, 32))},
    "output_features": {"action": PolicyFeature(FeatureType.ACTION, (7,))},
}


def main(repository: str, folder: str) -> None:
    torch.manual_seed(0)
    config = GenVLAConfig(
        checkpoint_path=repository, trust_remote_code=True, unnorm_key="bridge_orig", device="cpu", **FEATURES
    )
    assert config.action_delta_indices == [0, 1, 2]
    policy = GenVLAPolicy(config)
    generator = np.random.default_rng(0)
    pictures = generator.integers(0, 256, (2, 24, 32, 3), dtype=np.uint8)
    actions = generator.uniform(-0.02, 0.02, (2, 3, 7))
    actions[..., 6] = generator.integers(0, 2, (2, 3))
    padding = np.array([[False, False, False], [False, False, True]])
    before, _ = make_pre_post_processors(config)
    batch = before(
        {
            "observation.images.top": torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255,
            "action": torch.from_numpy(actions).float(),
            "action_is_pad": torch.from_numpy(padding),
            "task": ["close the drawer"] * 2,
        }
    )
    first, said = policy.forward(batch)
    found = {
        "loss": first.item(),
        "tokens": said["tokens"],
        "answer": policy.generate_text({**batch, "query_text": "how many?"}),
    }
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        policy.forward(batch)[0].backward()
        optimizer.step()
    policy.eval()
    found["trained_loss"] = policy.forward(batch)[0].item()
    found["before_saving"] = policy.predict_action_chunk(batch).tolist()
    policy.save_pretrained(folder)
    found["after_loading"] = GenVLAPolicy.from_pretrained(folder).predict_action_chunk(batch).tolist()
    gathered = Path(folder, "gathered")  # as LeRobot 0.6 saves under FSDP
    policy._save_pretrained(gathered, state_dict=policy.state_dict())
    found["after_gathering"] = GenVLAPolicy.from_pretrained(gathered).predict_action_chunk(batch).tolist()
    found |= {"pictures": pictures.tolist(), "action_is_pad": padding.tolist()}
    found["normalized"] = policy._targets(batch)[0].tolist()
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
