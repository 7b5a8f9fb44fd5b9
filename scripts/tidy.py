"""Checks the style that docs/contributing/style.md asks for. Exits 1 and names each place.

* functions of at most 70 lines in code that ships; what may be longer is listed here with the reason;
* comments no wider than the code that rustfmt wraps;
* phrases that were translated word by word, or that hide the subject;
* no reference to a section (§) of a document that is not in the repository;
* every crate of the workspace in ARCHITECTURE.md.

`--numbers` prints the figures instead: function lengths, and comment lines for each line of code.
"""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FUNCTION_LINES_MAX = 70
# rustfmt.toml's max_width. rustfmt leaves comments alone, and nobody reads past the edge of a window.
COMMENT_WIDTH_MAX = 120

# Functions that may be longer, with the reason.
LONG_FUNCTIONS = {
    ("node/src/service.rs", "new_full"): "wires the parts of polkadot-sdk in the order of its own templates",
    ("node/src/service.rs", "new_partial"): "wires the parts of polkadot-sdk in the order of its own templates",
    ("node/src/command.rs", "run"): "one arm for each subcommand of polkadot-sdk, as in its templates",
}

# A phrase, and what to write instead.
BANNED = [
    (r"\bso many\b", "give the noun: 'maximum entries', 'bytes of text in a batch'"),
    (r"\b(what|which) (came|comes|becomes|became) of\b", "name the result"),
    (r"\b(is|are|was|were) told\b|\btold (as|by|in|of)\b", "a program reports, returns or logs"),
    (r"\bstands? in\b(?! for)", "is in, is recorded in"),
    (r"\bnone (where|if|when)\b", "`None if …`"),
    (r"\bgoes on (as|from|with|without)\b", "continues"),
    (r"\bother people's programs\b", "third-party tools"),
    (r"\bof no more use\b", "say what later calls return"),
    (r"\bonce more\b(?= than)", "say the number"),
    (r"^\s*///? What ", "begin with the noun"),
    (r"^\s*//! What (?!the|every|this crate)", "begin with the noun"),
]
PROSE_EXEMPT = {"docs/contributing/style.md", "CHANGELOG.md", "scripts/tidy.py"}


def tracked(*suffixes):
    """Files of the repository, committed or new, by the ends of their names."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [name for name in listed if name.endswith(suffixes) and (ROOT / name).exists()]


def is_test(name):
    return any(part in ("tests", "benches", "examples", "testkit") for part in pathlib.PurePath(name).parts) or name.endswith("tests.rs")


def blank(text):
    """Rust source with strings, characters and comments blanked out; line breaks and lengths stay."""
    token = re.compile(
        r"//[^\n]*|/\*.*?\*/|b?r(#*)\".*?\"\1|b?\"(?:\\.|[^\"\\])*\"|b?'(?:\\.[^']*|[^'\\])'", re.S
    )
    return token.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)


def functions(source):
    """(name, first line, lines) of every function with a body, test modules left out."""
    code = blank(source)
    end_of_code = re.search(r"#\[cfg\(test\)\]\s*mod \w+ \{", code)
    code = code[: end_of_code.start()] if end_of_code else code
    found = []
    for match in re.finditer(r"\bfn (\w+)", code):
        depth, at, opened = 0, match.end(), False
        while at < len(code):
            character = code[at]
            if character == ";" and not opened and depth == 0:
                break
            if character in "([":
                depth += 1
            elif character in ")]":
                depth -= 1
                if depth < 0:  # a name inside an attribute, as in `generate_deposit(pub(super) fn deposit_event)`
                    break
            elif character == "{" and depth == 0 and not opened:
                opened, start, braces = True, at, 1
                break
            at += 1
        if not opened:
            continue
        at += 1
        while at < len(code) and braces:
            braces += {"{": 1, "}": -1}.get(code[at], 0)
            at += 1
        first = code.count("\n", 0, match.start()) + 1
        found.append((match.group(1), first, code.count("\n", match.start(), at) + 1))
    return found


def check_rust(name, source, problems):
    if not is_test(name):
        for function, line, length in functions(source):
            if length > FUNCTION_LINES_MAX and (name, function) not in LONG_FUNCTIONS:
                problems.append(f"{name}:{line}: function {function} has {length} lines, more than {FUNCTION_LINES_MAX}")
    for number, line in enumerate(source.splitlines(), 1):
        if re.match(r"\s*//", line):
            check_prose(name, number, line, problems)
            if len(line) > COMMENT_WIDTH_MAX and "http" not in line:
                problems.append(f"{name}:{number}: a comment of {len(line)} columns, more than {COMMENT_WIDTH_MAX}")


def check_prose(name, number, line, problems):
    for pattern, instead in BANNED:
        found = re.search(pattern, line, re.I)
        if found:
            problems.append(f"{name}:{number}: '{found.group().strip()}': {instead}")
    if "§" in line and "docs/" not in line:
        problems.append(f"{name}:{number}: '§' names a section of no file; write docs/spec/page.md and the heading")


def check_crates(problems):
    architecture = (ROOT / "ARCHITECTURE.md").read_text()
    manifest = (ROOT / "Cargo.toml").read_text()
    members = re.findall(r'^    "([\w/-]+)",$', manifest[: manifest.index("[workspace.package]")], re.M)
    for member in members:
        if not re.search(rf"`{re.escape(member)}/?`", architecture):
            problems.append(f"ARCHITECTURE.md: the crate in {member}/ is not in its table")


def numbers():
    lengths, code_lines, comments, docs = [], 0, 0, 0
    for name in tracked(".rs"):
        if is_test(name) or name.startswith("fuzz/"):
            continue
        source = (ROOT / name).read_text()
        cut = re.search(r"#\[cfg\(test\)\]\s*mod \w+ \{", source)
        source = source[: cut.start()] if cut else source
        lengths += [length for _, _, length in functions(source)]
        for line in source.splitlines():
            text = line.strip()
            if text.startswith(("///", "//!")):
                docs += 1
            elif text.startswith("//"):
                comments += 1
            elif text:
                code_lines += 1
    long = sum(1 for length in lengths if length > FUNCTION_LINES_MAX)
    print(f"functions {len(lengths):,}, over {FUNCTION_LINES_MAX} lines {long} ({100 * long / len(lengths):.2f} %)")
    print(f"code lines {code_lines:,}, doc comment lines for each {docs / code_lines:.3f}, other comment lines for each {comments / code_lines:.3f}")


def main():
    if "--numbers" in sys.argv[1:]:
        return numbers()
    problems = []
    for name in tracked(".rs"):
        check_rust(name, (ROOT / name).read_text(), problems)
    for name in tracked(".md", ".py", ".sh", ".toml"):
        if name not in PROSE_EXEMPT and not name.startswith("docs/decisions/"):
            for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
                if name.endswith(".md") or line.lstrip().startswith("#"):
                    check_prose(name, number, line, problems)
    check_crates(problems)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not problems:
        print(f"style: {len(tracked('.rs'))} source files hold to docs/contributing/style.md")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
