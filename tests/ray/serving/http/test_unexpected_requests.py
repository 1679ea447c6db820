"""Generated requests, good and bad, from the service's own OpenAPI schema."""

import re
import subprocess
import sys
from pathlib import Path

from tests.serving import Served


def test_no_request_of_the_contract_ends_in_a_server_error(served: Served, tmp_path: Path) -> None:
    """schemathesis generates requests, valid and invalid; it also writes items, so that it must come last."""
    command = ["schemathesis", "run", f"{served.url}/openapi.json", "--checks", "not_a_server_error"]
    options = ["--max-examples", "25", "--seed", "7", "--request-timeout", "60", "--no-color"]
    program = Path(sys.executable).with_name(command[0])
    finished = subprocess.run(
        [program, *command[1:], *options], cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False
    )
    assert finished.returncode == 0, finished.stdout[-6000:] + finished.stderr[-2000:]
    assert re.search(r"(\d{3,}) generated, \1 passed", finished.stdout), finished.stdout[-3000:]
