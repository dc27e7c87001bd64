"""The recipe of the bundled model that draws in continuous latents.

``python -m tools.bagel_nano --seed 0`` runs every stage; ``main.STAGES`` has them in order.
"""
