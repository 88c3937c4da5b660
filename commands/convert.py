"""`gen-vla convert SOURCE DESTINATION`."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option


def convert(
    source: Annotated[str, Argument(help="A folder, a .pt or .gguf file, or a name on the Hub; see --encoders.")],
    destination: Annotated[Path, Argument(help="The folder to write; must not exist yet.")],
    to: Annotated[
        Literal["openvla"] | None,
        Option(help="The other way: a model of openvla_plus in OpenVLA's layout, for its code and for vLLM."),
    ] = None,
    actions: Annotated[
        Literal["bins", "legacy", "signed", "plain"] | None,
        Option(help="How the model writes actions (default: as it was trained to)."),
    ] = None,
    tokenizer: Annotated[
        str | None, Option(help="Folder or Hub name of the tokenizer, for training runs, which hold none.")
    ] = None,
    frozen: Annotated[
        Literal["siglip", "dino"] | None,
        Option(help="OpenVLA: the encoder that further training leaves alone."),
    ] = None,
    dual: Annotated[
        bool | None,
        Option(
            "--dual/--no-dual",
            help="Vision-language models: double the encoder and freeze one copy (default), or leave it as it is.",
        ),
    ] = None,
    family: Annotated[
        Literal["vla_plus", "pi0_flow"] | None,
        Option(
            help="PaliGemma: what it becomes, the same as other vision-language models (default), or the "
            "flow-matching π0 with an action expert of random weights."
        ),
    ] = None,
    center_crop: Annotated[
        float | None,
        Option(metavar="AREA", help="Share of each picture's area to keep: 0.9 for models trained with random crops."),
    ] = None,
    encoders: Annotated[
        str | None,
        Option(
            metavar="MODEL",
            help="A Llama, also package://NAME, the GGUF file of a Python package: the openvla_plus whose vision "
            "encoders it gets, a folder or package://mini-vlm; the projector begins with random weights.",
        ),
    ] = None,
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"] | None, Option(help="(default: each weight's own)")
    ] = None,
    max_shard_gb: Annotated[float, Option(help="Size of a weight file.")] = 5.0,
    check: Annotated[
        bool,
        Option(
            "--check/--no-check",
            help="Vision-language models: compare the result with the base model on a random picture, bit for bit.",
        ),
    ] = True,
) -> None:
    """Turn OpenVLA, Prismatic, a vision-language model or a Llama of transformers into a folder of this package."""
    import torch

    from gen_vla.training.converting import conversion

    if to is not None:
        from gen_vla.training.converting.to_openvla import convert_to_openvla

        others = {"actions": actions, "tokenizer": tokenizer, "frozen": frozen, "dual": dual, "family": family}
        others |= {"center-crop": center_crop, "encoders": encoders, "dtype": dtype}
        if given := [f"--{name}" for name, value in others.items() if value is not None]:
            raise ValueError(f"got {', '.join(given)} beside --to {to}, expected none: the model is written as it is")
        print(f"Converted into {convert_to_openvla(source, destination, int(max_shard_gb * 1e9))}")
        return
    folder = conversion.convert(
        source,
        destination,
        actions=actions,
        tokenizer=tokenizer,
        frozen=frozen,
        dual=dual,
        family=family,
        center_crop_area=center_crop,
        encoders=encoders,
        dtype=getattr(torch, dtype) if dtype else None,
        max_shard_bytes=int(max_shard_gb * 1e9),
        check=check,
    )
    print(f"Converted into {folder}")
