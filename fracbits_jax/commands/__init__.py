"""The command line: `fracbits-jax NAME`, or `python -m fracbits_jax.NAME`.

Each module has `main(argv, program=...)`; `console` is what the installed command calls. Nothing else imports them.
"""
