"""The dead-link check finds what is dead and nothing else."""

from pathlib import Path

import pytest

from scripts.links import PROJECT, main

PAGE = """\
# A page: it's `code` & more!

Setext too
==========

## Twice
## Twice

<a id="own"></a>

Fine: [top](#a-page-its-code--more), [setext](#setext-too), [again](#twice-1), [own](#own), [other](sub/other.md),
[its](sub/other.md#tên-đầu), [folder](sub/), [spaces](<a file.txt>), [encoded](a%20file.txt), [root](/page.md),
![image](picture.png "title"), [web](https://example.invalid/x), [mail](mailto:a@b.c), [named], <img src="picture.png">,
[brackets](with(brackets).md), `[code](nowhere)`, [source](script.py#L10)

[named]: sub/other.md

```
[fenced](nowhere.md)
```
<!-- [hidden](nowhere.md) -->
"""

DEAD = """\
[a](nowhere.md) [b](other.md#nothing)
![c](no.png) [d](#twice-2) [e]()
[f]: gone.md
<a href="lost.md">g</a>
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "page.md").write_text(PAGE, encoding="utf-8")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "other.md").write_text("# Tên đầu\n[up](../page.md#twice)\n", encoding="utf-8")
    for name in ("a file.txt", "picture.png", "with(brackets).md", "script.py"):
        (tmp_path / name).touch()
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "theirs.md").write_text(DEAD)
    return tmp_path


def test_living_links_are_fine(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(project) == 0
    assert capsys.readouterr().out == "no dead link in 3 Markdown files\n"


def test_dead_links_are_listed_with_their_place(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "sub" / "dead.md").write_text(DEAD)
    assert main(project) == 1
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "sub/dead.md:1: there is no heading for other.md#nothing",
        "sub/dead.md:1: there is no nowhere.md",
        "sub/dead.md:2: there is no heading for #twice-2",
        "sub/dead.md:2: there is no no.png",
        "sub/dead.md:2: there is no target",
        "sub/dead.md:3: there is no gone.md",
        "sub/dead.md:4: there is no lost.md",
    ]


def test_this_project_has_no_dead_link(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(PROJECT) == 0, capsys.readouterr().out
