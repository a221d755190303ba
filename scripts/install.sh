#!/usr/bin/env bash
# Make the virtual environment and install saelib into it: run by every target of the Makefile, silent when there is
# nothing to do. A record of what was installed (and where) is kept in the environment; when pyproject.toml, the lock or
# the place of the checkout changes, the install is brought up to date.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${VENV:-.venv}
extras=${EXTRAS:-dev}
stamp=$venv/.installed      # written last
unfinished=$venv/.installing # holds the process id while an install runs, so an install that was cut short is seen

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 1; }

record() { # what an install depends on
    printf '%s\n%s\n' "$PWD" "$extras"
    cat pyproject.toml requirements.lock saelib/__init__.py | cksum
}

if [[ ! -e $unfinished && -f $stamp && -x $venv/bin/python && $(<"$stamp") == "$(record)" ]]; then
    exit 0
fi

if [[ -e $unfinished ]]; then
    other=$(<"$unfinished")
    if [[ -n $other ]] && kill -0 "$other" 2>/dev/null; then
        fail "an install into $venv is already running; got process $other: wait for it to end"
    fi
fi

# 3.11 first: the lock was made with it.
find_python() {
    local candidate candidates=(python3.11 python3.12 python3.13 python3.14 python3 python)
    if [[ -n ${PYTHON:-} ]]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            printf '%s\n' "$candidate"
            return
        fi
    done
}

working() { # an environment of the right Python, with pip, that was made at this very place
    [[ -x $venv/bin/python && ! -e $unfinished ]] || return 1
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || return 1
    "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || return 1
    [[ ! -f $stamp || $(head -n 1 "$stamp") == "$PWD" ]]
}

if ! working; then
    python=$(find_python)
    if [[ -z $python ]]; then
        found=$("${PYTHON:-python3}" --version 2>/dev/null || true)
        fail "Python must be 3.11 or newer; got ${found:-no ${PYTHON:-python3}}: install one, or name it with PYTHON=/path/to/python"
    fi
    if [[ -e $venv ]]; then
        say "$venv is incomplete or was made elsewhere: making it anew"
    fi
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "Python must have its venv module; got $python without it: install it (Debian: python3-venv)"
    mkdir -p "$venv" && echo $$ >"$unfinished"
    find "$venv" -mindepth 1 -maxdepth 1 ! -name .installing -exec rm -rf {} +
    "$python" -m venv "$venv" || fail "making $venv failed"
fi
echo $$ >"$unfinished"
trap 'exit 130' INT TERM # leaves the mark: pip was cut short

log=$venv/pip.log
pip_install() {
    local status=0
    "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
        -c requirements.lock "$@" >>"$log" 2>&1 || status=$?
    ((status != 0)) || return 0
    ((status < 128)) || fail "pip was stopped by signal $((status - 128)): run the command again, it begins anew"
    rm -f "$unfinished" # pip ended by itself: what is there is whole, and the next try goes on from it
    grep -E '^ *([A-Za-z.]*Error|ERROR|error): ' "$log" | tail -n 3 >&2 || true
    fail "pip must be able to install ${*: -1}; it stopped, as $log tells: mend that (network, disk) and run the command again"
}

began=$SECONDS
: >"$log"
say "Installing saelib and what it needs into $venv ($("$venv/bin/python" --version)): once, 2 GB, a few minutes."
# torch first and by itself: asked for later or more loosely, pip may choose a build with gigabytes of GPU libraries.
pip_install "$(grep '^torch==' requirements.lock)"
pip_install -e ".[$extras]"
record >"$stamp.new"
mv "$stamp.new" "$stamp"
rm -f "$unfinished"
say "Installed in $((SECONDS - began)) s."
