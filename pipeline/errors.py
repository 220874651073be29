"""The one family of errors that are expected: bad input or parameters, told in words that say what to do."""

from pathlib import Path


class PipelineError(Exception):
    """Something a person can mend; its text names what, the constraint and what came, and no patient.

    Stages and commands print it without a traceback. Any other exception is a defect of ours and shows one.
    """


def defect(doing: str, source_id: str, error: Exception) -> PipelineError:
    """An unexpected error over one raw file, told by the file's pseudonym and the line where it arose.

    Never by its path, which may name a patient, nor by the error's text, which may quote a header.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "?"
    return PipelineError(
        f"defect while {doing} source {source_id}: {type(error).__name__} at {where}; please report it. "
        f"`python -m pipeline.commands.inventory --find {source_id}` names the file"
    )
