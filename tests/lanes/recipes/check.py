"""`make recipes`: what lies in launch/ is linted, and what Kubernetes is given is held against its schemas.

Of the JobSet, all of it against JobSet's own models, the job in it against Kubernetes's strict schema, and the command
in its container against the program's own options. hadolint reads the Dockerfile, ShellCheck the scripts.
"""

import pathlib
import subprocess
import sys

import kubernetes_validate
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

LAUNCH = pathlib.Path(__file__).parents[3] / "launch"
KUBERNETES = "1.34"


def check_jobset(path: pathlib.Path) -> list[str]:
    """Of a JobSet's pods the arguments. ValueError, or a ValidationError, where it is not as it has to be."""
    given = yaml.safe_load(path.read_text())
    understood = JobsetV1alpha2JobSet.from_dict(given).to_dict()
    if lost := differences(given, understood):
        raise ValueError(f"{path}: JobSet knows no {', '.join(lost)}")
    (replicated,) = given["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": replicated["template"]["spec"]}
    kubernetes_validate.validate(job, KUBERNETES, strict=True)
    spec = replicated["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    words = dict(word.split("=", 1) for word in container["args"] if "=" in word)
    host = f"{given['metadata']['name']}-{replicated['name']}-0-0.{given['metadata']['name']}"
    port = container["ports"][0]["containerPort"]
    assert words["--coordinator"] == f"{host}:{port}", "the coordinator is not the first pod's address"
    assert int(words["--processes"]) == spec["completions"] == spec["parallelism"], "processes are not pods"
    devices = spec["completions"] * container["resources"]["limits"]["nvidia.com/gpu"]
    assert int(words["--batch_size"]) % devices == 0, f"the batch does not divide among {devices} GPUs"
    return [word.replace("$(JOB_COMPLETION_INDEX)", "0") for word in container["args"]]


def differences(given: object, understood: object, at: str = "") -> list[str]:
    """Paths of what was given and not understood, or understood otherwise."""
    if isinstance(given, dict) and isinstance(understood, dict):
        return [path for key, value in given.items() for path in differences(value, understood.get(key), f"{at}.{key}")]
    if isinstance(given, list) and isinstance(understood, list) and len(given) == len(understood):
        pairs = enumerate(zip(given, understood, strict=True))
        return [path for i, (one, other) in pairs for path in differences(one, other, f"{at}[{i}]")]
    return [] if given == understood else [at.lstrip(".")]


def main() -> int:
    """Check everything; exit status 0 where nothing is to be said."""
    bin_ = pathlib.Path(sys.executable).parent
    scripts = [str(path) for path in sorted(LAUNCH.rglob("*")) if path.suffix in (".sh", ".sbatch")]
    commands = [[bin_ / "hadolint", LAUNCH / "Dockerfile"], [bin_ / "shellcheck", *scripts]]
    failed = sum(subprocess.run(command, check=False).returncode != 0 for command in commands)
    arguments = check_jobset(LAUNCH / "jobset.yaml")
    said = subprocess.run([sys.argv[1], "-c", PARSE, *arguments], check=False)
    failed += said.returncode != 0
    print(
        f"Dockerfile, {len(scripts)} scripts, JobSet: {'all as they should be' if not failed else f'{failed} are not'}"
    )
    return failed


PARSE = """
import sys
from mcis.cli.train import parse
assert sys.argv[1] == "train"
run, task = parse(sys.argv[2:])
assert (run.processes, run.process) == (2, 0) and run.coordinator and run.data_dir == "/data", run
"""

if __name__ == "__main__":
    sys.exit(main())
