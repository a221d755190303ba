#!/usr/bin/env bash
# Make an environment that is .venv with a few packages on top, for tests against what does not fit into .venv itself:
#     scripts/overlay.sh .venv-saelens "sae-lens==6.54.12"
# It sees everything installed in .venv; what is named here, and what that needs, is installed beside it and found first.
# Silent when there is nothing to do.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

base=${VENV:-.venv}
overlay=$1
shift
stamp=$overlay/.installed
wanted=$(printf '%s\n' "$PWD" "$base" "$@"; cksum requirements.lock)
if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
    exit 0
fi

printf 'Installing %s on top of %s into %s\n' "$*" "$base" "$overlay" >&2
rm -rf "$overlay"
"$base/bin/python" -m venv "$overlay"
packages='import sysconfig; print(sysconfig.get_path("purelib"))'
# addsitedir, since saelib itself stands in a .pth file of $base, and those of a folder that is only on the path are not read
printf 'import site; site.addsitedir("%s")\n' "$("$base/bin/python" -c "$packages")" \
    >"$("$overlay/bin/python" -c "$packages")/base.pth"
if ! "$overlay/bin/python" -m pip install --disable-pip-version-check --progress-bar off "$@" >"$overlay/pip.log" 2>&1; then
    tail -n 3 "$overlay/pip.log" >&2
    printf 'error: pip must be able to install %s; it stopped, as %s tells\n' "$*" "$overlay/pip.log" >&2
    exit 1
fi
printf '%s\n' "$wanted" >"$stamp"
