"""The settings of a recipe's data sets, and of what is done to their rows: the section `data` of `schema.py`."""

from collections import Counter
from collections.abc import Collection
from dataclasses import field
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass


Share = Annotated[float, Field(gt=0, lt=1)]
STRICT = ConfigDict(strict=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class RecipeError(ValueError):
    """A recipe that cannot be read as one; says where, what was got and what was expected."""


def did_you_mean(name: str, known: Collection[str]) -> str:
    """What an error says of a name that nothing has: the nearest one, and all that there are."""
    near = get_close_matches(name, known, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(known)}"


@dataclass(frozen=True, config=STRICT)
class DemonstrationRecording:
    """How to record demonstrations of the tabletop's experts."""

    episodes_per_task: int = Field(ge=1)
    """Episodes of each task, at least 1."""
    tasks: list[Literal["pick_object", "move_near", "open_drawer", "close_drawer"]] | None = None
    """Names of tasks; null for all four."""
    seed: int = Field(default=0, ge=0, lt=1_000_000)
    """Seed of scenes and noise, below 1,000,000: those from there on are kept for evaluation."""
    paraphrase: bool = False
    """Whether each demonstration draws its instruction from the paraphrases for training."""
    familiar: bool = False
    """Whether yellow and purple things, mugs and sponges are left out, to be judged by (mode `new_objects`)."""


@dataclass(frozen=True, config=STRICT)
class QuestionRecording:
    """How to record questions about tabletop scenes."""

    count: int = Field(ge=1)
    """Questions, at least 1."""
    seed: int = Field(default=0, ge=0, lt=1_000_000)
    """Seed of scenes and questions, below 1,000,000: those from there on are kept for evaluation."""
    looks: Literal["home", "broad", "unseen"] = "broad"
    """Looks of the pictures: the demonstrations', hundreds of others, or those kept for evaluation."""
    kinds: list[str] | None = None
    """Kinds of questions, such as `shape`, `colour` and `presence`; null for all, with a description of everything in
    the end of one conversation in four."""


@dataclass(frozen=True, config=STRICT)
class RelativeGroup:
    """Dimensions of an action that are learned relative to the robot's state at the beginning of the chunk."""

    dims: list[int]
    """Dimensions of the action, counted from 0."""
    state: list[int] | None = None
    """Those of the state, in the same order; null for the same numbers."""
    rotation: Literal["euler", "axis_angle", "quaternion", "rot6d"] | None = None
    """How the dimensions write a rotation: `euler` (roll, pitch, yaw about fixed axes), `axis_angle`, `quaternion` (x,
    y, z, w), or `rot6d` (two columns of the matrix). Null for what is subtracted: joints, positions."""
    state_rotation: Literal["euler", "axis_angle", "quaternion", "rot6d"] | None = None
    """How the state writes it; null for the same way."""

    def entry(self) -> dict[str, Any]:
        state = self.dims if self.state is None else self.state
        kinds = {"rotation": self.rotation, "state_rotation": self.state_rotation}
        return {"dims": self.dims, "state": state, **{name: kind for name, kind in kinds.items() if kind}}


@dataclass(frozen=True, config=STRICT)
class RobotSource:
    """A robot data set: RLDS, LeRobot, or recorded (columns image, instruction, action, episode_index)."""

    path: str
    """Its folder, relative to the work folder, or `hf://datasets/OWNER/NAME[@REVISION]/...`."""
    key: str
    """Its name in the statistics, and later the `unnorm_key`."""
    cameras: list[str] | None = None
    """Names of the cameras whose pictures a row shows, in this order; by default the data set's main camera. All robot
    data sets show as many, and the model keeps the names of the first."""
    transform: Literal["auto", "bridge", "fractal"] | None = "auto"
    """What turns its actions into the family's: `bridge`, `fractal`, null for nothing, or `auto`, by its own name."""
    action: list[str] | None = None
    """Names of the features that hold an action; several are concatenated."""
    state: list[str] | None = None
    """Names of the features that hold the robot's state; several are concatenated."""
    split: str | None = None
    """A part of an RLDS or LeRobot data set, by the name it has there. By default `train` of an RLDS set, and all
    episodes of a LeRobot set, which itself has no splits when it is read."""
    without_instruction: Literal["skip", "refuse"] = "skip"
    """Steps whose task is null, empty or missing: `skip` counts and leaves them out, `refuse` stops before the run."""
    every: int = Field(default=1, ge=1)
    """Every n-th step of an episode becomes a row, at least 1, for data faster than a policy can act: 5 makes 10 Hz of
    50 Hz. A row's action then leads to the next row, and chunks are of such steps."""
    displacements: list[int] | None = None
    """Dimensions of an action, counted from 0, that say how far to move, not where to be: with `every` they are
    summed, while all others are as in the last step. `[]` for none; the transforms know theirs."""
    relative: list[RelativeGroup] = field(default_factory=list)
    """Groups of dimensions that say where to be, and are learned relative to the robot's state; the model turns them
    back when it acts. `[]` for actions as they are."""
    weight: float = Field(default=1.0, gt=0)
    """How often its rows come relative to those of the other robot data sets, above 0."""
    record: DemonstrationRecording | None = None
    """How to record it if the folder is missing; null for a data set that must be there."""


@dataclass(frozen=True, config=STRICT)
class VisionLanguageSource:
    """A vision-language data set in one of the published layouts, or recorded (columns image, question, answer)."""

    path: str
    """Its folder, relative to the work folder, or `hf://datasets/OWNER/NAME[@REVISION]/...`."""
    name: str
    """Its name in figures and reports."""
    format: Literal["auto", "llava", "vqasynth", "onevision", "robopoint", "recorded", "packed"] = "auto"
    """Its layout; `auto` looks at the files."""
    configs: list[str] | None = None
    """Parts of a data set that has several, by name; null for all."""
    weight: float | None = Field(default=None, gt=0)
    """How often its rows come relative to those of the other vision-language data sets, above 0; null for its number
    of rows, at most `data.size_cap`."""
    record: QuestionRecording | None = None
    """How to record it if the folder is missing; null for a data set that must be there."""


@dataclass(frozen=True, config=STRICT)
class ImageAugmentation:
    """Random changes of a robot row's pictures (`mixing/image_augmentation.py`).

    Each can be left out: `crop_area: 1.0`, a largest shift of 0.0, factors [1.0, 1.0].
    """

    crop_area: float = Field(default=0.9, gt=0, le=1)
    """Share of the area that a crop keeps, above 0 and at most 1."""
    brightness: float = Field(default=0.2, ge=0, le=1)
    """Largest shift of brightness, 0 to 1, where 1 is from black to white."""
    contrast: list[float] = field(default_factory=lambda: [0.8, 1.2])
    """Smallest and largest factor of contrast, 0 or more."""
    saturation: list[float] = field(default_factory=lambda: [0.8, 1.2])
    """Smallest and largest factor of saturation, 0 or more."""
    hue: float = Field(default=0.05, ge=0, le=0.5)
    """Largest shift of hue, 0 to 0.5 of the colour circle."""

    def __post_init__(self) -> None:
        for name in ("contrast", "saturation"):
            factors = getattr(self, name)
            if len(factors) != 2 or not 0.0 <= factors[0] <= factors[1]:
                raise RecipeError(f"got {name}={factors}, expected the smallest and largest factor")

    @property
    def center_crop_area(self) -> float | None:
        """The centre crop of the image processor of a model trained like this, at inference; `None` for no crop."""
        return self.crop_area if self.crop_area < 1.0 else None


@dataclass(frozen=True, config=STRICT)
class InstructionAugmentation:
    """Paraphrases in place of a robot row's instruction, from the lists for training."""

    probability: float = Field(default=0.5, gt=0, le=1)
    """Share of rows whose instruction is replaced, above 0 and at most 1."""


@dataclass(frozen=True, config=STRICT)
class ValidationRecipe:
    """What is held out of training, and scored while it goes on, every `training.eval_steps`."""

    episodes: Share | dict[str, list[int]] | None = None
    """Of robot data: a share of every data set's episodes, between 0 and 1, or numbers of episodes by key; null for
    none. Statistics are of the other episodes alone."""
    questions: Share | dict[str, list[str]] | None = None
    """Of vision-language data: a share of every data set's rows, between 0 and 1, or names of rows by data set, as
    reports have them (`chat.json row 7`); null for none. A stream reads until it has found `rows` of them."""
    rows: int = Field(default=256, ge=1)
    """Rows of each data set that are scored at most, always the same, from all over what is held out; at least 1."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draw, 0 or more. Apart from `training.seed`, so that runs that differ by it hold out the same."""


@dataclass(frozen=True, config=STRICT)
class DataRecipe:
    """What a batch is made of. With both kinds of data, half of every per-device batch is robot data (C), unless
    `robot_share` says otherwise."""

    robot: list[RobotSource] = field(default_factory=list)
    """The robot data sets."""
    vision_language: list[VisionLanguageSource] = field(default_factory=list)
    """The vision-language data sets; `co_training` says which of them are used."""
    co_training: list[str] | None = None
    """Names of the vision-language data sets that are used (C); null for all of them, `[]` for none."""
    robot_share: float = Field(default=0.5, gt=0, lt=1)
    """Share of the rows of every per-device batch that is robot data where both kinds are mixed, between 0 and 1;
    the paper's is one half. `training.batch_size` times it is a whole number."""
    size_cap: int = Field(default=500_000, ge=1)
    """Rows from which on a larger vision-language data set does not come more often, at least 1 (the limit of T5's
    examples-proportional mixing)."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens of a vision-language row at most, its pictures and all turns included; null for what the model takes.
    Every row of a batch is padded to the longest."""
    longer_rows: Literal["skip", "cut"] = "skip"
    """What becomes of longer vision-language rows: `skip` counts them and takes another row, `cut` leaves out their
    last turns, and skips those whose first turn alone is too long."""
    group_by_length: bool = False
    """Whether the vision-language rows of a step are of similar length, which spares padding, in a run from tables; a
    stream's micro-batches always have such rows."""
    state: bool = False
    """Whether the model is shown the robot's state (joints, or pose and gripper), which every robot data set has then:
    as text in the prompt; the flow-matching π0 as numbers."""
    packed: str | None = None
    """Folder that `gen-vla pack` wrote, relative to the work folder, or `hf://datasets/OWNER/NAME[@REVISION]`: of the
    vision-language sets those that are packed there are read there, and a set on the Hub has to be. Null to read all
    of them as they were published."""
    image_size: int = Field(default=64, ge=1)
    """Side of the pictures the encoders see, in pixels, at least 1. A converted model (`vla_plus`) has its own."""
    picture_options: dict[str, Any] | None = None
    """Arguments of the image processor of a converted model (`vla_plus`), as in transformers, such as a `size`, or
    tiles, which are off by default: each costs as many tokens as a picture. They are saved with the trained model.
    Null for what the converted model has."""
    streaming: bool = False
    """Whether data sets are read shard by shard, in an order shuffled by a buffer; otherwise from a table on this
    machine's disk, in a perfectly shuffled order."""
    shuffle_buffer: int = Field(default=1000, ge=1)
    """Rows of a streamed data set among which a loader draws the next one, at least 1, within `shuffle_memory`."""
    shuffle_memory: float = Field(default=2.0, gt=0)
    """Gigabytes that the rows of all streamed data sets wait in per GPU process, its loaders together, above 0."""
    num_workers: int = Field(default=0, ge=0)
    """Processes per device that read, decode and tokenize; 0 does it in the training process."""
    max_bad_share: float = Field(default=0.01, ge=0, le=1)
    """Share of unreadable rows of a data set, 0 to 1, that stops a run."""
    image_augmentation: ImageAugmentation | None = None
    """Random crops and colours of robot rows' pictures; the saved model's image processor then crops the centre. Null
    for none."""
    instruction_augmentation: InstructionAugmentation | None = None
    """Paraphrases of instructions; null for none."""
    validation: ValidationRecipe | None = None
    """What is held out of training; null for nothing."""

    def __post_init__(self) -> None:
        names = [source.name for source in self.vision_language]
        for word, entries, owners, reason in (
            ("key", [source.key for source in self.robot], "robot data sets", "statistics are kept by key"),
            ("name", names, "vision-language data sets", "figures are kept by name"),
        ):
            for entry, count in Counter(entries).items():
                if count > 1:
                    raise RecipeError(
                        f"got the {word} {entry!r} for {count} {owners}, expected a {word} of its own for each, since "
                        f"{reason}"
                    )
        for name in self.co_training or []:
            if name not in names:
                raise RecipeError(
                    f"got co_training with {name!r}, which is no vision-language data set here; "
                    f"{did_you_mean(name, names)}"
                )
        if self.validation is not None:
            self._check_held_out(self.validation)

    def _check_held_out(self, validation: ValidationRecipe) -> None:
        keys, names = [source.key for source in self.robot], [source.name for source in self.questions]
        for setting, held_out, known in (
            ("episodes", validation.episodes, keys),
            ("questions", validation.questions, names),
        ):
            for name in held_out if isinstance(held_out, dict) else ():
                if name not in known:
                    raise RecipeError(
                        f"got validation.{setting} of {name!r}, which is no data set here; {did_you_mean(name, known)}"
                    )
        if not (validation.episodes and keys) and not (validation.questions and names):
            raise RecipeError(
                "got validation that holds out nothing of these data sets, expected episodes of robot data or "
                "questions of vision-language data; name some, or set validation: null"
            )

    @property
    def questions(self) -> list[VisionLanguageSource]:
        used = self.co_training
        return [source for source in self.vision_language if used is None or source.name in used]
