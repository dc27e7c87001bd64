"""U teaches G: what U confirms of G's drawings trains caption -> image."""

from unigame.methods.verify.method import Verify, VerifySettings

__all__ = ["Verify", "VerifySettings"]
