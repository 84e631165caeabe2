"""``python -m sparsehyper``."""

from sparsehyper.lab.cli import main

if __name__ == "__main__":
    main()
