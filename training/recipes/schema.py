"""The settings of a recipe: their types, defaults, ranges, and which of them contradict each other.

Those of its data sets are in `data_schema.py`; `loading.py` reads all of them from YAML. `recipe.schema.json` is
for editors and is written by

    python -m gen_vla.training.recipes.schema
"""

import json
import re
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass
from pydantic.json_schema import GenerateJsonSchema

from gen_vla.processors.relative_actions import check_groups
from gen_vla.training.recipes.data_schema import STRICT, DataRecipe, RecipeError


FROZEN = {"openvla_plus": ("siglip", "dino", "all", None), "vla_plus": ("vision", None)}
Normalization = Literal["quantiles", "min_max", "mean_std"]  # `processors/action_statistics.py`
PACKAGE_PREFIX = "package://"  # before the name of a model that comes with the package
MINI = "mini-"  # begins the name of a recipe at a small size
SCHEMA_FILE = Path(__file__).resolve().parent / "recipe.schema.json"


@dataclass(frozen=True, config=STRICT)
class ModelRecipe:
    """The architecture, or the model to start from."""

    family: Literal["openvla_plus", "pi0_flow", "vla_plus"] = "openvla_plus"
    """`openvla_plus`: DINOv2, SigLIP and Llama. `vla_plus`: any vision-language model that `gen-vla convert` takes,
    named by `initial_model`, such as PaliGemma for π0+; from random weights a LLaVA of SigLIP and Llama. `pi0_flow`:
    SigLIP, Gemma and an action expert, the flow-matching π0: a baseline that learns from robot data alone and trains
    all weights."""
    initial_model: str | None = None
    """Folder of a model to start from, relative to the work folder, or `hf://OWNER/NAME[@REVISION]`, or `package://NAME`
    for one that comes with the package; null for random weights."""
    frozen: Literal["siglip", "dino", "all", "vision"] | None = "siglip"
    """The vision encoder that is never trained (D), or `all`; null for none. In `vla_plus` it is `vision`."""
    initializer_range: float = Field(default=0.02, gt=0)
    """Standard deviation of random weights, above 0. Ignored with `initial_model`, like the four settings below."""
    dino: dict[str, Any] = field(default_factory=dict)
    """Fields of the DINOv2 encoder's configuration, as in transformers; for `openvla_plus` only."""
    siglip: dict[str, Any] = field(default_factory=dict)
    """Fields of the SigLIP encoder's configuration, as in transformers."""
    text: dict[str, Any] = field(default_factory=dict)
    """Fields of the language model's configuration, as in transformers."""
    expert: dict[str, Any] = field(default_factory=dict)
    """Fields of the action expert's configuration, a Gemma as deep as `text` and with its heads; for `pi0_flow`."""

    def __post_init__(self) -> None:
        choices = FROZEN.get(self.family, (self.frozen,))
        if self.frozen not in choices:
            names = " or ".join("null" if choice is None else repr(choice) for choice in choices)
            raise RecipeError(f"got frozen={self.frozen!r} for {self.family}, expected {names}, its encoders")
        if self.family != "openvla_plus" and self.dino:
            raise RecipeError(f"got dino={self.dino} for {self.family}, expected none: it has no DINOv2")
        if self.family != "pi0_flow" and self.expert:
            raise RecipeError(f"got expert={self.expert} for {self.family}, expected none: only pi0_flow has one")


@dataclass(frozen=True, config=STRICT)
class TokenizerRecipe:
    """A tokenizer trained on the recipe's own text; unused with `model.initial_model`."""

    vocab_size: int = Field(default=1024, ge=1)
    """Largest number of tokens, at least 1."""
    texts_from: list[str] = field(default_factory=list)
    """Folders of recorded data sets, relative to the work folder, whose prompts and answers are the text."""
    texts_from_rows: int = Field(default=0, ge=0)
    """Number of first rows of each data set of the recipe that are text, too; 0 or more."""
    instructions: list[str] = field(default_factory=list)
    """Further text: instructions that later runs will add."""


