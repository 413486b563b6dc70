"""`danqing` and `python -m danqing`."""

from __future__ import annotations


def main() -> None:
    from danqing.cli.main import app

    app()


if __name__ == "__main__":
    main()
