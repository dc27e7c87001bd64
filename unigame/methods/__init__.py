"""Training methods: what each adds to a step of fine-tuning."""
