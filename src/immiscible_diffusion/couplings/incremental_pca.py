"""Leading principal directions of a stream of batches, without a matrix quadratic in D."""

import torch
from torch import Tensor


class IncrementalPCA:
    """The scatter of the rows seen so far, kept to its ``rank`` leading directions.

    Each update joins the kept directions, the new rows and the shift of the mean (Ross et al. 2008)
    and keeps the leading ones: exact while ``rank`` reaches the dimension or the number of rows,
    else the smallest kept directions lose what was dropped; ask for more than you need.
    """

    def __init__(self, rank: int) -> None:
        self.rank, self.count = rank, 0
        self.mean = torch.zeros(0)
        self.rows = torch.zeros(0, 0)

    def update(self, batch: Tensor) -> None:
        """Take up rows ``[B, D]`` float64."""
        count, mean = len(batch), batch.mean(dim=0)
        parts = [batch - mean]
        if self.count:
            weight = (self.count * count / (self.count + count)) ** 0.5
            parts += [self.rows, weight * (mean - self.mean)[None]]
            mean = self.mean + (mean - self.mean) * (count / (self.count + count))
        self.rows = leading_rows(torch.cat(parts), self.rank)
        self.count, self.mean = self.count + count, mean

    def leading(self, count: int) -> tuple[Tensor, Tensor]:
        """Directions ``[r, D]``, orthonormal, and variances along them ``[r]``, descending."""
        length = torch.linalg.vector_norm(self.rows, dim=1)
        kept = length > 1e-7 * length.max().clamp_min(1e-30)
        rows, length = self.rows[kept][:count], length[kept][:count]
        # Once more made orthonormal: rows of very different lengths are so to rounding only.
        basis, _ = torch.linalg.qr((rows / length[:, None]).T)
        return basis.T, length.square() / self.count


def leading_rows(rows: Tensor, rank: int) -> Tensor:
    """``[min(rank, ...), D]``: rows with the leading part of the scatter ``rows.T @ rows``.

    By the smaller of the two Gram matrices; they are singular values times singular vectors.
    """
    if rows.shape[0] <= rows.shape[1]:
        values, vectors = torch.linalg.eigh(rows @ rows.T)
        return (vectors.T @ rows).flip(0)[:rank]
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    return (vectors.T * values.clamp_min(0).sqrt()[:, None]).flip(0)[:rank]
