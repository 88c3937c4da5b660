"""The settings of a recipe: what there is, of which type, with which default, and which of them contradict each other.

Decides: names, types, defaults, and every contradiction that shows without looking at data. Refuses to know: YAML,
`extends` and overrides (`recipes/loading.py`), how any setting is carried out.
"""

import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

from gen_vla.training.flow.recipe_rules import flow_contradiction
from gen_vla.training.mixing.image_augmentation import ImageAugmentation
from gen_vla.training.recipes.rules import RecipeError, at_least_one, check_unique


@dataclass(frozen=True)
class ModelRecipe:
    """The architecture, or the model to start from.

    Attributes:
        family: `"openvla_plus"` (DINOv2, SigLIP, Llama), `"pi0_plus"` (SigLIP, once or twice, Gemma) or `"pi0_flow"`
            (SigLIP, Gemma and an action expert: the flow-matching π0, a baseline; see `flow/recipe_rules.py`).
        initial_model: folder of a model to start from, relative to the work folder, or `hf://OWNER/NAME[@REVISION]`;
            `None` for random weights.
        frozen: the encoder that never moves (D), or `None`.
        initializer_range: see `OpenVLAPlusConfig`; ignored with `initial_model`, like the next three.
        dino, siglip, text: fields of the sub-configurations; π0+ has no DINOv2.
        expert: fields of the flow-matching π0's action expert, a Gemma as deep as `text`, with the same heads.
    """

    family: Literal["openvla_plus", "pi0_plus", "pi0_flow"] = "openvla_plus"
    initial_model: str | None = None
    frozen: Literal["siglip", "dino"] | None = "siglip"
    initializer_range: float = 0.02
    dino: dict[str, Any] = field(default_factory=dict)
    siglip: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    expert: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.family == "pi0_plus" and self.frozen == "dino":
            raise RecipeError("model: got frozen='dino' for pi0_plus, expected 'siglip' or null: it has no DINOv2")
        if self.family != "openvla_plus" and self.dino:
            raise RecipeError(f"model: got dino={self.dino} for {self.family}, expected none: it has no DINOv2")
        if self.family != "pi0_flow" and self.expert:
            raise RecipeError(
                f"model: got expert={self.expert} for {self.family}, expected none: only pi0_flow has one"
            )


@dataclass(frozen=True)
class TokenizerRecipe:
    """A tokenizer trained on the recipe's own text; unused with `model.initial_model`.

    Attributes:
        vocab_size: pieces at most.
        texts_from: recorded data sets whose prompts and answers are the text.
        texts_from_rows: as many of the first rows of each of the recipe's sources are text, too.
        instructions: instructions that later runs will add.
    """

    vocab_size: int = 1024
    texts_from: list[str] = field(default_factory=list)
    texts_from_rows: int = 0
    instructions: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ActionRecipe:
    """How actions are written (S).

    Attributes:
        representation: `"string"`; `"bins"`, OpenVLA's one token per value (the baseline without S); or `"flow"`,
            numbers that the flow-matching π0 makes out of noise, for which all but dimensions and horizon means
            nothing. For bins, `style` and `decimals` mean nothing.
        bin_tokens: which tokens the bins take: `"last"`, the last 256 of the vocabulary, as OpenVLA does; `"bytes"`,
            the byte pieces, for a small vocabulary of which every other piece is in use.
        action_dim: values of one step, as the data sets hold them.
        binary_dims: dimensions that are only ever 0 or 1, such as the gripper of an OpenVLA action; they stay as they
            are, all others are scaled. `[]` for none, as where a gripper has a width or an angle.
        horizon: steps of a chunk; those behind an episode's end are not learned.
        label_decimals: decimals of a training label that carry information; the rest are written as zeros. Fewer than
            `decimals` spares a small model from fitting noise. `None` means all.
    """

    representation: Literal["string", "bins", "flow"] = "string"
    bin_tokens: Literal["last", "bytes"] = "last"
    style: Literal["signed", "plain", "legacy"] = "signed"
    action_dim: int = 7
    horizon: int = 1
    decimals: int = 4
    binary_dims: list[int] = field(default_factory=lambda: [6])
    label_decimals: int | None = None

    def __post_init__(self) -> None:
        at_least_one("actions", self, ("action_dim", "horizon"))
        if any(not 0 <= dim < self.action_dim for dim in self.binary_dims):
            raise RecipeError(
                f"actions: got binary_dims={self.binary_dims} with action_dim={self.action_dim}, expected dimensions "
                f"from 0 to {self.action_dim - 1}: those that are only ever 0 or 1, [] where none is"
            )
        if self.representation != "string" and self.label_decimals is not None:
            raise RecipeError(
                f"actions: got label_decimals={self.label_decimals} with representation {self.representation!r}, "
                "expected none: only strings have decimals"
            )


