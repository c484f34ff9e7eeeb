"""`make slurm`: the recipes of launch/slurm under a real Slurm, its controller and its node on this machine.

It needs Debian's slurm-wlm and munge, and root. Jobs are submitted with sbatch: an undisturbed one of two tasks; one of
which a process gets SIGKILL and one that Slurm stops, which are both requeued by themselves; one that is requeued by
hand; one that is cancelled and stays so; and an array of two folds. Disturbed jobs must end with the bits of the
undisturbed one. Last, an array predicts three shares of scans, one of its jobs is stopped half way, and the shares are
merged.
"""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from mcis.checkpoints import checkpoint
from mcis.imaging import phantom
from mcis.train import run_record

HERE = pathlib.Path(__file__).parents[3]
RECIPES = HERE / "launch" / "slurm"
OPTIONS = ["--task=route", "--model=cnn", "--sources=phantom", "--size=32", "--features=4", "--batch_size=8"]
OPTIONS += ["--epochs=8", "--heartbeat=10"]
SCANS = 900
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "squeue", "scancel")
CONF = """
ClusterName=mcis
SlurmctldHost={host}
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobCompType=jobcomp/none
KillWait=20
SchedulerParameters=sched_interval=5,batch_sched_delay=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextlib.contextmanager
def cluster(folder: pathlib.Path) -> Iterator[dict[str, str]]:
    """Run a controller and a node; yields the environment in which Slurm's commands find them."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    folder.chmod(0o755)
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=socket.gethostname().split(".")[0], folder=folder))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    munge = [f"--{what}-file={folder}/munge.{what}" for what in ("key", "log", "pid", "seed")]
    commands = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge],
        ["slurmctld", "-D", "-f", str(conf)],
        ["slurmd", "-D", "-f", str(conf)],
    ]
    environment = os.environ | {"SLURM_CONF": str(conf), "MCIS_VENV": str(pathlib.Path(sys.executable).parents[1])}
    running = []
    try:
        for command in commands:
            running.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
            )
            time.sleep(2)
        yield environment
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait()


def asked(environment: dict[str, str], *command: str) -> str:
    """The output of one of Slurm's commands."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return done.stdout.strip()


def lines(run: pathlib.Path) -> int:
    """Number of epochs that a run has logged."""
    return len((run / run_record.LOG).read_text().splitlines()) if (run / run_record.LOG).exists() else 0


class Lane:
    """Jobs of one cluster, with their runs in one folder."""

    def __init__(self, folder: pathlib.Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment

    def submit(self, recipe: str, name: str, tasks: int, *more: str) -> str:
        """Submit a job that trains the run of that name; returns its number."""
        options = [
            f"--data_dir={self.folder}/data",
            f"--runs_dir={self.folder}/runs",
            *(["--run=" + name] if name else []),
        ]
        sbatch = ["sbatch", "--parsable", f"--ntasks={tasks}", f"--output={self.folder}/%x-%j-%a.log"]
        words = [*sbatch, *more, str(RECIPES / recipe), *OPTIONS, *options]
        return asked(self.environment, *words).split(";")[0]

    def wait_for_epoch(self, name: str) -> None:
        """Wait until a run has finished one more epoch."""
        run, until = self.folder / "runs" / name, time.monotonic() + 180
        before = lines(run)
        while lines(run) == before:
            if time.monotonic() > until:
                raise SystemExit(f"{name} makes no progress:\n{self.said()}")
            time.sleep(0.02)

    def wait_for_end(self, job: str) -> str:
        """Wait for the end of a job; returns its state."""
        until = time.monotonic() + 150
        while time.monotonic() < until:
            states = asked(
                self.environment, "squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T"
            ).split()
            if states and not set(states) & {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED"}:
                return states[0]
            time.sleep(0.5)
        raise SystemExit(f"job {job} does not end ({states}):\n{self.said()}")

    def said(self) -> str:
        """The output of the jobs."""
        return "\n".join(f"{file.name}:\n{file.read_text()[-3000:]}" for file in sorted(self.folder.glob("*.log")))


def result(run: pathlib.Path) -> list[bytes]:
    """The bits of a run's weights."""
    return [value.tobytes() for value in checkpoint.flatten(checkpoint.load(run / checkpoint.BEST)[0]).values()]


def processes_of(name: str) -> list[int]:
    """Numbers of the processes that train a run."""
    found = subprocess.run(["pgrep", "-f", f"mcis.launch .*--run={name}$"], capture_output=True, text=True).stdout
    return [int(number) for number in found.split()]


def verdict(good: bool) -> str:
    """The last column of a row."""
    return "as expected" if good else "WRONG"


