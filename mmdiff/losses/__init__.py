"""What the network is asked to be good at: losses, weights, and the likelihood that they bound."""

from mmdiff.losses.costs import Answer, Directed, Huber, Hybrid, Loss, PseudoHuber, Squared
from mmdiff.losses.likelihood import bits_per_dim
from mmdiff.losses.weights import AsTarget, EDMWeight, MinSNR, Weight, even

__all__ = [
    "Answer",
    "AsTarget",
    "Directed",
    "EDMWeight",
    "Huber",
    "Hybrid",
    "Loss",
    "MinSNR",
    "PseudoHuber",
    "Squared",
    "Weight",
    "bits_per_dim",
    "even",
]
