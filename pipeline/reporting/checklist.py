"""Reporting guidelines, item by item, with the sections of the page that hold evidence.

Items are told in our own short words under the guidelines' numbers. CLAIM 2024: Tejani et al., Radiology: Artificial
Intelligence 2024;6(4):e240300. TRIPOD+AI: Collins et al., BMJ 2024;385:e078378.
"""

from typing import NamedTuple


class Item(NamedTuple):
    """An item: its number, what it asks for, and the sections with evidence, most telling first.

    ``author``: what the page holds is a part; the author adds what no table knows. Without sections all is theirs.
    """

    number: str
    asks: str
    sections: tuple[str, ...] = ()
    author: bool = False


class Guideline(NamedTuple):
    """A guideline: its name, its source, and its items under the guideline's headings."""

    name: str
    source: str
    parts: tuple[tuple[str, tuple[Item, ...]], ...]


CLAIM = Guideline(
    "CLAIM 2024",
    "Tejani et al., Radiology: Artificial Intelligence 2024;6(4):e240300, doi:10.1148/ryai.240300",
    (
        (
            "Title, abstract, introduction",
            (
                Item("1", "Names itself a study of artificial intelligence, and the kind of it"),
                Item("2", "Summary of design, methods, results and conclusions", ("summary",), author=True),
                Item("3", "Background; intended use and role"),
                Item("4", "Aims, objectives and hypotheses", ("verdict",), author=True),
            ),
        ),
        (
            "Methods: design and data",
            (
                Item("5", "Prospective or retrospective"),
                Item("6", "Goal of the study", ("verdict",), author=True),
                Item("7", "Sources of the data", ("funnel", "composition"), author=True),
                Item("8", "Who and what is included and excluded", ("funnel",), author=True),
                Item("9", "Preprocessing of the data", ("samples", "quality", "provenance")),
                Item("10", "How parts of the data were selected", ("funnel", "leakage")),
                Item("11", "De-identification", ("funnel",)),
                Item("12", "Missing data, and what was done about it", ("composition", "funnel")),
                Item("13", "Image acquisition", ("composition", "quality"), author=True),
            ),
        ),
        (
            "Methods: reference standard",
            (
                Item("14", "How the reference standard was obtained"),
                Item("15", "Why this reference standard"),
                Item("16", "Who annotated, with what qualification", ("funnel",), author=True),
                Item("17", "Annotation of the test set"),
                Item("18", "Variability between and within annotators"),
            ),
        ),
        (
            "Methods: partitions and sample size",
            (
                Item("19", "How data were assigned to partitions", ("leakage", "composition", "provenance")),
                Item("20", "At which level partitions are disjoint", ("leakage",)),
                Item("21", "Intended sample size of the test data", ("verdict",), author=True),
            ),
        ),
        (
            "Methods: model and training",
            (
                Item("22", "The model in detail", ("provenance",)),
                Item("23", "Software and its versions", ("provenance",)),
                Item("24", "Initialisation of the parameters", ("provenance", "reading")),
                Item("25", "Training: augmentation, hyperparameters, number of models", ("training", "provenance")),
                Item("26", "How the final model was selected", ("training", "choice"), author=True),
                Item("27", "Ensembles", ("provenance",), author=True),
            ),
        ),
        (
            "Methods: evaluation",
            (
                Item("28", "Metrics of performance", ("reading", "hospitals")),
                Item("29", "Significance and uncertainty", ("verdict", "reading")),
                Item("30", "Robustness and sensitivity", ("stress", "diagnosis", "controls", "efficiency", "remedies")),
                Item("31", "Explainability or interpretability", ("gallery",), author=True),
                Item("32", "Testing on internal data", ("hospitals",)),
                Item("33", "Testing on external data", ("hospitals", "matrix", "mismatch")),
                Item("34", "Registration of a clinical trial"),
            ),
        ),
        (
            "Results",
            (
                Item("35", "Numbers included and excluded, as a flow", ("funnel",)),
                Item("36", "Characteristics of the cases in each partition", ("composition",), author=True),
                Item("37", "Performance in each partition, with uncertainty", ("hospitals", "verdict")),
                Item("38", "Diagnostic performance and its precision", ("hospitals", "calibration", "subgroups")),
                Item("39", "Analysis of failures", ("gallery", "subgroups"), author=True),
            ),
        ),
        (
            "Discussion and other information",
            (
                Item("40", "Limitations", ("summary", "reading"), author=True),
                Item("41", "What it means for practice"),
                Item("42", "Protocol or further technical details", ("verdict", "provenance"), author=True),
                Item("43", "Availability of software, model and data", ("provenance",), author=True),
                Item("44", "Funding, and the role of funders"),
            ),
        ),
    ),
)
TRIPOD_AI = Guideline(
    "TRIPOD+AI",
    "Collins et al., BMJ 2024;385:e078378, doi:10.1136/bmj-2023-078378",
    (
        (
            "Title, abstract, introduction",
            (
                Item("1", "Title: development or evaluation, population, outcome"),
                Item("2", "Abstract, by its own checklist", ("summary",), author=True),
                Item("3a", "Context of care, rationale, existing models"),
                Item("3b", "Target population, purpose, intended users"),
                Item("3c", "Known inequalities between groups of people"),
                Item("4", "Objectives: development, evaluation or both", ("verdict",), author=True),
            ),
        ),
        (
            "Methods: data, participants, outcome, predictors",
            (
                Item("5a", "Sources of data and how representative they are", ("composition",), author=True),
                Item("5b", "Dates of the data"),
                Item("6a", "Setting and centres", ("composition",), author=True),
                Item("6b", "Eligibility", ("funnel",), author=True),
                Item("6c", "Treatments, where relevant"),
                Item("7", "Preparation and quality control of the data", ("quality", "samples", "funnel")),
                Item("8a", "The outcome, how and when it is assessed"),
                Item("8b", "Who assessed the outcome"),
                Item("8c", "Blinding of that assessment"),
                Item("9a", "Choice of predictors", ("pixels",), author=True),
                Item("9b", "Definition and measurement of predictors", ("composition", "samples"), author=True),
                Item("9c", "Who assessed predictors, where that takes judgement"),
            ),
        ),
        (
            "Methods: size, missing data, analysis",
            (
                Item("10", "How the study size came about", ("verdict", "funnel"), author=True),
                Item("11", "Missing data", ("composition", "funnel")),
                Item("12a", "How data were used and partitioned", ("leakage", "composition")),
                Item("12b", "How predictors were handled", ("provenance", "samples")),
                Item(
                    "12c",
                    "Kind of model, building steps, tuning, internal validation",
                    ("training", "provenance", "choice"),
                ),
                Item("12d", "Heterogeneity between hospitals", ("hospitals", "matrix", "diagnosis", "mismatch")),
                Item("12e", "Measures and plots of performance", ("reading", "verdict")),
                Item("12f", "Updating of the model", ("remedies", "continual"), author=True),
                Item("12g", "How predictions were calculated", ("provenance",)),
                Item("13", "Class imbalance", ("composition", "provenance"), author=True),
                Item("14", "Fairness", ("subgroups",), author=True),
                Item("15", "Output of the model, and its thresholds", ("training", "calibration")),
                Item(
                    "16",
                    "Differences between development and evaluation data",
                    ("composition", "diagnosis", "mismatch"),
                ),
                Item("17", "Approval of an ethics committee, consent"),
            ),
        ),
        (
            "Open science, involvement of patients",
            (
                Item("18a", "Funding"),
                Item("18b", "Conflicts of interest"),
                Item("18c", "Protocol", ("verdict",), author=True),
                Item("18d", "Registration"),
                Item("18e", "Sharing of data", ("provenance",), author=True),
                Item("18f", "Sharing of code", ("provenance",), author=True),
                Item("19", "Involvement of patients and the public"),
            ),
        ),
        (
            "Results",
            (
                Item("20a", "Flow of participants, with and without the outcome", ("funnel", "composition")),
                Item("20b", "Characteristics, by data source", ("composition",), author=True),
                Item("20c", "Evaluation data compared with development data", ("composition", "diagnosis")),
                Item("21", "Participants and events in each analysis", ("composition", "provenance")),
                Item("22", "The full model, so that others can use it", ("provenance",), author=True),
                Item("23a", "Performance with intervals, also in subgroups", ("hospitals", "subgroups", "calibration")),
                Item("23b", "Heterogeneity of performance between hospitals", ("hospitals", "matrix")),
                Item("24", "Results of updating", ("remedies", "continual")),
            ),
        ),
        (
            "Discussion",
            (
                Item("25", "Interpretation, fairness included", ("summary",), author=True),
                Item("26", "Limitations", ("summary", "reading"), author=True),
                Item("27a", "Inputs that are poor or missing, in use", ("funnel", "diagnosis"), author=True),
                Item("27b", "What users have to do, and must know"),
                Item("27c", "Next steps"),
            ),
        ),
    ),
)
GUIDELINES = (CLAIM, TRIPOD_AI)
