"""`python -m reasoner`: the command line."""

from reasoner.cli import main

if __name__ == "__main__":
    main()
