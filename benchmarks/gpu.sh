#!/usr/bin/env bash
# What one GPU has to answer, in under 8 minutes and one table: do all recipes run there with the numbers of the CPU, how
# near is pre-training to what the card can do, where does the time of a PPO and a GRPO step go, does FSDP2 run.
#
#     bash benchmarks/gpu.sh                                     on a machine with a GPU and fourstage installed
#     SIZE=1M ROWS=2 LENGTH=64 STEPS=2 SHARE=20 SLACK=9 bash benchmarks/gpu.sh    tries the script itself, also on a CPU
#
# PEAK is the card's dense bfloat16 FLOP/s (default: 989e12, H100 and H200). Every part has a limit of its own and a log in
# $OUT; one that fails does not stop the next. Parts 1 to 7, 11 and 12 ask whether it works, and run beside one another;
# the others are timed, and run alone. The table, $OUT/gpu.md, is written anew after every part.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
OUT=${OUT:-runs/gpu} SIZE=${SIZE:-124M} ROWS=${ROWS:-32} LENGTH=${LENGTH:-1024} STEPS=${STEPS:-20} PEAK=${PEAK:-989e12}
PYTHON=${PYTHON:-python3} SLACK=${SLACK:-1} SHARE=${SHARE:-1}
mkdir -p "$OUT"; work=$(mktemp -d); parts=$OUT/parts.tsv; : > "$parts"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

launch() { $PYTHON -m accelerate.commands.launch --quiet --config_file "$config" "$@"; }

part() {  # name, limit in seconds, pattern of the lines for the table, command...
  local name=$1 limit=$(($2 * SLACK)) pattern=$3 start=$SECONDS code=0; shift 3
  timeout "$limit" bash -c "$(declare -f launch); PYTHON=$PYTHON config=${config:-}; $*" > "$OUT/$name.log" 2>&1 || code=$?
  printf '%s\t%s\t%s\t%s\n' "$name" "$code" "$((SECONDS - start))" \
    "$(tr '\r' '\n' < "$OUT/$name.log" | grep -aE "$pattern" | grep -av '%|' | tail -n 4 | paste -sd '~' | tr '\t' ' ')" >> "$parts"
  [ $code = 0 ] || tr '\r' '\n' < "$OUT/$name.log" | grep -aE 'Error|error:' | tail -n 3
  table
}

table() {
  { echo "$(nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2> /dev/null || echo no GPU);" \
      "$versions; $SIZE, $ROWS rows of $LENGTH tokens"
    echo; echo '| part | exit | seconds | |'; echo '|---|---|---|---|'
    sort -n "$parts" | awk -F '\t' '{ gsub("~", "<br>", $4); print "| " $1 " | " $2 " | " $3 " | " $4 " |" }'
  } > "$OUT/gpu.md"
}

versions=$($PYTHON -c 'from importlib.metadata import version as v; print(*(f"{n} {v(n)}" for n in ("torch", "transformers", "trl")))')

demo() {  # recipe, steps, flags...
  echo "launch recipes/$1.py --config recipes/configs/demo/$1.yaml --output_dir $work/$1 --max_steps $((($2 + SHARE - 1) / SHARE)) ${*:3}"
}
config=accelerate_configs/single.yaml
done_line='finished:|tokens/s$|held-out|peak memory|seconds'

chain() {
  part 1-pretrain 120 "$done_line" "$(demo pretrain 300)"
  part 2-sft 90 "$done_line" "$(demo sft 200 --model_name_or_path "$work/pretrain")"
  part 3-reward 60 "$done_line" "$(demo reward 60 --model_name_or_path "$work/sft")"
  part 4-ppo 90 "$done_line" "$(demo ppo 16 --model_name_or_path "$work/sft" --reward_model_name_or_path "$work/reward")"
  part 5-grpo 90 "$done_line" "$(demo grpo 8 --model_name_or_path "$work/ppo")"
  part 7-as-on-cpu 180 'equal|differ' "$PYTHON benchmarks/gpu_parity.py --models $work"
}
export OMP_NUM_THREADS=2  # for what runs beside one another
chain &
again="$(demo pretrain 300) --output_dir $work/again --save_strategy steps --save_steps 5"
part 6-resume 150 'resum|finished' "($again > /dev/null 2>&1 &); until ls $work/again/checkpoints/checkpoint-*/files.json; do sleep 0.2; done; \
  pkill -9 -f '^[^ ]*python[^ ]* .*/again'; sleep 1; $again" &
(config=accelerate_configs/fsdp2.yaml
 part 11-fsdp2 120 "$done_line" "launch --num_processes 1 recipes/pretrain.py --config recipes/configs/demo/pretrain.yaml \
  --output_dir $work/fsdp2 --max_steps 20") &
part 12-tests 150 'passed|failed' "$PYTHON -m pytest -m gpu tests/test_gpu.py -p no:cacheprovider" &
wait
unset OMP_NUM_THREADS
part 8-pretrain-mfu 150 "mfu|shipped/" "$PYTHON benchmarks/pretrain_throughput.py --sizes $SIZE --length $LENGTH --batch $ROWS \
  --steps $STEPS --rounds 1 --peak $PEAK --ways shipped compiled"
part 9-grpo-split 90 'generation|log-prob|backward|seconds' "$PYTHON benchmarks/gpu_steps.py grpo --size $SIZE"
part 9b-grpo-not-recorded 90 'seconds' "$PYTHON benchmarks/gpu_steps.py grpo --size $SIZE --steps 2 --not_recorded"
part 10-ppo-split 90 'generation|log-prob|backward|seconds' "$PYTHON benchmarks/gpu_steps.py ppo --size $SIZE"
cat "$OUT/gpu.md"
