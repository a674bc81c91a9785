"""`python -m pocketformer`, which is how `torchrun -m pocketformer` starts the command."""

from pocketformer.cli.main import main

if __name__ == "__main__":  # processes that decode images read this file again
    main()
