"""Hostile, broken and unlucky peers: what lowhaio makes of them, as short tests and as long runs"""
