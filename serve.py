"""Serve the registered model."""

from pathlib import Path
from typing import Any

from flatfix.config.entry import entry_point
from flatfix.config.exit_codes import ExitCode
from flatfix.config.options import SERVE


@entry_point("serve", conf=Path(__file__).parent / "conf", schema=SERVE)
def main(cfg: dict[str, Any]) -> ExitCode:
    """Answer pictures over HTTP with the version that an alias names, and follow the alias without a restart.

    Usage:
      python serve.py                                   the production version, on http://127.0.0.1:8000
      python serve.py alias=staging port=8001           the test server: the same program
      python serve.py host=0.0.0.0 auth.keys=keys.json auth.predict=true
      python -m flatfix.serving.keys line-3 --file keys.json         make an API key
      python -m flatfix.serving.load --image-dir pictures            measure a server

    The same server without this repository, options in a file:
      FLATFIX_SERVE_CONFIG=serve.yaml uvicorn flatfix.serving.app:create_app --factory

    Exit codes: 0 stopped, 2 wrong usage, 3 anything else.
    """
    from flatfix.serving.command import run

    return run(cfg)


if __name__ == "__main__":
    main()
