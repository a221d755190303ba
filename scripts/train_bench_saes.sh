#!/usr/bin/env bash
# Train the SAEs of reports/splitbench/suite.json that sae-lens makes on the embedded model, and its wide peers, those that are
# not there yet:
#     make bench-saes
# Parents: 512 features, one BatchTopK for development, others of other seeds and kinds for the test side. Peers: 2,048 features,
# to stand as rows of their own (--methods sae:FOLDER).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-.venv-saelens/bin/python}
saes=${SAES:-reports/splitbench/saes}
profile=${PROFILE:-mini}

train() { # name, then options
    local name=$1
    shift
    if [[ -f $saes/$name/cfg.json && -f $saes/$name/.done ]]; then
        return
    fi
    echo "training $name" >&2
    "$python" scripts/train_with_saelens.py "$saes/$name" --profile "$profile" "$@"
    touch "$saes/$name/.done"
}

mkdir -p "$saes"
train batchtopk-0 --architecture batchtopk --d-sae 512 --seed 0
train batchtopk-1 --architecture batchtopk --d-sae 512 --seed 1
train jumprelu-1 --architecture jumprelu --d-sae 512 --seed 1
train matryoshka-1 --architecture matryoshka --d-sae 512 --seed 1
train wide-batchtopk-0 --architecture batchtopk --d-sae 2048 --seed 0
train wide-matryoshka-0 --architecture matryoshka --d-sae 2048 --seed 0
if [[ ! -f $saes/../worlds/saelens-crowded.safetensors ]]; then # the last that is written
    "$python" scripts/make_saelens_worlds.py "$saes/../worlds"
fi
