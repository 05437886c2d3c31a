#!/usr/bin/env bash
# Every row that only an accelerator can tell, in about nine minutes of one GPU:
#
#     bash benchmarks/accelerator.sh
#
# Beside PyTorch it needs torch, and diffusers and transformers for some; tensorflow-datasets, grain
# and tyro it does not. Results come in the order of what they tell, each written as soon as it is
# measured; a part that takes too long is cut off.
set -u
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# PyTorch runs in the same process.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-.45}"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$scratch/programs}"
python3 - "$scratch" <<'PYTHON'
import sys
import numpy as np
rng = np.random.default_rng(0)
images = {f"{split}_image": rng.integers(0, 256, (n, 32, 32, 3), np.uint8) for split, n in (("train", 50_000), ("test", 1000))}
labels = {f"{split}_label": rng.integers(0, 10, n) for split, n in (("train", 50_000), ("test", 1000))}
np.savez(f"{sys.argv[1]}/images.npz", **images, **labels)
text = "".join(map(chr, rng.choice([10, 32, 46, *range(97, 122)], 1_000_000)))
open(f"{sys.argv[1]}/text.txt", "w").write(text)
PYTHON

part() { # seconds, name of the result, module, arguments
  local limit=$1 name=$2 module=$3
  shift 3
  echo "== benchmarks.$module $*"
  timeout "$limit" python3 -W ignore -m "benchmarks.$module" "$@" --name "$name"
}
images="data=$scratch/images.npz" text="data=$scratch/text.txt"
half="--device cuda --dtype bfloat16"
part 150 step_accelerator step "ddpm_cifar10:$images,dtype=bfloat16,batch=256" --compiler jit pmap --seconds 3
part 110 peers_accelerator_gpt peers gpt_gpu_step $half --rounds 5 --seconds 1
part 60 peers_accelerator_vae peers vae_step_128 --device cuda --rounds 5
part 60 loop_accelerator loop --experiment "ddpm_cifar10:$images,dtype=bfloat16,batch=256" --resident --inner-steps 1 --rounds 3
part 120 peers_accelerator_gpt2 peers gpt2_step $half --batch 16 --rounds 3 --seconds 1 --variants compile
part 120 peers_accelerator_ddim peers ddim_batch $half --size ddpm --batch 256 --rounds 3 --seconds 1 --variants "compile, channels last"
part 150 peers_accelerator_ddpm peers ddpm_step $half --size ddpm --batch 256 --rounds 3 --seconds 1 --variants "compile, channels last"
part 90 peers_accelerator_dcgan peers dcgan_step $half --batch 256 --rounds 5 --variants "compile, channels last"
part 90 step_accelerator_gpt step "gpt_shakespeare_char:preset=gpu,$text" --seconds 2
