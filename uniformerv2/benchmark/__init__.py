"""How fast models run on this machine: ours in every backend and precision, the official one, and others."""
