# An index of the project's commands: `just` lists them. Each is one command that also works without just.

# list the commands
default:
    @just --list

# install what building and running needs (idempotent)
setup *arguments:
    scripts/setup.sh {{arguments}}

# build the programs
build:
    scripts/build.sh

# a whole network on this machine
localnet *arguments:
    scripts/localnet.sh {{arguments}}

# all checks that need no chain node (minutes once built)
fast:
    scripts/test.sh --fast

# everything CI runs
test:
    scripts/test.sh

# dependency rules, links, style: seconds, nothing is built
check:
    python3 scripts/check-architecture.py
    python3 scripts/check-docs.py
    python3 scripts/tidy.py
    python3 tests/scripts.py
    python3 tests/update_format.py

# tests of one crate: just crate alice-update
crate name *arguments:
    . scripts/env.sh && cargo test -p {{name}} {{arguments}}

# fuzz the decoders (needs a nightly compiler)
fuzz *arguments:
    scripts/fuzz.sh {{arguments}}

# build the book and say where it is
book:
    "${ALICE_CACHE:-$HOME/.cache/alice}/tools/bin/mdbook" build docs && echo docs/book/index.html
