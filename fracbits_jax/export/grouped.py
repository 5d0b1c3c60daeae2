"""Networks whose weights have ranges by group, which few formats can hold."""

from fracbits_jax.graph.graph import Graph


def refuse(graph: Graph, reader: str) -> None:
  """Raises `ValueError` for a kernel with ranges of groups.

  Args:
    graph: a network.
    reader: what cannot hold them.
  """
  for node in graph.nodes:
    size = node.params['kernel'].group_size if node.op == 'kernel' else None
    if size is not None:
      raise ValueError(
        f'the kernel of {node.params["layer"]} has a range for each group of {size} weights, and {reader} has none for '
        'groups: export with --format packed, stablehlo or qwix'
      )
