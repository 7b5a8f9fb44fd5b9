"""Checks the documents: links between files lead somewhere, and the book's contents name every page. Exits 1 if not."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
pages = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").rglob("*.md"))
link = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
broken = []
for page in pages:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in link.findall(text):
        if "://" not in target and not (page.parent / target).exists():
            broken.append(f"{page.relative_to(ROOT)} links to {target}, which is not there")
contents = set(link.findall((ROOT / "docs/SUMMARY.md").read_text()))
for page in (ROOT / "docs").rglob("*.md"):
    name = page.relative_to(ROOT / "docs").as_posix()
    if name != "SUMMARY.md" and name not in contents:
        broken.append(f"docs/{name} is not in docs/SUMMARY.md")
for line in broken:
    print(f"error: {line}", file=sys.stderr)
if not broken:
    print(f"documents: links and contents hold for {len(pages)} pages")
sys.exit(1 if broken else 0)
