"""What the two papers published about their pairings.

P1 is *Immiscible Diffusion*, P2 *Improved Immiscible Diffusion*. Figures come from third parties'
reading reports where the papers' tables could not be read.
"""

from immiscible_diffusion.couplings import KNN, Coupling, Independent, LinearAssignment

P1, P2 = "arXiv 2406.12303", "arXiv 2505.18521"
CIFAR10_DIM, LATENT_DIM = 3072, 4096  # numbers in a sample

# Distance reduction in percent: by batch size (P1, Table 2); by k, with the setting and the number
# of dimensions (P2, Table 7).
ASSIGNMENT_REDUCTION = {128: 1.93, 256: 2.16, 512: 2.32, 1024: 2.44}
KNN_REDUCTION = {4: ("FM and CM", CIFAR10_DIM, 1.10), 8: ("DDIM", CIFAR10_DIM, 1.58), 64: ("SD", LATENT_DIM, 2.32)}

# Distance between noise clusters with its +-, by coupling (P2, section 4.2). The papers' KNN is
# taken to be k = 8; the number of noises of a cluster is said to be 10,000.
CLUSTER_DISTANCE = {"independent": (0.92, 0.06), "knn": (2.17, 0.35), "assignment": (4.11, 0.37)}
CLUSTER_K, CLUSTER_POINTS = 8, 10_000

# KL in nats of a Gaussian fitted to 50,000 noises (P2, section 4.3).
GAUSSIAN_FIT = {"independent": 48.25, "knn": 48.60}
FIT_COUNT = 50_000


def published_name(coupling: Coupling) -> str:
    """``knn``, ``assignment`` or ``independent`` where the papers have the coupling, else ''."""
    if isinstance(coupling, KNN):
        return "knn" if coupling.center is None else ""
    if isinstance(coupling, LinearAssignment):
        plain = coupling.cost != "l1" and not coupling.negate and coupling.oversample == 1
        return "assignment" if plain and coupling.cond_key is None else ""
    return "independent" if isinstance(coupling, Independent) else ""
