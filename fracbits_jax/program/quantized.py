"""What quantized networks of all kinds have in common, whoever calls them how."""

import dataclasses
from collections.abc import Mapping
from typing import Self

from fracbits_jax.layers.quant_config import QuantConfig
from fracbits_jax.program import coverage
from fracbits_jax.program.network import Network


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class QuantizedNetwork:
  """A quantized network.

  Attributes:
    network: its weights and how they are quantized.
  """

  network: Network

  def __str__(self) -> str:
    return str(coverage.measure(self.network, self.network.program))

  @property
  def configs(self) -> dict[str, QuantConfig]:
    """How each weight is quantized, by its name; those that stay float are absent."""
    return {name: quant for name, (_, quant) in self.network.quantized().items()}

  def clone(self, configs: Mapping[str, QuantConfig | None]) -> Self:
    """The network with other configurations; weights that are not named stay float."""
    return dataclasses.replace(self, network=self.network.with_configs(configs))

  def without_quantization(self) -> Self:
    """The float network, with the call and the variables of this one."""
    return self.clone({})

  def with_fixed_bits(self) -> Self:
    """The network whose collection `bits` holds integers, fixed after a search; see `wrap.with_fixed_bits`."""
    return self.clone({name: dataclasses.replace(quant, learned=False) for name, quant in self.configs.items()})
