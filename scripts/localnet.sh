#!/usr/bin/env bash
# A whole Alice network on this machine: validators, a parameter server and miners, real text, real coins.
# Sets the machine up (scripts/setup.sh), builds, and runs scripts/localnet.py, which does the work.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/env.sh"

case " $* " in *" --help "* | *" -h "*) exec python3 "$ALICE_ROOT/scripts/localnet.py" --help ;; esac

# Refuses wrong arguments now, not after the build.
python3 "$ALICE_ROOT/scripts/localnet.py" --check-arguments "$@"
started=$(date +%s)
"$ALICE_ROOT/scripts/setup.sh"
say "building alice-node, alice-ps and alice-miner (the first build takes a while: about 25 minutes on 2 idle cores)"
"$ALICE_ROOT/scripts/build.sh"
say "set-up and build took $(($(date +%s) - started)) s"
exec python3 "$ALICE_ROOT/scripts/localnet.py" "$@"
