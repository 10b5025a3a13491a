"""What submitit sees of Slurm, on this machine: sbatch that runs the script it is given, and what knows its jobs."""

from __future__ import annotations

import os
from pathlib import Path

# Each job is a process group, by whose number it goes.
PROGRAMS = {
    "sbatch": """
script=$(mktemp "{folder}/job-XXXXXX.sh")
cp "$1" "$script"
export SLURM_JOB_NAME=job SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_JOB_NUM_NODES=1
setsid sh -c 'export SLURM_JOB_ID=$$; exec bash "$0"' "$script" </dev/null >/dev/null 2>&1 &
echo "Submitted batch job $!"
""",
    "srun": """
file() { local name="${1//%j/$SLURM_JOB_ID}"; echo "${name//%t/0}"; }
while [ "${1#-}" != "$1" ]; do
  case "$1" in
    --output) exec >>"$(file "$2")"; shift 2;;
    --error) exec 2>>"$(file "$2")"; shift 2;;
    *) shift;;
  esac
done
exec "$@"
""",
    "scancel": """
kill -TERM -- "-$1"
""",
    "sacct": """
echo "JobID|State|NodeList"
while [ $# -gt 0 ]; do
  if [ "$1" = -j ]; then
    kill -0 "$2" 2>/dev/null && echo "$2|RUNNING|here" || echo "$2|FAILED|here"
  fi
  shift
done
""",
}


def install(folder: Path) -> dict[str, str]:
    """Put the programs into `folder`, and return the environment that has them; each script of a job is kept there."""
    folder.mkdir()
    for name, text in PROGRAMS.items():
        program = folder / name
        program.write_text("#!/bin/bash\n" + text.replace("{folder}", str(folder)))
        program.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
