"""Pictures made worse: a fresh adversary, PGD, common corruptions."""
