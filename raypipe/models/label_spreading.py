"""Label spreading: the labels of a few videos reach the others along a graph of nearest neighbors.

Zhou et al., Learning with Local and Global Consistency, 2003.
"""

import torch

NUM_NEIGHBORS = 10
_SHARPNESS = 3  # the weight of an edge is the cosine to this power: at 0.5, a neighbor counts an eighth
_SHARE = 0.9  # of a video's probabilities that comes from its neighbors
_NUM_STEPS = 40
_ROWS_AT_ONCE = 1_024


def neighbor_graph(inputs: torch.Tensor, *, num_neighbors: int = NUM_NEIGHBORS) -> torch.Tensor:
    """Return the graph of the nearest neighbors of N vectors ``[N, F]``, as a sparse matrix ``[N, N]``.

    Two videos are neighbors if one of them is among the nearest of the other, by cosine. The weights are symmetric, and
    divided by the square roots of both videos' sums, so that no power of the matrix grows. All pairs are compared, so
    the time grows with the square of N.
    """
    unit = torch.nn.functional.normalize(inputs.float(), dim=1)
    size, near = len(unit), min(num_neighbors, len(unit) - 1)
    columns, weights = [], []
    for start in range(0, size, _ROWS_AT_ONCE):
        cosines = unit[start : start + _ROWS_AT_ONCE] @ unit.T
        own = torch.arange(len(cosines))
        cosines[own, start + own] = -2.0  # a video is not its own neighbor
        found = cosines.topk(near, dim=1)
        columns.append(found.indices)
        weights.append(found.values.clamp(min=0) ** _SHARPNESS)
    rows = torch.arange(size).repeat_interleave(near)
    edges = torch.stack([rows, torch.cat(columns).flatten()])
    one_way = torch.sparse_coo_tensor(edges, torch.cat(weights).flatten(), (size, size), check_invariants=True)
    both = (one_way + one_way.T).coalesce()
    scale = torch.sparse.sum(both, dim=1).to_dense().clamp(min=1e-12).rsqrt()
    first, second = both.indices()
    scaled = both.values() * scale[first] * scale[second]
    return torch.sparse_coo_tensor(both.indices(), scaled, (size, size), is_coalesced=True, check_invariants=True)


def spread_labels(graph: torch.Tensor, labels: torch.Tensor, *, num_labels: int) -> torch.Tensor:
    """Return probabilities ``[N, C]`` for the videos of a graph, from class numbers ``[N]`` that are -1 if unknown.

    A video that no label reaches gets the same probability for every label.
    """
    known = torch.zeros(len(labels), num_labels)
    is_known = labels >= 0
    known[is_known, labels[is_known]] = 1.0
    reached = known
    for _ in range(_NUM_STEPS):
        reached = _SHARE * torch.sparse.mm(graph, reached) + (1 - _SHARE) * known
    total = reached.sum(dim=1, keepdim=True)
    return torch.where(total > 0, reached / total.clamp(min=1e-30), 1 / num_labels)
