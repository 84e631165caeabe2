"""Options that make commands quick."""

QUICK = ["--target", "mlp:16", "--steps", "20", "--eval-every", "10", "--warmup", "0", "--quiet"]
