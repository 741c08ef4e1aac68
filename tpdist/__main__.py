"""`python -m tpdist`: the same as `tpdist`."""

from tpdist.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
