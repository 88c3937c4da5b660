"""`gen-vla publish CHECKPOINT OWNER/NAME`."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option


def publish(
    checkpoint: Annotated[Path, Argument(help="Folder of a trained model, or of a LoRA adapter.")],
    repo_id: Annotated[str, Argument(metavar="OWNER/NAME", help="The repository.")],
    private: Annotated[bool, Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str, Option(metavar="BRANCH", help="The branch to commit to.")] = "main",
    message: Annotated[str | None, Option(help="Of the commit (default: Publish NAME).")] = None,
    tag: Annotated[str | None, Option(help="A name for the commit.")] = None,
    collection: Annotated[
        str | None, Option(metavar="SLUG", help="A collection on the Hub to add the repository to.")
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Show what would be uploaded, and upload nothing.")] = False,
    results: Annotated[Path | None, Option(metavar="JSON", help="Measured figures for the model card.")] = None,
    dtype: Annotated[
        Literal["bfloat16", "float32"] | None,
        Option(help="Of the weights (default: as saved; bfloat16 for more than 1B in float32)."),
    ] = None,
    output: Annotated[Path | None, Option(help="Keep the assembled folder here (default: it is not kept).")] = None,
    cache: Annotated[
        bool, Option("--cache", help="Put it where from_pretrained finds it by name, and not on the Hub.")
    ] = False,
    cache_dir: Annotated[Path | None, Option(help="The same with this cache (default: Hugging Face's own).")] = None,
) -> None:
    """Assemble and verify a repository, and put it on the Hub or in this machine's cache."""
    from gen_vla.training.publishing import hub_publishing
    from gen_vla.training.publishing.hub_publishing import Destination

    figures = hub_publishing.read_results(results) if results else None
    if cache or cache_dir:
        snapshot = hub_publishing.install(checkpoint, repo_id, cache_dir, output, figures, dtype)
        print(f"Verified and in the cache as {snapshot}")
        return
    destination = Destination(repo_id, revision, private, message, tag, collection)
    hub_publishing.show(hub_publishing.publish(checkpoint, destination, output, dry_run, figures, dtype))
