"""How a meta-gradient is computed: by autograd, or by compiled kernels."""
