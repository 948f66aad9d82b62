#!/bin/bash
# What trtllm-llmapi-launch runs on its first rank: pytest, whose exit status is written down and not returned. An early
# launcher would leave the other ranks waiting until the job's time is over, after a command that fails.
set -uo pipefail

rm -f "$INFERPERF_OUT/exit-status"
pytest "$INFERPERF_SUITE"
echo $? >"$INFERPERF_OUT/exit-status"
exit 0
