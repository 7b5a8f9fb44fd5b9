"""Checks the documents. Exits 1 and names each place.

* links between files of the repository lead somewhere, headings after `#` included;
* the book's contents (docs/SUMMARY.md) name every page;
* pages and headings that the code names exist;
* every field of a run specification is in docs/spec/run-specification.md, and the constants in docs/spec/protocol.md are
  those of the code;
* with `--book DIR`: every link of the built book leads to a file of the book.
"""

import html.parser
import pathlib
import re
import subprocess
import sys
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def without_code(text):
    return re.sub(r"```.*?```", "", text, flags=re.S)


def anchors(page):
    """Anchors of a page's headings, as GitHub and mdBook make them."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", without_code(page.read_text()), re.M):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        found.add(re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-"))
    return found


def check_links(broken):
    pages = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").rglob("*.md")) + sorted((ROOT / ".github").rglob("*.md"))
    for page in pages:
        for target in LINK.findall(without_code(page.read_text())):
            if "://" in target or target.startswith("mailto:"):
                continue
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            if not file.exists():
                broken.append(f"{page.relative_to(ROOT)} links to {target}, which is not there")
            elif anchor and file.suffix == ".md" and anchor not in anchors(file):
                broken.append(f"{page.relative_to(ROOT)} links to {target}, and there is no such heading")
    return len(pages)


def check_contents(broken):
    contents = {target.partition("#")[0] for target in LINK.findall((ROOT / "docs/SUMMARY.md").read_text())}
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        if name != "SUMMARY.md" and name not in contents:
            broken.append(f"docs/{name} is not in docs/SUMMARY.md")


def check_references(broken):
    """Pages that comments and messages of the code name, as docs/spec/page.md#heading."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.rs", "*.py", "*.sh", "*.toml"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()
    for name in listed:
        source = ROOT / name
        text = source.read_text() if source.exists() else ""
        for path, anchor in re.findall(r"(?<![\w/.])(docs/[\w/-]+\.md)(?:#([\w-]+))?", text):
            page = ROOT / path
            if path == "docs/spec/page.md":  # the example in the text of these checks
                continue
            if not page.exists():
                broken.append(f"{name} names {path}, which is not there")
            elif anchor and anchor not in anchors(page):
                broken.append(f"{name} names {path}#{anchor}, and there is no such heading")


def check_specification(broken):
    """Fields of the run specification, and the constants of the protocol's tables."""
    page = (ROOT / "docs/spec/run-specification.md").read_text()
    for source in sorted((ROOT / "crates/spec/src").glob("*.rs")):
        for structure, body in re.findall(r"pub struct (\w+Spec) \{(.*?)\n\}", source.read_text(), re.S):
            for field in re.findall(r"pub (\w+):", body):
                if not re.search(rf"`\[?(\w+\.)?{field}\]?`", page):
                    broken.append(f"docs/spec/run-specification.md lacks the field {field} of {structure}")
    constants = (ROOT / "docs/spec/protocol.md").read_text().partition("Constants of the code")[2].partition("\n## ")[0]
    folders = ("crates", "ps", "miner", "pallets", "runtime")
    code = "\n".join(path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.rs"))
    for name in re.findall(r"`([A-Z][A-Z_]+)`", constants):
        if not re.search(rf"const {name}\b", code):
            broken.append(f"docs/spec/protocol.md lists the constant {name}, which the code does not have")


class Links(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, _, attributes):
        self.found += [value for name, value in attributes if name in ("href", "src") and value]


def check_book(book, broken):
    for page in book.rglob("*.html"):
        if page.name in ("print.html", "404.html"):  # repeat the pages, under another path
            continue
        links = Links()
        links.feed(page.read_text())
        for target in links.found:
            path = urllib.parse.unquote(target.partition("#")[0])
            if path and not re.match(r"[a-z]+:", path) and not (page.parent / path).exists():
                broken.append(f"the book's page {page.relative_to(book)} links to {target}, which is not in the book")


def main():
    broken = []
    if sys.argv[1:2] == ["--book"]:
        check_book(pathlib.Path(sys.argv[2]), broken)
        done = "documents: every link of the built book holds"
    else:
        done = f"documents: links and contents hold for {check_links(broken)} pages"
        check_contents(broken)
        check_references(broken)
        check_specification(broken)
    for line in broken:
        print(f"error: {line}", file=sys.stderr)
    if not broken:
        print(done)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
