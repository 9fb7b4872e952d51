"""Bit costs: what each way to store each weight costs the answers, measured before anything is quantized.

It calls the steps of calibration, and the loop does not call it. It may import what `calibration` may.
"""
