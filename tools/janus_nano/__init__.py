"""The recipe of the bundled model whose image tokenizer keeps degraded pictures as they are.

``python -m tools.janus_nano --seed 0`` runs every stage; ``main.STAGES`` has them in order.
"""