@dataclass(frozen=True, config=STRICT)
class ActionRecipe:
    """How actions are written (S)."""

    representation: Literal["string", "bins", "flow"] = "string"
    """`string`: digits. `bins`: one of 256 tokens per value, as in OpenVLA (the baseline without S). `flow`: numbers
    by flow matching, for `model.family: pi0_flow` only."""
    bin_tokens: Literal["last", "bytes"] = "last"
    """Tokens of the bins: `last` takes the last 256 of the vocabulary, as OpenVLA does; `bytes` the byte tokens, for a
    small vocabulary whose other tokens are all in use."""
    style: Literal["signed", "plain", "legacy"] = "signed"
    """How a string is written: `signed` has a fixed width and one token per character; `plain` is the paper's;
    `legacy` that of the authors' release."""
    action_dim: int = Field(default=7, ge=1)
    """Values of one step, as the data sets hold them; at least 1."""
    horizon: int = Field(default=1, ge=1)
    """Steps of a chunk, at least 1; those behind an episode's end are not learned."""
    decimals: int = Field(default=4, ge=1)
    """Decimals of a value in a string, at least 1."""
    binary_dims: list[int] = field(default_factory=lambda: [6])
    """Dimensions, counted from 0, that are only ever 0 or 1, such as the gripper of an OpenVLA action: they stay as
    they are, while all others are scaled. `[]` for none, as where a gripper has a width or an angle."""
    normalization: Normalization | list[Normalization] = "quantiles"
    """What becomes -1 and 1, for all dimensions or one name for each: `quantiles`, q01 and q99; `min_max`, where no
    value may be clipped and none is an outlier; `mean_std`, 5 standard deviations from the mean, where rare values
    matter. Values beyond are clipped."""
    label_decimals: int | None = Field(default=None, ge=0)
    """Decimals of a training label that carry information, the rest are written as zeros; null for all. Fewer than
    `decimals` spares a small model from fitting noise."""

    def __post_init__(self) -> None:
        if any(not 0 <= dim < self.action_dim for dim in self.binary_dims):
            raise RecipeError(
                f"got binary_dims={self.binary_dims} with action_dim={self.action_dim}, expected dimensions from 0 to "
                f"{self.action_dim - 1}: those that are only ever 0 or 1, [] where none is"
            )
        if isinstance(self.normalization, list) and len(self.normalization) != self.action_dim:
            raise RecipeError(
                f"got a normalization of {len(self.normalization)} dimensions with action_dim={self.action_dim}, "
                "expected a name for each dimension, or one name for all"
            )
        if self.representation != "string" and self.label_decimals is not None:
            raise RecipeError(
                f"got label_decimals={self.label_decimals} with representation {self.representation!r}, expected "
                "none: only strings have decimals"
            )


@dataclass(frozen=True, config=STRICT)
class LossRecipe:
    """What the loss weighs."""

    balance: Literal["token", "example", "source"] = "token"
    """What counts the same. `token`: every supervised token, so that longer answers weigh more (the paper's loss);
    `example`: every row; `source`: the robot and the vision-language half."""
    vision_language_weight: float = Field(default=1.0, gt=0)
    """What the loss of vision-language rows is multiplied by, above 0; that of robot rows stays as it is."""
    decimal_weights: list[Annotated[float, Field(ge=0)]] = field(default_factory=list)
    """Weights of the decimals of an action value, the first decimal first, 0 or more; missing ones are 1."""
    constant_dimension_weight: float = Field(default=1.0, ge=0)
    """Weight of action dimensions that never vary in the data, 0 or more."""


@dataclass(frozen=True, config=STRICT)
class LoraRecipe:
    """Low-rank adapters in the language model; the saved model has them merged in."""

    rank: int = Field(default=32, ge=1)
    """`r` of peft's `LoraConfig`, at least 1."""
    alpha: float = Field(default=16.0, gt=0)
    """`lora_alpha` of peft's `LoraConfig`, above 0."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """`lora_dropout` of peft's `LoraConfig`, from 0 to below 1."""
    tower: Literal["full", "lora"] = "full"
    """The trainable encoder and the projector: `full` trains all of their weights, `lora` adapters only."""


@dataclass(frozen=True, config=STRICT)
class RatesRecipe:
    """The largest learning rates of parts of the model; null for `training.learning_rate`."""

    vision: float | None = Field(default=None, gt=0)
    """Of encoders that train, above 0."""
    projector: float | None = Field(default=None, gt=0)
    """Of what turns an encoder's features into image tokens, above 0."""
    language_model: float | None = Field(default=None, gt=0)
    """Of the language model and all else that trains in full, above 0."""
    adapters: float | None = Field(default=None, gt=0)
    """Of LoRA adapters, above 0; null for 5e-4, with which OpenVLA trains them."""


@dataclass(frozen=True, config=STRICT)
class RolloutsRecipe:
    """Trials of the tabletop simulator while a run trains, in the look of its demonstrations. The main process runs
    them and the others wait, so that its weights have to be whole: neither FSDP nor DeepSpeed."""

    steps: int = Field(ge=1)
    """Steps between rollouts, at least 1."""
    trials: int = Field(default=5, ge=1)
    """Trials of each task, always of the same layouts, which are in no demonstrations; at least 1."""
    tasks: list[Literal["pick_object", "move_near", "open_drawer", "close_drawer"]] | None = None
    """Names of tasks; null for all four."""
    key: str | None = None
    """The robot data set whose statistics scale the actions; null for the only one."""