Simulator = Literal["drawers", "tabletop"]


@dataclass(frozen=True)
class DemonstrationRecording:
    """Arguments of the simulator's `record_demonstrations`.

    Attributes:
        simulator: `"drawers"` (`metaworld_recording`) or `"tabletop"` (`tabletop_recording`).
        start, variation: of the drawers only: by default `"half-open"` and `"modest"`.
    """

    episodes_per_task: int
    seed: int = 0
    simulator: Simulator = "drawers"
    start: Literal["stock", "half-open"] | None = None
    variation: Literal["none", "modest", "full"] | None = None
    paraphrase: bool = False

    def __post_init__(self) -> None:
        if self.simulator == "tabletop" and (self.start or self.variation):
            raise RecipeError(
                f"record: got start={self.start!r} and variation={self.variation!r} for the tabletop, expected none: "
                "it has one way to start and one look"
            )

    def arguments(self) -> dict[str, Any]:
        """Those of the recorder."""
        shared = {"episodes_per_task": self.episodes_per_task, "seed": self.seed, "paraphrase": self.paraphrase}
        if self.simulator == "tabletop":
            return shared
        return {**shared, "start": self.start or "half-open", "variation": self.variation or "modest"}


@dataclass(frozen=True)
class QuestionRecording:
    """Arguments of the simulator's `record_questions`; `simulator` as for demonstrations."""

    count: int
    seed: int = 0
    simulator: Simulator = "drawers"

    def arguments(self) -> dict[str, Any]:
        """Those of the recorder."""
        return {"count": self.count, "seed": self.seed}


@dataclass(frozen=True)
class RobotSource:
    """A robot data set: RLDS, LeRobot, or recorded (columns image, instruction, action, episode_index).

    Attributes:
        path: its folder, relative to the work folder, or `hf://datasets/OWNER/NAME[@REVISION]/...`.
        key: its name in the statistics, and later the `unnorm_key`.
        cameras: names of the pictures a row shows, in this order; by default the data set's main camera. All robot
            data sets show as many, and the model keeps the names of the first (`recipes/cameras.py`).
        transform: what turns its actions into the family's: `"bridge"`, `"fractal"`, `None` for none, or `"auto"`, by
            the data set's own name.
        action, state: names of the features that hold them; several are put side by side.
        split: which part of an RLDS or LeRobot data set, by the name it has there; by default all episodes of a
            LeRobot set, which itself has no splits when it is read, and `"train"` of an RLDS set.
        without_instruction: what becomes of steps whose task is null, empty or missing: `"skip"` counts them and
            leaves them out, `"refuse"` stops before the first step.
        every: of so many steps of an episode one is a row, for data faster than a policy can act; 5 makes 10 Hz of 50.
            Its action leads from there to the next row (`transforms.thinned`), and chunks are of such steps.
        displacements: dimensions of an action that say how far to move, not where to be: with `every` they are summed,
            while all others are as in the last step. `[]` for none; the transforms know theirs.
        weight: how often its rows come beside those of the other robot data sets.
        record: how to record it from the simulator's experts if the folder is missing.
    """

    path: str
    key: str
    cameras: list[str] | None = None
    transform: Literal["auto", "bridge", "fractal"] | None = "auto"
    action: list[str] | None = None
    state: list[str] | None = None
    split: str | None = None
    without_instruction: Literal["skip", "refuse"] = "skip"
    every: int = 1
    displacements: list[int] | None = None
    weight: float = 1.0
    record: DemonstrationRecording | None = None

    def __post_init__(self) -> None:
        at_least_one(f"data: robot {self.key!r}", self, ("every",))
        if not 0 < self.weight < float("inf"):
            raise RecipeError(f"data: robot {self.key!r}: got weight={self.weight}, expected a number above 0")


