"""`python -m refusal_lens`: the command line, where its script is not on the path."""

from refusal_lens.cli import main

if __name__ == "__main__":
    main()
