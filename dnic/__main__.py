"""`python -m dnic`."""

from dnic.cli import main

if __name__ == "__main__":
    main()
