#!/bin/bash
# Template for Harvester's SlurmSubmitter: words in braces are filled in, so there are no others. A worker is one pilot.
# What a site changes are the directory of the release, the URL of the server and the experiment.
#SBATCH --job-name=pilot-{workerID}
#SBATCH --partition={localQueueName}
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={nCoreTotal}
#SBATCH --mem={requestRam}M
#SBATCH --time={requestWalltimeMinute}
#SBATCH --no-requeue
#SBATCH --export=NONE
#SBATCH --signal=B:USR1@100
#SBATCH -o {accessPoint}/stdout.txt
#SBATCH -e {accessPoint}/stderr.txt
export HARVESTER_ID={harvesterID}
export HARVESTER_WORKER_ID={workerID}
export PANDA_JSID=harvester-{harvesterID}
cd {accessPoint} || exit 1
# The shell becomes the wrapper, which passes signals on.
exec /opt/harvester/pilot/pilot-wrapper.sh --piloturl /opt/harvester/pilot/pilot3.tar.gz \
    -q {pandaQueueName} -s {computingSite} -j managed --pilot-user generic --url https://pandaserver.example.org \
    --harvester-submit-mode {submitMode} --harvester-datadir {accessPoint} --harvester-workdir {accessPoint}
