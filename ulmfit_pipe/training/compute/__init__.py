"""How a step is computed: precision, compiling, memory, wrapping."""
