"""Our backbones as models of lmms-eval."""
