"""The mathematics of MAML as pure functions of tensors."""
