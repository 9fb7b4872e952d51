"""Interrupts the measurement of what widths cost, and counts what is done again."""

import pytest

from transformers_qaig.quantizer.bit_costs import measure, width_errors


def interrupt_second_measurement(monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[str]]:
    """Interrupts the run when it measures costs for the second time.

    Returns:
        an entry for each measurement so far, and the path of each target whose rounding errors were computed.
    """
    measured: list[int] = []
    decided: list[str] = []
    costs_of, decide = measure.costs_of, width_errors.decide

    def stop_at_second(*arguments):
        measured.append(1)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return costs_of(*arguments)

    def remember(*arguments, **options):
        decided.append(arguments[1])
        return decide(*arguments, **options)

    monkeypatch.setattr(measure, "costs_of", stop_at_second)
    monkeypatch.setattr(width_errors, "decide", remember)
    return measured, decided
