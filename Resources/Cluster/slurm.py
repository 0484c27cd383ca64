"""Reface a data set on a SLURM cluster: python slurm.py INPUT OUTPUT [options of refacecgan dataset]

Needs, beside refacecgan[dask] in an environment that all nodes see: pip install dask-jobqueue. Start it on a
login node and leave it running (tmux); it asks SLURM for workers, hands them the sessions, and gives them back at
the end. Input and output have to lie under the same paths on all nodes. Change the constants to what your cluster
has.
"""

import sys

from dask_jobqueue import SLURMCluster
from RefaceCGANLib.app.command_line import main

WORKERS = 100
CORES, MEMORY = 2, "6GB"  # of one SLURM job: as many processes as cores, one session at a time in each
WALLTIME = "04:00:00"
QUEUE = None  # the partition; None for the default one

if __name__ == "__main__":
    with SLURMCluster(
        cores=CORES,
        processes=CORES,
        memory=MEMORY,
        walltime=WALLTIME,
        queue=QUEUE,
        job_script_prologue=["export OMP_NUM_THREADS=1"],
    ) as cluster:
        cluster.scale(jobs=WORKERS)
        raise SystemExit(main(["dataset", *sys.argv[1:], "--dask", cluster.scheduler_address]))
