"""`make recipes`: lint the Dockerfile and the scripts of launch/, and validate the JobSet.

    .venv-recipes/bin/python tests/lanes/recipes/check.py PYTHON

The whole JobSet is validated by JobSet's own models, its job by Kubernetes's strict schema, and the arguments of its
container by the parser of `mcis train`, which PYTHON has installed. hadolint lints the Dockerfile, ShellCheck the
scripts.
"""

import pathlib
import subprocess
import sys

import kubernetes_validate
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

LAUNCH = pathlib.Path(__file__).parents[3] / "launch"
KUBERNETES = "1.34"
"""Version of the schema."""


def check_jobset(path: pathlib.Path) -> list[str]:
    """The container's arguments. ValueError or ValidationError where the JobSet is wrong."""
    jobset = yaml.safe_load(path.read_text())
    parsed = JobsetV1alpha2JobSet.from_dict(jobset).to_dict()
    if unknown := differences(jobset, parsed):
        raise ValueError(f"{path}: JobSet has no field {', '.join(unknown)}")
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": replicated["template"]["spec"]}
    kubernetes_validate.validate(job, KUBERNETES, strict=True)
    spec = replicated["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    options = dict(argument.split("=", 1) for argument in container["args"] if "=" in argument)
    host = f"{jobset['metadata']['name']}-{replicated['name']}-0-0.{jobset['metadata']['name']}"
    port = container["ports"][0]["containerPort"]
    assert options["--coordinator"] == f"{host}:{port}", "--coordinator is not the address of the first pod"
    assert int(options["--processes"]) == spec["completions"] == spec["parallelism"], "--processes is not the pod count"
    devices = spec["completions"] * container["resources"]["limits"]["nvidia.com/gpu"]
    assert int(options["--batch_size"]) % devices == 0, f"--batch_size is not a multiple of the {devices} GPUs"
    return [argument.replace("$(JOB_COMPLETION_INDEX)", "0") for argument in container["args"]]


def differences(given: object, parsed: object, path: str = "") -> list[str]:
    """Paths of the fields that a parser dropped or changed."""
    if isinstance(given, dict) and isinstance(parsed, dict):
        return [found for key, value in given.items() for found in differences(value, parsed.get(key), f"{path}.{key}")]
    if isinstance(given, list) and isinstance(parsed, list) and len(given) == len(parsed):
        pairs = enumerate(zip(given, parsed, strict=True))
        return [found for i, (one, other) in pairs for found in differences(one, other, f"{path}[{i}]")]
    return [] if given == parsed else [path.lstrip(".")]


def main() -> int:
    """Run all checks; returns the number of failures."""
    programs = pathlib.Path(sys.executable).parent
    scripts = [path for path in sorted(LAUNCH.rglob("*")) if path.suffix in (".sh", ".sbatch")]
    commands = [
        [programs / "hadolint", LAUNCH / "Dockerfile"],
        [programs / "shellcheck", *scripts],
        [sys.argv[1], "-c", PARSE, *check_jobset(LAUNCH / "jobset.yaml")],
    ]
    failures = sum(subprocess.run(command, check=False).returncode != 0 for command in commands)
    print(f"Dockerfile, {len(scripts)} scripts, JobSet: {f'{failures} failed' if failures else 'no errors'}")
    return failures


PARSE = """
import sys
from mcis.cli.train import parse
assert sys.argv[1] == "train"
options, task = parse(sys.argv[2:])
assert (options.processes, options.process) == (2, 0) and options.coordinator and options.data_dir == "/data", options
"""

if __name__ == "__main__":
    sys.exit(main())
