"""What the two papers published of their pairings, and which coupling of ours a figure is of.

The figures come through third parties' reading reports where the papers' tables could not be read.
"""

from immiscible_diffusion.couplings import KNN, Coupling, Independent, LinearAssignment, Shuffled

P1, P2 = "arXiv 2406.12303", "arXiv 2505.18521"
CIFAR, LATENT = 3072, 4096  # numbers in a sample
ASSIGNED = {128: 1.93, 256: 2.16, 512: 2.32, 1024: 2.44}
NEAREST = {8: ("DDIM", CIFAR, 1.58), 4: ("FM and CM", CIFAR, 1.10), 64: ("SD", LATENT, 2.32)}
VANILLA = (0.92, 0.06)
CLUSTERS = {"assignment": (4.11, 0.37), "knn": (2.17, 0.35), "independent": VANILLA}
FITS = {"independent": 48.25, "knn": 48.60}
FIT_COUNT, CLUSTER_K = 50_000, 8


def knows_no_data(coupling: Coupling) -> bool:
    """Whether the coupling was fitted to no data, so that it may be used on scaled ones."""
    if isinstance(coupling, Shuffled):
        return knows_no_data(coupling.coupling)
    if isinstance(coupling, KNN):
        return coupling.center is None
    return isinstance(coupling, (Independent, LinearAssignment))


def pairs_alike(coupling: Coupling) -> bool:
    """Whether pairs stay the same when all data are moved or scaled alike.

    So it is with assignment by inner products: what a common shift adds to the cost is the same for
    every permutation.
    """
    if isinstance(coupling, LinearAssignment):
        return coupling.cost == "inner" and coupling.oversample == 1
    return isinstance(coupling, Independent)


def kind_of(coupling: Coupling) -> str:
    """``knn``, ``assignment`` or ``independent`` where it is one that the papers have, else ''."""
    if isinstance(coupling, KNN):
        return "knn" if coupling.center is None else ""
    if isinstance(coupling, LinearAssignment):
        plain = coupling.cost != "l1" and not coupling.negate and coupling.oversample == 1
        return "assignment" if plain and coupling.cond_key is None else ""
    return "independent" if isinstance(coupling, Independent) else ""
