"""The worked examples of docs/ followed to their end, every command of them, and undone: `make follow`."""

import shlex
import shutil
import subprocess
import sys

from tests.test_docs import EXAMPLES, ROOT, copy, environment, follow, named, steps  # noqa: F401


@named(EXAMPLES)
def test_a_worked_example_can_be_followed_to_its_end(page, copy, monkeypatch):  # noqa: F811
    environment(copy, monkeypatch)
    programs = "set -euo pipefail\n" + "".join(
        f'{name}() {{ {shlex.quote(sys.executable)} {module} "$@"; }}\n'
        for name, module in (("mcis", "-m mcis"), ("pytest", "-m pytest -p no:cacheprovider"), ("python", ""))
    )
    shutil.copy(ROOT / ".gitignore", copy)
    begin = "git init -q -b main && git add -A && git -c user.name=n -c user.email=e@example.org commit -qm begin"
    subprocess.run(["bash", "-c", begin], cwd=copy, check=True)
    for kind, text, path in steps(page):
        if not follow(kind, text, path, copy):
            command = [sys.executable, "-c", text] if kind == "python" else ["bash", "-c", programs + text]
            done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
            assert done.returncode == 0, f"{text}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    left = subprocess.run(["git", "status", "--short"], cwd=copy, capture_output=True, text=True, check=True).stdout
    assert not left, "what is left after the undoing"
