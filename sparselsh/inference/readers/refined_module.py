"""RefinedModule: a refined network as a PyTorch module.

This module needs torch; only `build_module` imports it.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ...refinement import refinement_config, refinement_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from ...refinement import Refinement


class RefinedModule(nn.Module):
    """The refined scores of all labels.

    The `n_candidates` labels with the largest outputs z of `layers` have
    ``z - l + scale (W x + b)``, where l is the logarithm of the sum of their ``exp(z)``, or 0
    without `normalized`; every other label j has ``s_c + min(z_j - z_c, 0)``, where s_c is the
    smallest score and z_c the smallest z of the candidates. The classifiers W are sparse; they are
    kept as the three arrays of a CSR matrix, and their gradients are not computed.

    Inputs are (n_rows, n_features). Sparse ones are made dense for the classifiers.
    """

    def __init__(self, layers: nn.Sequential, refinement: Refinement) -> None:
        super().__init__()
        self.layers = layers
        for name, array in refinement_tensors(refinement).items():
            self.register_buffer(name, torch.from_numpy(np.array(array)))
        config = refinement_config(refinement)
        self.scale, self.n_candidates = config["scale"], config["n_candidates"]
        self.normalized = config["normalized"]

    def extra_repr(self) -> str:
        """The refinement in words."""
        return f"scale={self.scale:g}, n_candidates={self.n_candidates}"

    def forward(self, x: Tensor) -> Tensor:
        """Scores (n_rows, n_labels) of all labels."""
        z = self.layers(x)
        rows = x.detach() if x.layout == torch.strided else x.detach().to_dense()
        of, ids = z.topk(min(self.n_candidates, z.shape[1]), dim=1)
        # W x^T: a bag per label, whose entries are the weights of rows of x^T
        added = nn.functional.embedding_bag(
            self.indices.long(), rows.T.contiguous(), self.indptr, mode="sum",
            per_sample_weights=self.data, include_last_offset=True).T + self.bias
        scores = of + self.scale * added.gather(1, ids)
        if self.normalized:
            scores = scores - of.logsumexp(1, keepdim=True)
        below = scores.amin(1, keepdim=True) + (z - of[:, -1:]).clamp(max=0)
        return below.scatter(1, ids, scores)
