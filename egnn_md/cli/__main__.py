"""`python -m egnn_md.cli`: what torchrun starts."""

from egnn_md.cli import main

if __name__ == "__main__":
    main()
