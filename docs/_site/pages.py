"""What mkdocs asks for while it builds the site: the menu, pages made from the code, and links out of docs/.

A verb, a public name, a shipped model and a page in one of the folders appear by themselves.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import commands  # noqa: E402
import names  # noqa: E402
from latex2mathml.converter import convert  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402

LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s]+)\)")
DISPLAY = re.compile(r"^\$\$(.+?)\$\$$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<![\\$\w`])\$([^$\n`]+)\$(?![\w$`])")
FENCED = re.compile(r"^( *```.*?^ *```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
TUTORIALS = (
    *("molecule-in-ase", "ligand-in-water", "property-library", "distil-your-own", "long-strides"),
    "layer-from-scratch",
)
"""In the order to read them; further ones follow by name."""
SHIM = "assets/iframe-worker.js"
"""Lets the search work where the site is opened as files; the theme would fetch it from the net."""
PAGES: dict[str, str] = {}
"""Generated pages: path in the site's sources -> path in the repository, to which their links are relative."""


def on_config(config: Any) -> Any:
    """The menu: folders as they are, generated pages after the index of their section."""
    config.nav = [
        {"Start": ["index.md", {"All pages": "guide.md"}]},
        {"Tutorials": _folder("tutorials", TUTORIALS)},
        {"How to": _folder("how-to")},
        {"Concepts": _folder("concepts")},
        {"Models": ["models/index.md", *(f"models/{card.name}" for card in _cards())]},
        {
            "Reference": [
                "reference/index.md",
                {"Command line": [f"reference/{page}" for page in commands.pages()]},
                {"Python": [{names.title(page): f"reference/{page}"} for page in names.pages()]},
            ]
        },
        {"Decisions": _folder("decisions")},
    ]
    return config


def _folder(folder: str, first: tuple[str, ...] = ("index",)) -> list[str]:
    """Pages of a folder of docs/, those named in `first` before the others."""
    stems = sorted(path.stem for path in (ROOT / "docs" / folder).glob("*.md"))
    ordered = [*(stem for stem in first if stem in stems), *(stem for stem in stems if stem not in first)]
    return [f"{folder}/{stem}.md" for stem in ordered]


def _cards() -> list[Path]:
    return sorted((ROOT / "egnn_md" / "pretrained").glob("*.md"))


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages: cards, verbs, public names, and sources that some page links to."""
    PAGES.clear()
    for card in _cards():
        _add(files, config, f"models/{card.name}", card.read_text(), f"egnn_md/pretrained/{card.name}")
    for page, text in {**commands.pages(), **names.pages()}.items():
        _add(files, config, f"reference/{page}", text, f"docs/reference/{page}")
    texts = [(f"docs/{file.src_uri}", file.content_string) for file in list(files.documentation_pages())]
    texts += [(PAGES[file.src_uri], file.content_string) for file in list(files) if file.src_uri in PAGES]
    files.append(File.generated(config, SHIM, content=(Path(__file__).parent / "iframe-worker.js").read_text()))
    while texts:
        path, text = texts.pop()
        for target in _outside(path, text):
            page = _page_of(target)
            if page in PAGES or files.get_file_from_path(page) is not None:
                continue
            content = _source(target)
            _add(files, config, page, content, target)
            if target.endswith(".md"):
                texts.append((target, content))
    return files


def _add(files: Files, config: Any, page: str, text: str, origin: str) -> None:
    PAGES[page] = origin
    files.append(File.generated(config, page, content=text))


def _outside(path: str, text: str) -> list[str]:
    """Files of the repository, not in docs/, that the text of the file `path` links to."""
    found = []
    for _, target in LINK.findall(text):
        name = posixpath.normpath(posixpath.join(posixpath.dirname(path), target.partition("#")[0]))
        if "://" not in target and not name.startswith(("docs/", "..")) and (ROOT / name).is_file():
            found.append(name)
    return found


def _page_of(path: str) -> str:
    """Where a file of the repository stands in the site's sources."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("egnn_md/pretrained/") and path.endswith(".md"):
        return f"models/{posixpath.basename(path)}"
    return f"source/{path}" if path.endswith(".md") else f"source/{path}.md"


def _source(path: str) -> str:
    """A page that shows a file."""
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        return text
    language = {".py": "python", ".toml": "toml", ".cff": "yaml"}.get(posixpath.splitext(path)[1], "text")
    return f"---\nhide: [toc]\n---\n\n# {path}\n\n````{language}\n{text.rstrip()}\n````\n"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to files of the repository lead to their pages; the table of models; equations."""
    here = page.file.src_uri
    origin = PAGES.get(here, f"docs/{here}")

    def lead(match: re.Match[str]) -> str:
        target, mark, anchor = match[2].partition("#")
        if "://" in target or not target:
            return match[0]
        name = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
        if (ROOT / name).is_dir():
            return match[1][1:-1]  # a folder: nothing to show
        inside = _page_of(name) if (ROOT / name).is_file() and files.get_file_from_path(_page_of(name)) else None
        if inside is None:
            return match[0]
        return f"{match[1]}({posixpath.relpath(inside, posixpath.dirname(here) or '.')}{mark}{anchor})"

    parts = FENCED.split(LINK.sub(lead, markdown) if not here.endswith(".py.md") else markdown)
    text = "".join(part if k % 2 else _equations(part) for k, part in enumerate(parts))
    return text.replace("<!-- table of models -->", names.table_of_models())


def _equations(text: str) -> str:
    """TeX between dollars as MathML, which browsers draw themselves."""
    text = DISPLAY.sub(lambda match: convert(match[1].strip(), display="block"), text)
    return INLINE.sub(lambda match: convert(match[1]), text)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """No script from elsewhere; the logo leads to a page, which a folder opened as a file is not."""
    up = "../" * page.url.count("/")
    text = output.replace("https://unpkg.com/iframe-worker/shim", up + SHIM)
    return re.sub(r'href="(?:\.|(?:\.\./?)+)"', f'href="{up}index.html"', text)


def on_post_template(output_content: str, template_name: str, config: Any) -> str:
    """No script from elsewhere on the page for what is not found either; servers show it at any address."""
    return output_content.replace("https://unpkg.com/iframe-worker/shim", f"/{SHIM}")
