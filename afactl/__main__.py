"""`python -m afactl` is the same as `afactl`."""

from afactl.cli.main import main

if __name__ == "__main__":
    main()
