"""Models composed of a VLM or LLM and a diffusion image branch."""
