"""Run every command of the worked examples in docs/, then undo them: `make follow`."""

import shlex
import shutil
import subprocess
import sys

from tests.test_docs import EXAMPLES, ROOT, apply_step, checkout, for_each, steps, use_checkout  # noqa: F401


@for_each(EXAMPLES)
def test_a_worked_example_runs_to_its_end_and_is_undone(page, checkout, monkeypatch):  # noqa: F811
    use_checkout(checkout, monkeypatch)
    programs = "set -euo pipefail\n" + "".join(
        f'{name}() {{ {shlex.quote(sys.executable)} {module} "$@"; }}\n'
        for name, module in (("mcis", "-m mcis"), ("pytest", "-m pytest -p no:cacheprovider"), ("python", ""))
    )
    shutil.copy(ROOT / ".gitignore", checkout)
    begin = "git init -q -b main && git add -A && git -c user.name=n -c user.email=e@example.org commit -qm begin"
    subprocess.run(["bash", "-c", begin], cwd=checkout, check=True)
    for kind, text, path in steps(page):
        if not apply_step(kind, text, path, checkout):
            command = [sys.executable, "-c", text] if kind == "python" else ["bash", "-c", programs + text]
            done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
            assert done.returncode == 0, f"{text}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    status = subprocess.run(["git", "status", "--short"], cwd=checkout, capture_output=True, text=True, check=True)
    assert not status.stdout, "files that the undoing leaves"
