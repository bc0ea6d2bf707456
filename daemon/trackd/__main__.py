"""`python -m trackd` is `trackd`."""

from trackd.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
