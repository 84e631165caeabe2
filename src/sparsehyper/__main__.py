"""``python -m sparsehyper``."""

from sparsehyper.cli import main

if __name__ == "__main__":
    main()
