"""Knowledge distillation with integrated gradients: what is computed. Where and when it runs is decided in `jobs`."""
