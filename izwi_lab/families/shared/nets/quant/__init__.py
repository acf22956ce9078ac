"""Linear and embedding layers whose weights stay affine-quantised: torch and MLX twins."""
