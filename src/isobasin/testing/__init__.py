"""Helpers for tests of this package and of code that builds on it; nothing else imports them.

`strategies` has hypothesis strategies for groups, weights and elements (hypothesis is imported on first use only),
`assertions` compares functions. Tiny models of every family are in `isobasin.architectures.examples`.
"""