@dataclass(frozen=True, config=STRICT)
class TrainingRecipe:
    """Optimisation; names and meanings are those of transformers' `TrainingArguments`, unless stated otherwise."""

    steps: int = Field(ge=1)
    """Optimizer steps, at least 1."""
    batch_size: int = Field(default=16, ge=1)
    """Rows per device, at least 1; an even number where both kinds of data are mixed half and half."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """The largest learning rate, above 0, of weights that train in full; it falls along a cosine after the warm-up."""
    learning_rates: RatesRecipe = field(default_factory=RatesRecipe)
    """Other largest learning rates of parts of the model, which rise and fall alike."""
    min_learning_rate_rate: float = Field(default=0.1, ge=0, le=1)
    """The last learning rate as a share of the largest, 0 to 1."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the learning rate rises from 0, 0 or more."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of AdamW, 0 or more."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Largest norm of the gradient; a larger gradient is scaled down to it. 0 for no limit."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """AdamW's second beta, from 0 to below 1."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Batches per optimizer step, at least 1."""
    gradient_checkpointing: bool = True
    """Whether activations are computed again in the backward pass, which saves memory and takes time."""
    bf16: bool = True
    """Whether the forward pass computes in bfloat16."""
    save_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Type of the finished model's weights; `auto` is bfloat16 from a billion parameters on, if `bf16` is true, and
    otherwise float32. Training and its checkpoints keep weights and optimizer state in float32."""
    lora: LoraRecipe | None = None
    """Adapters to train instead of all weights; null for all weights."""
    save_steps: int = Field(default=1000, ge=1)
    """Steps between checkpoints, at least 1."""
    save_total_limit: int = Field(default=2, ge=1)
    """Checkpoints that are kept at most, at least 1: the newest ones, and with `data.validation` always the one with
    the lowest held-out loss, of robot data where any is held out."""
    eval_steps: int | None = Field(default=None, ge=1)
    """Steps between scores of what `data.validation` holds out, at least 1; null for `save_steps`. `save_steps` is a
    multiple of it, so that every checkpoint has its score."""
    rollouts: RolloutsRecipe | None = None
    """Trials of the tabletop simulator while the run trains, whose success goes to the log; null for none."""
    logging_steps: int = Field(default=20, ge=1)
    """Steps between figures in the log, at least 1."""
    report_to: Literal["none", "trackio", "wandb", "tensorboard"] = "none"
    """Where the figures go besides the log."""
    seed: int = Field(default=0, ge=0)
    """Seed of weights, order of rows and augmentation, 0 or more."""

    def __post_init__(self) -> None:
        if self.save_steps % (self.eval_steps or 1):
            raise RecipeError(
                f"got eval_steps={self.eval_steps} and save_steps={self.save_steps}, expected save_steps to be a "
                "multiple, so that every checkpoint has its held-out score"
            )


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """A training recipe of gen-vla: one run."""

    name: str
    """Name of the run, and of its folder in the work folder: letters, digits, `.`, `_` and `-`."""
    description: str
    """One sentence for tables and cards."""
    training: TrainingRecipe
    """Optimisation."""
    pretraining: TrainingRecipe | None = None
    """Optimisation of the vision encoders alone, before `training`, on a label per image token of the recorded
    questions' pictures; null for encoders from random weights. For `openvla_plus` without `initial_model`."""
    model: ModelRecipe = field(default_factory=ModelRecipe)
    """The architecture, or the model to start from."""
    tokenizer: TokenizerRecipe = field(default_factory=TokenizerRecipe)
    """A tokenizer trained on the recipe's own text; unused with `model.initial_model`."""
    actions: ActionRecipe = field(default_factory=ActionRecipe)
    """How actions are written (S)."""
    data: DataRecipe = field(default_factory=DataRecipe)
    """What a batch is made of."""
    loss: LossRecipe = field(default_factory=LossRecipe)
    """What the loss weighs."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name):
            raise RecipeError(f"got name {self.name!r}, expected letters, digits, '.', '_' and '-': it names a folder")
        if not self.data.robot and not self.data.questions:
            raise RecipeError("got no data sets, expected some in data.robot or data.vision_language")
        robots = self.training.batch_size * self.data.robot_share
        if self.data.robot and self.data.questions and abs(robots - round(robots)) > 1e-9:
            half = (
                "an even number, since half"
                if self.data.robot_share == 0.5
                else (f"one of which data.robot_share={self.data.robot_share} is a whole number, since that share")
            )
            raise RecipeError(
                f"got training.batch_size={self.training.batch_size}, expected {half} of every per-device batch is "
                "robot data"
            )
        for number, source in enumerate(self.data.robot):
            wrong = [dim for dim in source.displacements or () if not self.may_be_displacement(dim)]
            if wrong:
                raise RecipeError(
                    f"data.robot.{number} ({source.key!r}): got displacements with {wrong}, expected dimensions from "
                    f"0 to {self.actions.action_dim - 1} that actions.binary_dims does not name"
                )
            groups, binary = [group.entry() for group in source.relative], self.actions.binary_dims
            try:
                check_groups(groups, self.actions.action_dim, f"data.robot.{number} ({source.key!r})")
            except ValueError as error:
                raise RecipeError(str(error)) from error
            if wrong := [dim for group in groups for dim in group["dims"] if dim in binary]:
                raise RecipeError(
                    f"data.robot.{number} ({source.key!r}): got relative actions with {wrong}, expected dimensions "
                    "that actions.binary_dims does not name: 0 and 1 are where a gripper is to be"
                )
        if self.pretraining and (self.model.family != "openvla_plus" or self.model.initial_model):
            raise RecipeError(
                f"got pretraining with model.family={self.model.family!r} and model.initial_model="
                f"{self.model.initial_model!r}, expected openvla_plus from random weights, or no pretraining"
            )
        if self.data.picture_options and (self.model.family != "vla_plus" or not self.model.initial_model):
            raise RecipeError(
                f"got data.picture_options with model.family={self.model.family!r} and model.initial_model="
                f"{self.model.initial_model!r}, expected vla_plus from a converted model, or no picture_options"
            )
        if self.pretraining and self.data.validation and self.data.validation.questions:
            raise RecipeError(
                "got data.validation.questions with pretraining, expected none: encoders learn from the pictures of "
                "all recorded questions; record other questions for a test, or start from pretrained encoders"
            )
        self._check_flow()
        # Adapters would never learn what random weights lack; at mini size, where nothing is learned, they show that a
        # run works.
        if self.training.lora and self.model.initial_model is None and not self.name.startswith(MINI):
            raise RecipeError(
                "got training.lora without model.initial_model, expected a model to adapt; name one, or leave lora out"
            )

    def _check_flow(self) -> None:
        family, representation = self.model.family, self.actions.representation
        if self.is_flow != (representation == "flow"):
            raise RecipeError(
                f"got model.family={family!r} with actions.representation={representation!r}, expected 'pi0_flow' "
                "with 'flow' or neither: the flow-matching π0 writes no tokens, and the others nothing else"
            )
        if not self.is_flow:
            return
        for setting, value, expected in (
            ("model.frozen", self.model.frozen, None),
            ("data.co_training", [source.name for source in self.data.questions], []),
            ("training.lora", self.training.lora, None),
            ("loss.balance", self.loss.balance, "token"),
            ("loss.vision_language_weight", self.loss.vision_language_weight, 1.0),
            ("loss.decimal_weights", self.loss.decimal_weights, []),
            ("loss.constant_dimension_weight", self.loss.constant_dimension_weight, 1.0),
        ):
            if value != expected:
                raise RecipeError(
                    f"got {setting}={value!r} for the flow-matching π0, expected {expected!r}: it learns from robot "
                    "data alone, with one loss over all numbers of an action, and all of its weights train"
                )

    @property
    def is_flow(self) -> bool:
        return self.model.family == "pi0_flow"

    @property
    def takes_state(self) -> bool:
        """Whether acting needs the robot's state: the model is shown it, or actions are relative to it."""
        return self.data.state or any(source.relative for source in self.data.robot)

    def may_be_displacement(self, dim: int) -> bool:
        """Whether a dimension of an action is there and has more values than 0 and 1."""
        return 0 <= dim < self.actions.action_dim and dim not in self.actions.binary_dims


class _EditorSchema(GenerateJsonSchema):
    """With the defaults of lists and dictionaries, and without titles, which would only repeat names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def get_default_value(self, schema: Any) -> Any:
        made = schema["default_factory"]() if "default_factory" in schema else None
        return made if isinstance(made, (list, dict)) else super().get_default_value(schema)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe's file, which may be partial: what it `extends` has the rest.

    Entries of lists are not merged, so that what these must have stays required.
    """
    schema = json.loads(
        json.dumps(TypeAdapter(Recipe).json_schema(schema_generator=_EditorSchema)).replace("\\n", " ")
    )
    for partial in (schema, schema["$defs"]["TrainingRecipe"]):
        del partial["required"]
    name = {"type": "string"}
    extends = {
        "description": "A recipe, or a list of them, by file beside this one or by name, to start from: each is over "
        "the one before it, and this file over all of them.",
        "anyOf": [name, {"type": "array", "items": name}],
    }
    schema["properties"] = {"extends": extends, **schema["properties"]}
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema}


if __name__ == "__main__":
    SCHEMA_FILE.write_text(json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"Wrote {SCHEMA_FILE}")
