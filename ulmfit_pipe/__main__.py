"""`python -m ulmfit_pipe run ...` is `ulmfit run ...`; so are `torchrun -m` and `accelerate launch -m`."""

from ulmfit_pipe.cli import main

if __name__ == "__main__":
    main()