@dataclass(frozen=True)
class VisionLanguageSource:
    """A vision-language data set in one of the published layouts, or recorded (columns image, question, answer).

    Attributes:
        path, record: as for a robot data set.
        name: what figures and reports call it.
        format: the layout; `"auto"` looks at the files.
        configs: parts of a data set that has several, by name; by default all.
    """

    path: str
    name: str
    format: Literal["auto", "llava", "vqasynth", "onevision", "robopoint", "recorded"] = "auto"
    configs: list[str] | None = None
    record: QuestionRecording | None = None


@dataclass(frozen=True)
class InstructionAugmentation:
    """Paraphrases in place of a robot row's instruction, from the lists for training.

    Attributes:
        probability: how often, in 0..1.
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise RecipeError(f"instruction_augmentation: got probability={self.probability}, expected (0, 1]")


@dataclass(frozen=True)
class DataRecipe:
    """What a batch is made of. With both kinds, half of every per-device batch is robot data (C).

    Attributes:
        robot, vision_language: the data sets there are.
        co_training: names of the vision-language sets that are used (C): `None` means all of them, `[]` none.
        image_size: side of the pictures the encoders see, in pixels.
        streaming: read the data sets shard by shard, in an order shuffled by a buffer, instead of in a perfectly
            shuffled order from a table on this machine's disk.
        shuffle_buffer: rows of a streamed data set among which the next one is drawn.
        num_workers: processes per device that read, decode and tokenize; 0 does it in the training process.
        max_bad_share: the share of unreadable rows of a data set, in 0..1, that stops a run.
        image_augmentation: random crops and colours of robot rows' pictures, or `None`; the saved model's image
            processor then crops the centre.
        instruction_augmentation: paraphrases of instructions, or `None`.
    """

    robot: list[RobotSource] = field(default_factory=list)
    vision_language: list[VisionLanguageSource] = field(default_factory=list)
    co_training: list[str] | None = None
    image_size: int = 64
    streaming: bool = False
    shuffle_buffer: int = 1000
    num_workers: int = 0
    max_bad_share: float = 0.01
    image_augmentation: ImageAugmentation | None = None
    instruction_augmentation: InstructionAugmentation | None = None

    def __post_init__(self) -> None:
        at_least_one("data", self, ("shuffle_buffer", "image_size"))
        if self.num_workers < 0:
            raise RecipeError(f"data: got num_workers={self.num_workers}, expected 0 or more")
        if not 0 <= self.max_bad_share <= 1:
            raise RecipeError(f"data: got max_bad_share={self.max_bad_share}, expected a share from 0 to 1")
        check_unique("key", [source.key for source in self.robot], "robot data sets", "statistics are kept by key")
        names = [source.name for source in self.vision_language]
        check_unique("name", names, "vision-language data sets", "figures are kept by name")
        for name in self.co_training or []:
            if name not in names:
                near = get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise RecipeError(
                    f"data: got co_training with {name!r}, which is no vision-language data set here; {hint}"
                    f"known: {', '.join(names)}"
                )

    @property
    def questions(self) -> list[VisionLanguageSource]:
        """The vision-language sets that are used."""
        used = self.co_training
        return [source for source in self.vision_language if used is None or source.name in used]


@dataclass(frozen=True)
class LossRecipe:
    """What the loss weighs.

    Attributes:
        balance: `"token"`: every supervised token counts the same, so longer answers weigh more (the paper's loss);
            `"example"`: every row counts the same; `"source"`: robot and vision-language halves count the same.
        decimal_weights: weights of the decimals of an action value, the first one first; missing ones count 1.
        constant_dimension_weight: weight of dimensions that never vary in the data.
    """

    balance: Literal["token", "example", "source"] = "token"
    decimal_weights: list[float] = field(default_factory=list)
    constant_dimension_weight: float = 1.0


@dataclass(frozen=True)
class LoraRecipe:
    """Low-rank adapters in the language model; the saved model has them merged in.

    Attributes:
        rank, alpha, dropout: as in peft's `LoraConfig`.
        tower: the trained encoder and the projector: `"full"` trains all of their weights, `"lora"` adapters only.
    """

    rank: int = 32
    alpha: float = 16.0
    dropout: float = 0.0
    tower: Literal["full", "lora"] = "full"

    def __post_init__(self) -> None:
        at_least_one("training: lora", self, ("rank",))


@dataclass(frozen=True)
class TrainingRecipe:
    """Optimisation.

    Attributes:
        batch_size: rows per device; an even number where two kinds of data are mixed.
        lora: train adapters instead of all weights.
        report_to: where the figures go besides the log, a service of the trainer's.
    """

    steps: int
    batch_size: int = 16
    learning_rate: float = 2e-5
    min_learning_rate_rate: float = 0.1
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    adam_beta2: float = 0.999
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = True
    bf16: bool = True
    lora: LoraRecipe | None = None
    save_steps: int = 1000
    logging_steps: int = 20
    report_to: Literal["none", "trackio", "wandb", "tensorboard"] = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        names = ("steps", "batch_size", "gradient_accumulation_steps", "save_steps", "logging_steps")
        at_least_one("training", self, names)


@dataclass(frozen=True)
class Recipe:
    """One run. `name` is also its folder in the work folder."""

    name: str
    description: str
    training: TrainingRecipe
    model: ModelRecipe = field(default_factory=ModelRecipe)
    tokenizer: TokenizerRecipe = field(default_factory=TokenizerRecipe)
    actions: ActionRecipe = field(default_factory=ActionRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    loss: LossRecipe = field(default_factory=LossRecipe)

    def __post_init__(self) -> None:
        """Settings that contradict each other fail here, before anything is recorded or loaded."""
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name):
            raise RecipeError(f"got name {self.name!r}, expected letters, digits, '.', '_' and '-': it names a folder")
        if not self.data.robot and not self.data.questions:
            raise RecipeError(f"{self.name}: got no data sets, expected some in data.robot or data.vision_language")
        if self.data.robot and self.data.questions and self.training.batch_size % 2:
            raise RecipeError(
                f"{self.name}: got batch_size={self.training.batch_size}, expected an even number, since half of "
                "every per-device batch is robot data"
            )
        for source in self.data.robot:
            wrong = [dim for dim in source.displacements or () if not self.may_be_displacement(dim)]
            if wrong:
                raise RecipeError(
                    f"{self.name}: data: robot {source.key!r}: got displacements with {wrong}, expected dimensions "
                    f"from 0 to {self.actions.action_dim - 1} that actions.binary_dims does not name"
                )
        if contradiction := flow_contradiction(self):
            raise RecipeError(f"{self.name}: {contradiction}")

    def may_be_displacement(self, dim: int) -> bool:
        """Whether a dimension of an action is there and has more values than 0 and 1."""
        return 0 <= dim < self.actions.action_dim and dim not in self.actions.binary_dims
