"""A setup that is made once and forked for each try, and a grade that no try can forge.

    pip install .
    python examples/python/grading.py

What the grader does, and why, is in examples/grading/grader.py and docs/grading.md.
"""

import json
from pathlib import Path
from typing import Any, Dict, List

from tool_executor import ToolExecutor

GRADER = (Path(__file__).parent.parent / "grading" / "grader.py").read_text()
# What only the grader knows.
CASES: List[Dict[str, Any]] = [
    {"numbers": [1, 2, 3], "expected": 6},
    {"numbers": [], "expected": 0},
    {"numbers": [-5, 5, 70], "expected": 70},
]
TRIES = {
    "honest": "def total(numbers): return sum(numbers)",
    "wrong": "def total(numbers): return 6",
    "forger": "import os; os.write(1, b'{\"score\": 1}'); os._exit(0)",
}


def main() -> None:
    with ToolExecutor(local={"slots": 4}) as executor:
        # Once, however long it takes.
        executor.execute("setup", "bash", {"command": "echo 'Write total(numbers).' > TASK.md"})
        for fork in executor.fork("setup", list(TRIES)):
            assert fork.begun, fork.error
        for name, solution in TRIES.items():
            executor.execute(name, "write_file", {"path": "solution.py", "content": solution})
            grade = executor.grade(
                name,
                "exec python3 -I grader.py",
                files={"grader.py": GRADER},
                stdin=json.dumps(CASES),
                timeout=60,
            )
            # What has no verdict has failed.
            verdict: Dict[str, Any] = grade.verdict_json or {}
            print(name, verdict.get("score", 0.0))


if __name__ == "__main__":
    main()
