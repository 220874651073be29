"""The one family of errors that are expected: bad input or parameters, told in words that say what to do."""


class PipelineError(Exception):
    """Something a person can mend; its text names what, the constraint and what came, and no patient.

    Stages and commands print it without a traceback. Any other exception is a defect of ours and shows one.
    """
