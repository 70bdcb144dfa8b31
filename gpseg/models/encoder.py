"""The encoder: from an image to styles and to features at every resolution.

Its trunk is the discriminator's, which pre-training has already shown every image of the class; no outside weights.
"""

import copy

import torch
from torch import Tensor, nn

from gpseg.models.stylegan2 import Discriminator, NetworkConfig
from gpseg.nn import Conv2d, FullyConnected


class Encoder(nn.Module):
    """Encode images as w+ (one style a layer) and as skip features.

    Args:
        trunk: a discriminator; its residual blocks are copied, its epilogue is left out.
        network: what the generator that the styles are for is built from.
        num_ws: styles the generator takes.
    """

    w_mean: Tensor

    def __init__(self, trunk: Discriminator, network: NetworkConfig, num_ws: int) -> None:
        super().__init__()
        self.trunk = copy.deepcopy(trunk)
        del self.trunk.b4
        self.num_ws = num_ws
        self.w_dim = network.w_dim
        width = self.trunk.channels[4]
        self.hidden = FullyConnected(16 * width, 2 * network.w_dim, activation="lrelu")
        self.to_ws = FullyConnected(2 * network.w_dim, num_ws * network.w_dim)
        # Small, so that the first codes lie near the mean face and not where the generator knows nothing.
        nn.init.normal_(self.to_ws.weight, std=0.1)
        self.register_buffer("w_mean", torch.zeros(network.w_dim))
        self.laterals = nn.ModuleDict(
            {str(r): Conv2d(c, c, 3, activation="lrelu") for r, c in self.trunk.channels.items()}
        )

    def forward(
        self, images: Tensor, *, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Encode images.

        Args:
            images: [N, img_channels, r, r], −1 … 1.
            dtype: dtype of the features; None for the trunk's own.

        Returns:
            Styles [N, num_ws, w_dim], float32, and features [N, channels[r], r, r] by resolution r.
        """
        # convolved: at full resolution fromRGB alone has seen no neighbours
        features = self.trunk.features(images, convolved=True, dtype=dtype)
        offsets = self.to_ws(self.hidden(features[4].float().flatten(1)))
        ws = self.w_mean + offsets.reshape(-1, self.num_ws, self.w_dim)
        return ws, {r: self.laterals[str(r)](x) for r, x in features.items()}
