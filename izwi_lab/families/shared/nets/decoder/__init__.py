"""The decoder language model that many families share: configuration, torch and MLX twins, native CPU step."""
