"""Check the links of all Markdown files: files, images and headings they point at must exist. No network.

Prints what is dead, as file:line, and exits with 1 when there is any.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

PROJECT = Path(__file__).parent.parent
NOT_OURS = {".git", ".venv", ".pytest_cache", "node_modules", "build", "dist", "data"}

FENCE = re.compile(r"^(?P<mark> {0,3}(?:`{3,}|~{3,})).*?(?:^(?P=mark)|\Z)", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(?P<mark>`+)(?!`).+?(?<!`)(?P=mark)(?!`)")
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
LINKS = (
    re.compile(r"\]\(\s*<(?P<target>[^<>\n]*)>"),  # [text](<a target>)
    re.compile(
        r"\]\((?!\s*<)\s*(?P<target>[^\s<>()]*(?:\([^\s()]*\)[^\s()]*)*)"
    ),  # [text](target "title"), also of images
    re.compile(r"^ {0,3}\[[^\]^]+\]:\s*<?(?P<target>[^\s<>]+)", re.MULTILINE),  # [name]: target
    re.compile(r"""<(?:a|img)\b[^>]*?\b(?:href|src)=["'](?P<target>[^"']*)["']""", re.IGNORECASE),
)
HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.+?)[ \t]*#*$|^(?! {0,3}[-=]+$)(\S.*)\n {0,3}(?:=+|-+)[ \t]*$", re.MULTILINE)
OWN_ANCHOR = re.compile(r"""<[a-z0-9]+\b[^>]*?\b(?:id|name)=["']([^"']+)["']""", re.IGNORECASE)


def markdown_files(project: Path) -> list[Path]:
    """All Markdown files but those of tools and installed packages."""
    return sorted(path for path in project.rglob("*.md") if not NOT_OURS & set(path.relative_to(project).parts))


def dead_links(project: Path, path: Path) -> Iterator[str]:
    """One line for each link of the file that leads nowhere."""
    text = _without_code(path.read_text(encoding="utf-8"))
    for match in (match for link in LINKS for match in link.finditer(text)):
        target = match["target"]
        if re.match(r"[a-z][a-z0-9+.-]*:|//", target, re.IGNORECASE):
            continue
        name, _, anchor = target.partition("#")
        where = _file(project, path, unquote(name))
        line = text.count("\n", 0, match.start("target")) + 1
        place = f"{path.relative_to(project)}:{line}"
        if not target or not where.exists():
            yield f"{place}: there is no {target or 'target'}"
        elif anchor and where.suffix == ".md" and unquote(anchor) not in anchors(where):
            yield f"{place}: there is no heading for {target}"


@cache
def anchors(path: Path) -> set[str]:
    """The anchors of a Markdown file: of its headings, as GitHub makes them, and its own ones."""
    text = _without_code(path.read_text(encoding="utf-8"), keep_inline=True)
    found = set(OWN_ANCHOR.findall(text))
    times = Counter[str]()
    for heading in HEADING.finditer(text):
        title = re.sub(r"!?\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])|<[^>]+>", r"\1", heading[1] or heading[2])
        slug = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        found.add(f"{slug}-{times[slug]}" if times[slug] else slug)
        times[slug] += 1
    return found


def _file(project: Path, page: Path, name: str) -> Path:
    if not name:
        return page
    return project / name.lstrip("/") if name.startswith("/") else page.parent / name


def _without_code(text: str, *, keep_inline: bool = False) -> str:
    """The text with code and comments blanked out, so that line numbers stay right."""
    for pattern in (FENCE, COMMENT) if keep_inline else (FENCE, COMMENT, CODE):
        text = pattern.sub(lambda match: "\n" * match[0].count("\n"), text)
    return text


def main(project: Path = PROJECT) -> int:
    """The exit code: 1 when a link is dead."""
    files = markdown_files(project)
    dead = [line for path in files for line in dead_links(project, path)]
    print("\n".join(dead) if dead else f"no dead link in {len(files)} Markdown files")
    return 1 if dead else 0


if __name__ == "__main__":
    sys.exit(main())