def predicts(lane: Lane) -> bool:
    """Whether an array reports each of many scans once although one of its jobs is stopped."""
    scans, out, weights = (lane.folder / name for name in ("scans", "found", "weights"))
    mcis = [sys.executable, "-m", "mcis"]
    subprocess.run([*mcis, "bundle", str(lane.folder / "runs" / "route_fold0"), f"--out={weights}"], check=True)
    examples = phantom.write_examples(lane.folder / "examples")
    scans.mkdir()
    for number in range(SCANS):
        path = examples[number % len(examples)]
        (scans / f"{number:04d}{path.suffix}").symlink_to(path)
    command = ["sbatch", "--parsable", "--array=0-2", f"--output={lane.folder}/%x-%j-%a.log"]
    command += [str(RECIPES / "predict.sbatch"), str(scans), f"--out={out}", f"--weights={weights}", "--task=route"]
    job = asked(lane.environment, *command).split(";")[0]
    shard, until = out / "shard_1_of_3" / "findings.jsonl", time.monotonic() + 120
    while not shard.exists() or shard.read_bytes().count(b"\n") < 5:
        if time.monotonic() > until:
            raise SystemExit(f"the array makes no progress:\n{lane.said()}")
        time.sleep(0.01)
    asked(lane.environment, "scancel", "--signal=TERM", f"{job}_1")
    state = lane.wait_for_end(job)
    merged = subprocess.run([*mcis, "merge", str(out)], capture_output=True, text=True)
    found = [json.loads(line)["scan"] for line in (out / "findings.jsonl").read_text().splitlines()]
    resumed = "continues after" in lane.said()
    good = state == "COMPLETED" and found == sorted(map(str, scans.iterdir())) and resumed and not merged.returncode
    print(
        f"| an array that predicts, one of its jobs stopped | {len(found)} of {SCANS} scans | {verdict(good)} |",
        flush=True,
    )
    if not good:
        print(merged.stderr, lane.said())
    return good


def main() -> int:
    """Exit status 0 if every job ended as expected."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if missing or os.geteuid():
        raise SystemExit(
            f"make slurm needs root and Debian's slurm-wlm and munge; missing: {', '.join(missing) or 'root'}"
        )
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    os.environ["JAX_PLATFORMS"] = "cpu"
    with tempfile.TemporaryDirectory(prefix="mcis_slurm_") as place, cluster(pathlib.Path(place)) as environment:
        folder = pathlib.Path(place)
        lane, runs, rows = Lane(folder, environment), folder / "runs", []

        def check(what: str, name: str, job: str, restarts: int, wanted: str = "COMPLETED") -> None:
            state = lane.wait_for_end(job)
            sessions = len(run_record.read(runs / name)["sessions"])
            same = wanted != "COMPLETED" or result(runs / name) == result(runs / "whole")
            good = state == wanted and sessions == restarts + 1 and same
            rows.append(good)
            words = f"{state.lower()} after {sessions} sessions" + ("" if same else ", NOT the same bits")
            print(f"| {what} | {words} | {verdict(good)} |", flush=True)
            if not good:
                print(lane.said())

        print("| a job of two tasks | ended | |\n|---|---|---|", flush=True)
        check("undisturbed", "whole", lane.submit("train.sbatch", "whole", 2), 0)
        job = lane.submit("train.sbatch", "killed", 2)
        lane.wait_for_epoch("killed")
        os.kill(processes_of("killed")[-1], 9)
        check("one of its processes gets SIGKILL", "killed", job, 1)
        job = lane.submit("train.sbatch", "asked", 2)
        lane.wait_for_epoch("asked")
        asked(environment, "scancel", "--signal=TERM", job)
        check("stopped, as when its time is up", "asked", job, 1)
        job = lane.submit("train.sbatch", "requeued", 2)
        lane.wait_for_epoch("requeued")
        asked(environment, "scontrol", "requeue", job)
        check("requeued by hand", "requeued", job, 1)
        job = lane.submit("train.sbatch", "cancelled", 2)
        lane.wait_for_epoch("cancelled")
        asked(environment, "scancel", job)
        check("cancelled", "cancelled", job, 0, "CANCELLED")
        job = lane.submit("folds.sbatch", "", 1, "--array=0-1")
        state = lane.wait_for_end(job)
        folds = [json.loads((runs / f"route_fold{k}" / run_record.RUN).read_text())["settings"]["fold"] for k in (0, 1)]
        rows.append(
            state == "COMPLETED"
            and folds == ["0/2", "1/2"]
            and all(lines(runs / f"route_fold{k}") == 8 for k in (0, 1))
        )
        print(f"| an array of two folds | {state.lower()}, folds {', '.join(folds)} | {verdict(rows[-1])} |")
        rows.append(predicts(lane))
    return 0 if all(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
