"""The benchmarks of LLaVA-1.5, and held-out checks of the mixture's sources: questions, official scores, submissions.

No torch: answers are scored where they lie, from whatever model.
"""

from train.benchmarks.aokvqa import AOKVQA, AOKVQA_CHOICE
from train.benchmarks.common import Answer, Answers, Benchmark, Question, Report, read_answers
from train.benchmarks.gqa import GQA
from train.benchmarks.judge import Endpoint
from train.benchmarks.judged import LLAVA_BENCH, MM_VET
from train.benchmarks.mmbench import MMBENCH, MMBENCH_CN
from train.benchmarks.mme import MME
from train.benchmarks.pope import POPE
from train.benchmarks.refcoco import REFCOCO
from train.benchmarks.scienceqa import SCIENCEQA
from train.benchmarks.seed import SEED
from train.benchmarks.textvqa import TEXTVQA
from train.benchmarks.vizwiz import VIZWIZ
from train.benchmarks.vqa import OKVQA, VQAV2

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        VQAV2,
        GQA,
        VIZWIZ,
        SCIENCEQA,
        TEXTVQA,
        POPE,
        MME,
        MMBENCH,
        MMBENCH_CN,
        SEED,
        LLAVA_BENCH,
        MM_VET,
        OKVQA,
        AOKVQA,
        AOKVQA_CHOICE,
        REFCOCO,
    )
}
"""The twelve of LLaVA-1.5's tables in their order, then the held-out checks."""

__all__ = ["BENCHMARKS", "Answer", "Answers", "Benchmark", "Endpoint", "Question", "Report", "read_answers"]
