"""Download published weights and data sets to where the curricula and `ppt predict` look for them.

ppt download
ppt download clip_vit_b_16 sam_vit_b
ppt download refcoco coco_train2014 --yes
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ppt.config import ConfigError
from ppt.downloads.published_files import FILES, PublishedFile, published_file
from ppt.store.disk import check_writable

from .common import command, out, run_alone, say


@command
def main(
    names: Annotated[
        list[str] | None, typer.Argument(help="What to download; without a name, the list.")
    ] = None,
    to: Annotated[
        Path, typer.Option(help="The folder in which to put weights/ and data/refer/.")
    ] = Path(),
    yes: Annotated[bool, typer.Option("--yes", help="Go on without asking.")] = False,
) -> None:
    """Download published weights and data sets by name.

    Sizes and licences are told first. An interrupted download goes on where it ended, every file
    is compared with its checksum, and archives are unpacked.
    """
    if not names:
        return _list()
    entries = [published_file(name) for name in dict.fromkeys(names)]
    wanted = [entry for entry in entries if not _is_there(entry, to)]
    if not wanted:
        return
    check_writable(to, "--to")
    for entry in wanted:
        _tell(entry, to)
    if not yes:
        typer.confirm("download?", abort=True)
    from ppt.downloads.web import DownloadError, download
    from ppt.steps.progress import progress_bar

    for entry in wanted:
        try:
            with progress_bar(f"download {entry.name}", None, "bytes") as advance:
                place = download(entry, to, advance)
        except DownloadError as error:
            raise ConfigError(str(error)) from None
        typer.echo(f"{entry.name}: {place}")


def _list() -> None:
    """Print what can be downloaded."""
    table = Table("name", "size", "goes to", "licence", box=None, pad_edge=False)
    for entry in FILES.values():
        table.add_row(entry.name, entry.size, str(entry.place(Path())), entry.licence)
    out().print(table)


def _is_there(entry: PublishedFile, to: Path) -> bool:
    """Say whether something is there already. Raises ConfigError if it is another file."""
    place = entry.place(to)
    if not place.exists():
        return False
    if entry.unpacks is None:
        from ppt.downloads.web import sha256_of

        if sha256_of(place) != entry.sha256:
            raise ConfigError(
                f"{entry.name}: {place} is not the published file (SHA-256 {entry.sha256}): move "
                "it away, or give another folder by --to"
            )
    typer.echo(f"{entry.name}: {place} is there already")
    return True


def _tell(entry: PublishedFile, to: Path) -> None:
    """Print what is about to be downloaded."""
    say(f"{entry.name}: {entry.size}, to {entry.place(to)}")
    say(f"  from     {entry.urls[0]}")
    for url in entry.urls[1:]:
        say(f"  or from  {url}")
    say(f"  licence  {entry.licence}")
    say(f"  SHA-256  {entry.sha256}, {entry.sha256_by}")


if __name__ == "__main__":
    run_alone(main)
