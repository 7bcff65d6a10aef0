"""PowerSGD: a matrix as two thin factors, by one step of subspace iteration from a warm start.

Vogels, Karimireddy, Jaggi 2019, algorithm 1, for one device: P = M Q, P orthonormal, Q' = M^T P;
what crosses is P and Q', and P Q'^T is what comes out. Q' begins the next round, and what was left
out is added to the next update (error feedback). The paper sums P and Q over devices between the
steps; here each device has factors of its own, and the mean is taken of what comes out.
"""

import numpy as np

from skerry_protos.codecs.floats import Floats

WORTH = 0.5
"""Factors are used where they have at most this part of the matrix's elements."""


def matrix_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return a tensor's rows (axis 0) and columns (all others)."""
    rows = shape[0] if shape else 1
    return rows, int(np.prod(shape[1:], dtype=np.int64))


def rank_for(shape: tuple[int, ...], rank: int) -> int:
    """Return the rank to use for a tensor, 0 where factors do not pay (vectors, small ones)."""
    if len(shape) < 2 or 0 in shape:
        return 0
    rows, columns = matrix_of(shape)
    rank = min(rank, rows, columns)
    return rank if rank * (rows + columns) <= WORTH * rows * columns else 0


def start(columns: int, rank: int, rng: np.random.Generator) -> Floats:
    """Return a first Q: columns x rank."""
    return rng.standard_normal((columns, rank), dtype=np.float32)


def basis(matrix: Floats, warm: Floats) -> Floats:
    """Return P: an orthonormal basis (rows x rank) of what the matrix makes of `warm`."""
    made: Floats = np.linalg.qr(matrix @ warm)[0]
    return made


def against(matrix: Floats, left: Floats) -> Floats:
    """Return Q (columns x rank): the matrix is near P Q^T."""
    made: Floats = np.ascontiguousarray(matrix.T @ left)
    return made


def product(left: Floats, right: Floats) -> Floats:
    """Return P Q^T, flat; column by column, so that every machine comes to the same bits."""
    made = np.zeros((left.shape[0], right.shape[0]), dtype=np.float32)
    for column in range(left.shape[1]):
        made += np.outer(left[:, column], right[:, column])
    return made.reshape(-1)
