"""What mkdocs does to our pages beyond rendering them.

The pages are written for a plain Git host: they link to files of the repository, and lists may follow a
line of text at once. In the site README, CHANGELOG and CONTRIBUTING become pages, other files are copied, and
what Markdown's reference implementation would not read as a list gets its empty line. The command line's own
help and a table of the configuration keys stand where a page has `<!-- commands -->` and
`<!-- configuration keys -->`.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "project/readme.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")
sys.path.insert(0, str(ROOT))  # this checkout's reasoner, also where another one is installed
FENCE = re.compile(r"^(```.*?^```)$", re.M | re.S)
ITEM = re.compile(r"^(?![-*|#>\s]|\d+\. )(.+\n)(?=(?:[-*]|1\.) )", re.M)


def home(file: File) -> str:
    """Where a page stands in the repository, relative to its root."""
    return next((path for path, uri in PAGES.items() if uri == file.src_uri), f"docs/{file.src_uri}")


def uri_of(path: str) -> str:
    """Under which name the site has a file of the repository."""
    return PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}")


def linked(file: File, text: str) -> set[str]:
    folder = posixpath.dirname(home(file))
    return {posixpath.normpath(posixpath.join(folder, match[3])) for match in LINK.finditer(text)}


def on_files(files: Files, config: Any) -> Files:
    for path, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    for page in list(files.documentation_pages()):
        for path in linked(page, page.content_string):
            outside = not path.startswith("docs/") and path not in PAGES
            if outside and (ROOT / path).is_file() and not files.get_file_from_path(uri_of(path)):
                files.append(File.generated(config, uri_of(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    folder, here = posixpath.dirname(home(page.file)), posixpath.dirname(page.file.src_uri)

    def rewritten(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[3]))
        if (ROOT / path).is_dir():  # a site has no listing of a directory
            return f"{match[2]} (`{path}/`)"
        return f"{match[1]}[{match[2]}]({posixpath.relpath(uri_of(path), here or '.')}{match[4] or ''})"

    parts = FENCE.split(markdown)
    parts[::2] = [ITEM.sub(r"\1\n", LINK.sub(rewritten, text)) for text in parts[::2]]
    parts[1::2] = [f"\n{fence}\n" for fence in parts[1::2]]
    markdown = "".join(parts)
    if "<!-- commands -->" in markdown:
        markdown = markdown.replace("<!-- commands -->", commands())
        markdown = markdown.replace("<!-- configuration keys -->", configuration_keys())
    return markdown


def commands() -> str:
    """A section for each command with its help."""
    from reasoner.cli import TrainCommand, main

    sections = []
    for name, command in sorted(main.commands.items()):
        context = click.Context(command, info_name=f"reasoner {name}", terminal_width=78)
        text = command.get_help(context)
        if isinstance(command, TrainCommand):  # its keys have a table of their own
            text = re.sub(r"\nConfiguration keys.*?\n\n", "\n", text, flags=re.S)
        sections.append(f"## reasoner {name}\n\n```text\n{text}\n```\n")
    return "\n".join(sections)


def configuration_keys() -> str:
    """A table of every key with its default and meaning."""
    from reasoner.config import config_keys

    def shown(default: Any) -> str:
        text = ",".join(default) if isinstance(default, tuple) else str(default)
        return f"`{text}`" if text else "empty"

    rows = [f"| `{key}` | {shown(default)} | {meaning} |" for key, default, meaning in config_keys()]
    return "\n".join(["| key | default | |", "|---|---|---|", *rows])
