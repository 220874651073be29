"""The one family of errors that are expected: bad input or parameters, told in words that say what to do."""

from pathlib import Path


class PipelineError(Exception):
    """Something a person can mend; its text names what, the constraint and what came, and no patient.

    Stages and commands print it without a traceback. Any other exception is a defect of ours and shows one.
    """


def where_it_arose(error: BaseException) -> str:
    """File and line of an unexpected error: what may be told of it, since its text may quote a header."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "an unknown line"
