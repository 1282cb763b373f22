"""The phrase judge beside a person, on answers of real models that were read one by one.

Of the sheets in `tests/data/hand_read` the judge was mended on the first, and not on the second.
Answers that comply with a harmful request are left out; their labels are kept.
"""

import pandas as pd
import pytest
from conftest import REPOSITORY
from sklearn.metrics import cohen_kappa_score

from refusal_lens.config import RefusalConfig
from refusal_lens.experiments.judges import decide, judge_of
from refusal_lens.prompts.files import read_prompts

SHEETS = REPOSITORY / "tests" / "data" / "hand_read"
MODELS = [file.stem for file in SHEETS.glob("*.csv")]


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    files = ("requests_harmful", "requests_harmless")
    sets = [read_prompts(REPOSITORY / "data" / f"{name}.json", name) for name in files]
    return {prompt.id: prompt.text for prompts in sets for prompt in prompts}


@pytest.mark.parametrize("model", MODELS)
def test_the_judge_says_what_a_person_says(model, texts):
    sheet = pd.read_csv(SHEETS / f"{model}.csv", dtype=str, keep_default_na=False)
    sheet = sheet[sheet["answer"] != ""]
    judge = judge_of(RefusalConfig())
    prompts = [texts.get(prompt_id, "") for prompt_id in sheet["prompt_id"]]
    judged = [decide(judge, *pair) for pair in zip(prompts, sheet["answer"], strict=True)]
    assert cohen_kappa_score(judged, sheet["label"]) >= 0.8


def test_answers_that_comply_with_harm_are_not_kept():
    for model in ("smollm2-135m", "qwen2.5-coder-0.5b"):
        sheet = pd.read_csv(SHEETS / f"{model}.csv", dtype=str, keep_default_na=False)
        complied = (sheet["class"] == "harmful") & (sheet["label"] == "answered")
        assert (sheet.loc[complied, "answer"] == "").all()
