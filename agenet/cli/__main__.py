"""`python -m agenet.cli` is the same as `agenet`."""

from agenet.cli.app import main

if __name__ == "__main__":
    main()
