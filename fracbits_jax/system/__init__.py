"""What a program asks of the machine and of the installation: streams, files, packages that may be missing. No JAX.

Public: `extras.needed`, around imports of optional packages.
"""
